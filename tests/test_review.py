"`asl_review`: what is suspect, what is refused, what the page does in a browser, and how changes are applied."
import csv, json
from functools import partial

import pytest
import torch
from PIL import Image

from asl.review import main, suspects
from asl.training import review as module
from asl.training.review import out_of_fold
from test_predicting import call, pictures
from test_site import chromium, quiet

called = partial(call, main)
network = '--model', 'conv3', '--weights', 'random', '--size', '16'

@pytest.fixture
def tmp(tmp_path):
    "Pictures with two labels that are seen, and one that is drawn by lot"
    pictures(tmp_path/'img', 40)
    header, *rows = (tmp_path/'labels.csv').read_text().splitlines()
    lot = (torch.rand(40, generator=torch.Generator().manual_seed(0)) < .4).tolist()
    rows = [row+'|lot'*drawn for row, drawn in zip(rows, lot)]
    (tmp_path/'labels.csv').write_text('\n'.join([header, *rows]))
    return tmp_path

def reviewed(tmp, *argv, out='review'):
    "What the command wrote as a table, and what it said"
    code, said, err = called(*argv, *network, '--out', tmp/out)
    assert code == 0, err
    return list(csv.DictReader((tmp/out/'suspects.csv').open())), said, err

def refused(*argv):
    "The one line of a refusal"
    code, said, err = called(*argv, *network)
    assert code == 2 and err.count('\n') == 1 and not said.count('may be'), (code, err)
    return err

def table(path, rows):
    with path.open('w', newline='') as f: csv.writer(f).writerows(rows)
    return path

def labels_of(path): return {row['file']: set(row['labels'].split('|'))-{''} for row in csv.DictReader(path.open())}

# What is suspect

def noisy(n=600, C=4):
    "Features, true labels, and which of them were dropped and added"
    g = torch.Generator().manual_seed(0)
    true = torch.rand(n, C, generator=g) < torch.tensor([.4, .2, .1, .05])
    x = true.float()@torch.randn(C, 20, generator=g) + .5*torch.randn(n, 20, generator=g)
    dropped = true & (torch.rand(n, C, generator=g) < .15)
    added = ~true & (torch.rand(n, C, generator=g) < .01)
    return x, true, dropped, added

def test_what_was_dropped_and_added_comes_first():
    x, true, dropped, added = noisy()
    y = (true & ~dropped | added).float()
    found = suspects(out_of_fold(x, y, torch.arange(600) % 5), y, most=20)
    missing = [dropped[s.image, s.label].item() for s in found if s.written == 'absent']
    wrong = [added[s.image, s.label].item() for s in found if s.written == 'present']
    assert sum(missing) >= 15 and sum(wrong) >= 10

def test_no_label_has_a_say_in_its_own_posterior(monkeypatch):
    monkeypatch.setattr(module, 'PENALTIES', (.01,))        # else the labels of all choose it
    x, true, *_ = noisy(200)
    y = true.float()
    fold = torch.arange(200) % 4
    p = out_of_fold(x, y, fold)
    mine = fold == 2
    y[mine] = 1 - y[mine]
    again = out_of_fold(x, y, fold)
    assert torch.equal(p[mine], again[mine]) and not torch.isclose(p[~mine], again[~mine]).any(1).all()

def test_a_rare_label_is_not_suspect_for_being_rare():
    p = torch.tensor([[.02, .3]]*8 + [[.001, .05]]*2)
    y = torch.tensor([[1., 1]] + [[0, 1]]*7 + [[0, 1]]*2)
    found = suspects(p, y)
    assert [(s.image, s.label) for s in found if s.written == 'present'][:2] == [(8, 1), (9, 1)]

# The command

def test_pictures_become_a_page_and_a_table_and_labels_stay_as_they_are(tmp):
    before = (tmp/'labels.csv').read_bytes()
    rows, said, err = reviewed(tmp, tmp/'labels.csv', '--images', tmp/'img')
    written = labels_of(tmp/'labels.csv')
    assert rows and list(rows[0]) == ['file', 'label', 'written', 'posterior', 'share']
    for row in rows:
        assert (row['written'] == 'present') == (row['label'] in written[row['file']])
        assert (float(row['posterior']) > float(row['share'])) == (row['written'] == 'absent')
    page = (tmp/'review'/'review.html').read_text()
    assert page.count('<li class="entry"') == len(rows) == page.count('src="data:image/') and 'may be missing' in said
    assert (tmp/'labels.csv').read_bytes() == before and not err

def test_same_seed_same_page(tmp):
    first, again, other = (reviewed(tmp, tmp/'labels.csv', '--images', tmp/'img', '--seed', seed, out=out)[0]
        for seed, out in ((0, 'a'), (0, 'b'), (1, 'c')))
    assert (tmp/'a'/'review.html').read_bytes() == (tmp/'b'/'review.html').read_bytes()
    assert first == again != other

def test_a_forgotten_label_is_found(tmp):
    lines = (tmp/'labels.csv').read_text().splitlines()
    forgetful = next(i for i, line in enumerate(lines) if line.endswith(',bright'))
    lines[forgetful] = lines[forgetful].replace('bright', '')
    (tmp/'labels.csv').write_text('\n'.join(lines))
    first, *_ = reviewed(tmp, tmp/'labels.csv', '--images', tmp/'img', '--most', 2)[0]
    name = lines[forgetful].split(',')[0]
    assert (first['file'], first['label'], first['written']) == (name, 'bright', 'absent')

def test_unknown_marks_are_never_asked_about(tmp):
    there = labels_of(tmp/'labels.csv')
    rows = [['file', 'red', 'lot', 'group']]
    for i, (name, own) in enumerate(there.items()):
        rows.append([name, int('red' in own), '' if i % 3 == 0 else int('lot' in own), f'g{i//2}'])
    path = table(tmp/'columns.csv', rows)
    found, *_ = reviewed(tmp, path, '--images', tmp/'img', '--group', 'group')
    unknown = {row[0] for row in rows[1:] if row[2] == ''}
    assert found and not any(row['label'] == 'lot' and row['file'] in unknown for row in found)

def test_coco_and_a_folder_for_each_class_are_read_too(tmp):
    there = labels_of(tmp/'labels.csv')
    kinds = ['bright', 'lot', 'red']
    drawn = [dict(image_id=i, category_id=kinds.index(label)) for i, own in enumerate(there.values()) for label in own]
    coco = dict(images=[dict(id=i, file_name=name) for i, name in enumerate(there)],
        categories=[dict(id=c, name=name) for c, name in enumerate(kinds)], annotations=drawn)
    (tmp/'coco.json').write_text(json.dumps(coco))
    of_coco, *_ = reviewed(tmp, tmp/'coco.json', '--images', tmp/'img', out='coco')
    of_csv, *_ = reviewed(tmp, tmp/'labels.csv', '--images', tmp/'img', out='csv')
    assert of_coco == of_csv
    for name, own in there.items():
        folder = tmp/'kinds'/('lot' if 'lot' in own else 'other')
        folder.mkdir(parents=True, exist_ok=True)
        (folder/name).write_bytes((tmp/'img'/name).read_bytes())
    rows, *_ = reviewed(tmp, '--images', tmp/'kinds', out='folder')
    assert {row['label'] for row in rows} == {'lot', 'other'}
    assert {row['file'].split('/')[0] for row in rows} == {'lot', 'other'}

def test_a_class_that_cannot_be_judged_is_left_out_and_said(tmp):
    rows = [[name, '|'.join(['all', *sorted(own), *(['twice'] if i < 2 else [])])]
        for i, (name, own) in enumerate(labels_of(tmp/'labels.csv').items())]
    path = table(tmp/'more.csv', [['file', 'labels'], *rows])
    found, said, err = reviewed(tmp, path, '--images', tmp/'img')
    assert {row['label'] for row in found} <= {'red', 'bright', 'lot'} and '3 labels of 40 images' in said
    assert 'fewer than 5 images have them, or one group: twice' in err and 'to be without them: all' in err

def test_an_image_that_cannot_be_read_is_refused_or_left_out(tmp):
    (tmp/'img'/'007.png').write_bytes(b'no picture')
    assert '007.png' in refused(tmp/'labels.csv', '--images', tmp/'img')
    (tmp/'img'/'003.png').write_bytes((tmp/'img'/'004.png').read_bytes()[:200])       # its header is whole
    rows, said, err = reviewed(tmp, tmp/'labels.csv', '--images', tmp/'img', '--skip_bad')
    assert '38 images, in 5 folds' in said and err.count('left out 1 images') == 2
    assert not {'003.png', '007.png'} & {row['file'] for row in rows}

def test_a_network_that_knows_the_labels_is_warned_of(tmp):
    from asl.train import train
    quick = dict(model='conv3', size=16, epochs=1, workers=0, threads=1)
    run = train(tmp/'labels.csv', images=tmp/'img', out=tmp/'runs', **quick)
    code, _, err = called(tmp/'labels.csv', '--images', tmp/'img', '--weights', run, '--out', tmp/'review')
    assert code == 0 and 'may know wrong ones by heart' in err

# What is refused

def same_for_all(tmp, label):
    "A table in which all images have this label"
    return table(tmp/'same.csv', [['file', 'labels'], *([name, label] for name in labels_of(tmp/'labels.csv'))])

def test_no_images(): assert 'no images: give a CSV' in refused()

def test_one_class_that_all_images_have(tmp):
    assert 'no image is known to be without cat' in refused(same_for_all(tmp, 'cat'), '--images', tmp/'img')

def test_several_that_all_have(tmp):
    assert 'known to be without cat, dog: nothing can' in refused(same_for_all(tmp, 'cat|dog'), '--images', tmp/'img')

def test_no_label_at_all(tmp):
    path = same_for_all(tmp, '')
    assert 'no image has a label' in refused(path, '--images', tmp/'img', '--label_column', 'labels')
    assert 'no cell says that a class is not there' in refused(path, '--images', tmp/'img')

def test_too_few_with_a_label(tmp):
    rows = [[name, 'cat' if i < 3 else ''] for i, name in enumerate(labels_of(tmp/'labels.csv'))]
    path = table(tmp/'few.csv', [['file', 'labels'], *rows])
    said = refused(path, '--images', tmp/'img', '--out', tmp/'review')
    assert '--folds 5: needs as many images with a label' in said and not (tmp/'review').exists()
    found, *_ = reviewed(tmp, path, '--images', tmp/'img', '--folds', 3)
    assert {row['label'] for row in found} == {'cat'}

def test_all_of_a_label_in_one_group(tmp):
    rows = [['file', 'labels', 'video']]
    for i, name in enumerate(labels_of(tmp/'labels.csv')): rows.append([name, *(('cat', 'a') if i < 8 else ('', i))])
    columns = '--label_column', 'labels', '--group', 'video'
    assert 'of two groups at least' in refused(table(tmp/'one.csv', rows), '--images', tmp/'img', *columns)

@pytest.mark.parametrize('given, said', [
    (('--folds', 1), '--folds: needs 2 or more, got 1'), (('--most', 0), '--most: needs 1 or more'),
    (('--out', 'none/there'), 'no folder none'), (('--label_column', 'x'), "no column 'x'"),
    (('--apply', 'none.csv'), '--apply none.csv: no such file'), (('--range', '3'), '--range 3: needs two numbers')])
def test_options_that_cannot_work(tmp, given, said):
    assert said in refused(tmp/'labels.csv', '--images', tmp/'img', *given)

def test_what_is_about_a_csv_needs_one(tmp):
    assert '--group: is about a CSV' in refused('--images', tmp/'img', '--group', 'x')

def test_nothing_is_replaced_unless_told(tmp):
    reviewed(tmp, tmp/'labels.csv', '--images', tmp/'img')
    assert '--force replaces it' in refused(tmp/'labels.csv', '--images', tmp/'img', '--out', tmp/'review')
    reviewed(tmp, tmp/'labels.csv', '--images', tmp/'img', '--force')

# Changes applied

def applied(tmp, labels, changes, *argv):
    path = table(tmp/'changes.csv', [['file', 'label', 'from', 'to'], *changes])
    return called(labels, '--images', tmp/'img', '--apply', path, '--out', tmp/'new', *argv)

def test_accepted_changes_make_a_new_file(tmp):
    before = (tmp/'labels.csv').read_bytes()
    there = labels_of(tmp/'labels.csv')
    red, plain = (next(name for name, own in there.items() if ('red' in own) == is_red) for is_red in (True, False))
    changes = [[red, 'red', 'present', 'absent'], [plain, 'red', 'absent', 'present']]
    code, said, err = applied(tmp, tmp/'labels.csv', changes)
    assert code == 0 and '2 changes made' in said, err
    new = labels_of(tmp/'new'/'labels.csv')
    assert new == there | {red: there[red]-{'red'}, plain: there[plain]|{'red'}}
    assert (tmp/'labels.csv').read_bytes() == before

def test_unknown_marks_stay_unknown_and_groups_stay(tmp):
    names = list(labels_of(tmp/'labels.csv'))
    rows = [[name, i % 2, '' if i == 3 else i % 3 // 2, f'g{i//2}'] for i, name in enumerate(names)]
    path = table(tmp/'columns.csv', [['file', 'red', 'bright', 'video'], *rows])
    code, _, err = applied(tmp, path, [[names[0], 'red', 'absent', 'present']], '--group', 'video')
    assert code == 0, err
    new = list(csv.reader((tmp/'new'/'labels.csv').open()))
    assert new[0] == ['file', 'video', 'red', 'bright'] and new[1] == [names[0], 'g0', '1', '0'] and new[4][3] == ''

@pytest.mark.parametrize('change, said', [
    (['none.png', 'red', 'absent', 'present'], 'none.png is not among the images'),
    (['000.png', 'green', 'absent', 'present'], "the label 'green' is not among bright, lot, red"),
    (['000.png', 'red', 'unknown', 'present'], 'red is'), (['000.png', 'red', 'so', 'so'], 'not so; are these')])
def test_a_change_that_does_not_fit_is_refused_with_its_row(tmp, change, said):
    code, _, err = applied(tmp, tmp/'labels.csv', [change])
    assert code == 2 and 'changes.csv, row 2: ' in err and said in err and not (tmp/'new').exists()

def test_another_table_is_no_table_of_changes(tmp):
    code, _, err = called(tmp/'labels.csv', '--images', tmp/'img', '--apply', tmp/'labels.csv', '--out', tmp/'new')
    assert code == 2 and 'needs file, label, from, to' in err

# The page in a browser

@pytest.fixture(scope='module')
def browser():
    with chromium() as driver: yield driver

class Opened:
    "The page, and what a person sees of it"
    def __init__(self, browser, path, width=1280):
        self.browser = browser
        screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)
        for kind in ('browser', 'performance'): browser.get_log(kind)
        browser.get(path.as_uri())

    def js(self, code, *args): return self.browser.execute_script(code, *args)
    def choose(self, name, value):
        self.js('''const choice = document.getElementById(arguments[0])
            choice.value = arguments[1]; choice.dispatchEvent(new Event('change'))''', name, value)
    def press(self, *keys):
        for key in keys: self.browser.switch_to.active_element.send_keys(key)
    def click(self, place, what):
        from selenium.webdriver.common.by import By
        entry = [each for each in self.browser.find_elements(By.CLASS_NAME, 'entry') if each.is_displayed()][place]
        entry.find_element(By.CSS_SELECTOR, f'[data-do={what}]').click()
    def entries(self, *names):
        "Of those that are shown, in order"
        return self.js('''return [...document.querySelectorAll('.entry')].filter(o => o.offsetParent)
            .map(o => arguments[0].map(name => o.dataset[name] || ''))''', list(names))
    def answers(self): return [answer for answer, in self.entries('answer')]
    def state(self): return self.js("return document.getElementById('state').textContent")

@pytest.fixture
def page(browser, tmp):
    "Pictures in a folder with a comma, a quote and an umlaut in its name; another for each test, or it had its answers"
    names = list(labels_of(tmp/'labels.csv'))
    odd = f'a, "ü" {tmp.name}'
    (tmp/'img'/odd).mkdir()
    for name in names: (tmp/'img'/name).rename(tmp/'img'/odd/name)
    rows = [[f'{odd}/{name}', '|'.join(own)] for name, own in labels_of(tmp/'labels.csv').items()]
    table(tmp/'odd.csv', [['file', 'labels'], *rows])
    found, *_ = reviewed(tmp, tmp/'odd.csv', '--images', tmp/'img', '--most', 6)
    assert len(found) == 12
    return lambda width=1280: Opened(browser, tmp/'review'/'review.html', width)

def test_a_page_sorts_and_filters(page):
    shown = page()
    quiet(shown.browser)
    by_confidence = shown.entries('kind', 'rank')
    assert by_confidence == [[kind, str(rank)] for rank in range(1, 7) for kind in ('missing', 'wrong')]
    for name in ('label', 'file'):
        shown.choose('sort', name)
        found = [value for value, in shown.entries(name)]
        assert found == sorted(found) and len(found) == 12
    for kind in ('missing', 'wrong'):
        shown.choose('show', kind)
        assert shown.entries('kind') == [[kind]]*6
    shown.choose('show', 'all')
    shown.choose('sort', 'rank')
    assert shown.entries('kind', 'rank') == by_confidence

def test_answers_by_click_and_by_key_are_kept_and_exported(page, tmp):
    shown = page()
    assert shown.state() == '0 of 12 decided, 0 accepted'
    shown.click(1, 'accept')
    assert shown.answers()[1] == 'accept' and shown.state() == '1 of 12 decided, 1 accepted'
    shown.click(1, 'accept')                    # again: taken back
    assert not any(shown.answers())
    shown.click(1, 'reject')
    shown.js('document.activeElement.blur()')
    shown.press('j', 'a', 'j', 'r', 'a')        # the 1st accepted, over the 2nd, the 3rd rejected, the 4th accepted
    assert shown.answers()[:5] == ['accept', 'reject', 'reject', 'accept', '']
    shown.press('u')
    assert shown.answers()[:5] == ['accept', 'reject', 'reject', '', '']
    shown.press('a', 'k', 'k', 'a')             # the fourth; then back from the fifth to the third
    assert shown.answers()[:5] == ['accept', 'reject', 'accept', 'accept', '']
    shown.choose('show', 'open')
    assert len(shown.entries('rank')) == 8
    shown.press('a')
    shown.browser.refresh()                     # the browser has kept them
    shown.choose('show', 'all')
    assert shown.answers()[:4] == ['accept', 'reject', 'accept', 'accept']
    decided = shown.entries('answer', 'file', 'label', 'from', 'to')
    wanted = sorted(entry for answer, *entry in decided if answer == 'accept')
    rows = list(csv.reader(exported(shown, tmp).open(encoding='utf-8', newline='')))
    assert rows[0] == ['file', 'label', 'from', 'to'] and sorted(rows[1:]) == wanted and len(wanted) >= 3
    quiet(shown.browser)
    code, said, err = called(tmp/'odd.csv', '--images', tmp/'img', '--apply', tmp/'changes.csv', '--out', tmp/'new')
    assert code == 0 and f'{len(wanted)} changes made' in said, err

def exported(shown, tmp):
    "The file that the button writes"
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait
    shown.browser.execute_cdp_cmd('Browser.setDownloadBehavior', dict(behavior='allow', downloadPath=str(tmp)))
    shown.browser.find_element(By.ID, 'export').click()
    WebDriverWait(shown.browser, 10).until(lambda _: (tmp/'changes.csv').exists())
    return tmp/'changes.csv'

def test_a_phone_has_room_for_it(page):
    shown = page(390)
    assert shown.js('return document.documentElement.scrollWidth <= document.documentElement.clientWidth')
    shown.click(0, 'accept')
    assert shown.answers()[0] == 'accept'
    quiet(shown.browser)

CONTRAST = '''
const parts = text => text.match(/[\\d.]+/g).map(Number)
const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v/12.92 : ((v+.055)/1.055)**2.4)
  .reduce((sum, v, i) => sum + v*[.2126, .7152, .0722][i], 0)
const behind = o => { const c = parts(getComputedStyle(o).backgroundColor)
  return c.length === 4 && !c[3] ? behind(o.parentElement) : c }
return [...document.querySelectorAll('h1, p, button, select, kbd, b, #state, label')].filter(o => o.textContent.trim())
  .map(o => { const a = light(parts(getComputedStyle(o).color)), b = light(behind(o))
    return [o.className || o.tagName, (Math.max(a, b)+.05)/(Math.min(a, b)+.05)] }).filter(o => o[1] < 4.5)'''

@pytest.mark.parametrize('scheme', ['light', 'dark'])
def test_text_can_be_read_and_buttons_have_names(page, scheme):
    shown = page()
    feature = [dict(name='prefers-color-scheme', value=scheme)]
    shown.browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(features=feature))
    shown.click(0, 'accept')
    shown.click(1, 'reject')
    assert shown.js(CONTRAST) == []
    assert shown.js('''return [...document.querySelectorAll('button, select, img')]
        .every(o => o.getAttribute('aria-label') || o.alt || o.labels?.length || o.textContent.trim())''')
    pressed = "return [...document.querySelectorAll('[data-do]')].slice(0, 4).map(o => o.getAttribute('aria-pressed'))"
    assert shown.js(pressed) == ['true', 'false', 'false', 'true']

def test_names_cannot_become_part_of_the_page(browser, tmp_path):
    from asl.training.review import Suspect
    from asl.training.review_page import review_html
    bad = '</script><img src=x onerror="document.title=1">'
    path = tmp_path/'review.html'
    page = review_html(bad, [Suspect(bad, bad, 'absent', .5, .1)], lambda _: Image.new('RGB', (8, 8)), 1)
    path.write_text(page)
    shown = Opened(browser, path)
    assert shown.entries('file', 'label') == [[bad, bad]] and browser.title == bad
    quiet(browser)
