"The plots and the page of a run, where there is little, much, or something odd to show."
import math, re, subprocess, sys, warnings
from html.parser import HTMLParser
from io import BytesIO

import pytest, torch
from PIL import Image

from asl.training.figures import Outcome, draw_ap, draw_map, figures
from asl.training.page import _groups, report_html, write_report

void = {'meta', 'img', 'br', 'hr', 'input', 'link'}

class Page(HTMLParser):
    "A page whose tags are nested: its tags with attributes, and its text"
    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.text = [], [], ''
        self.feed(page); self.close()
        assert not self.open
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in void: self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data): self.text += data if self.open and self.open[-1] != 'style' else ''
    def all(self, name): return [attrs for tag, attrs in self.tags if tag == name]

def record(epoch=1, **scores): return dict(epoch=epoch, train_loss=2., test_loss=1., mAP=50., ECE=3.) | scores

def multi(n=40, C=7, seed=0, epochs=3, **other):
    g = torch.Generator().manual_seed(seed)
    y = (torch.rand(n, C, generator=g) < .3).float()
    o = Outcome([record(e) for e in range(1, epochs+1)], torch.rand(C, generator=g), [f'class {c}' for c in range(C)],
        torch.randn(n, C, generator=g), y, torch.sigmoid, torch.rand(n, generator=g))
    return o._replace(**other)

def single(n=40, C=7):
    o = multi(n, C)
    return o._replace(records=[record(accuracy=60.)], targets=torch.arange(n) % C, posterior=lambda z: z.softmax(1))

picture = lambda i: Image.new('RGB', (16, 16), (i % 256, 0, 0))

def page(o, names=None, plots=None, **settings):
    names = names or [f'{i}.png' for i in range(len(o.targets))]
    html = report_html('A run', settings, o, picture, names, plots or {})
    parsed = Page(html)
    assert html.startswith('<!doctype html>\n<html lang="en">') and parsed.all('meta')[0] == dict(charset='utf-8')
    tags = {tag for tag, _ in parsed.tags}
    assert not tags & {'script', 'link', 'iframe', 'object', 'embed', 'base', 'form'}
    assert not re.search(r'@import|url\(', html)
    assert not any(k in ('href', 'srcset', 'style') or k.startswith('on') for _, attrs in parsed.tags for k in attrs)
    images = parsed.all('img')
    assert all(a['src'].startswith(('data:image/png;base64,', 'data:image/jpeg;base64,')) and a['alt'] for a in images)
    assert all(a.get('scope') in ('col', 'row') for a in parsed.all('th'))
    return parsed

def quiet(o):
    "The plots, drawn without a warning"
    with warnings.catch_warnings(action='error'): return figures(o)

def size(png): return Image.open(BytesIO(png)).size

nan = math.nan
odd = dict(multi=multi(), one_class=multi(C=1), one_image=multi(n=1), one_epoch=multi(epochs=1), single=single(),
    two_classes=single(C=2), no_positives=multi(ap=torch.full((7,), nan), records=[record(mAP=nan)]),
    nan_records=multi(records=[record(train_loss=nan, test_loss=nan, mAP=nan)]*2),
    missing=multi(records=[dict(epoch=1), dict(epoch=2)]), inf=multi(records=[record(train_loss=math.inf)]),
    unknown=multi(targets=torch.full((40, 7), -100.)),
    unknown_single=single()._replace(targets=torch.full((40,), -100)),
    nan_logits=multi(logits=torch.full((40, 7), nan), losses=torch.full((40,), nan)),
    sure=multi(logits=torch.full((40, 7), 1e4)),
    many_epochs=multi(epochs=300), integers=multi(targets=torch.eye(40, 7).long()),
    adaptive=multi(records=[record(gamma_neg=4., gap=-.2), record(2, gamma_neg=nan, gap=None), record(3)]),
    names=multi(classes=['$a^{b$', '', 'x'*500, 'x'*500, 'two\nlines\x00', '猫', '\\frac$$']))

@pytest.mark.parametrize('name', odd)
def test_whatever_there_is_to_show_is_shown(name):
    o = odd[name]
    plots = quiet(o)
    assert set(plots) == {'loss', 'map', 'reliability', 'ap'} | ({'gamma'} if name == 'adaptive' else set())
    assert all(w < 1000 and h < 1000 for w, h in map(size, plots.values()))     # nothing sticks out
    images = page(o, plots=plots, model='m').all('img')
    shown = [(int(a['width']), int(a['height'])) for a in images[:len(plots)]]
    assert shown == [(w*2//3, h*2//3) for w, h in map(size, plots.values())]

def test_many_classes():
    o = multi(n=100, C=9605, classes=['a name of some length '*3]*9605)
    width, height = size(quiet(o)['ap'])
    assert width < 1000 and 2000 < height < 3000
    assert len(page(o).all('li')) < 36*13

def axes():
    from matplotlib.figure import Figure
    return Figure().add_subplot()

def test_the_hardest_class_is_on_top_and_equal_names_stay_apart():
    ax = axes()
    draw_ap(ax, torch.tensor([.5, nan, .1, .3]), ['a', 'b', 'c', 'a'])
    assert [round(b.get_width()) for b in ax.patches] == [10, 30, 50] and len({b.get_y() for b in ax.patches}) == 3
    assert [t.get_text() for t in ax.get_yticklabels()] == ['c', 'a', 'a'] and ax.get_ylim()[0] > ax.get_ylim()[1]
    assert '1 without positives' in ax.get_title(loc='left')

def test_the_best_epoch_is_found_between_nans():
    records = [record(e, mAP=v) for e, v in enumerate((nan, 30, 80, None, 70), 1)]
    ax = axes()
    draw_map(ax, records)
    assert 'best 80.0 in epoch 3' in ax.lines[0].get_label()
    text = page(multi(records=records)).text
    assert 'best epoch by mAP (3)' in text and 'last epoch (5)' in text
    assert 'best epoch' not in page(multi(epochs=1)).text

@pytest.mark.parametrize('n', [1, 2, 5, 24, 40, 100])
def test_no_image_is_shown_twice(n):
    shown = [a['alt'] for a in page(multi(n=n)).all('img')]
    assert 1 <= len(shown) == len(set(shown)) <= min(n, 36)
    shown = [a['alt'] for a in page(single(n=n)).all('img')]
    assert len(shown) == len(set(shown)) == min(n, 24)

def groups(o): return {title: chosen for title, _, chosen in _groups(o)}

def test_with_one_label_best_and_worst_are_by_loss():
    o = single()._replace(losses=torch.arange(40.).flip(0))
    assert groups(o) == {'Best predictions': [*range(39, 27, -1)], 'Worst predictions': [*range(12)]}

def test_mistakes_come_by_kind_and_the_surest_first():
    y = torch.tensor([[1., 0], [1, 0], [0, 0], [0, 0], [1, 1], [0, -100], [1, 0]])
    p = torch.tensor([[.4, .1], [.1, .1], [.6, .2], [.4, .3], [.9, .8], [.1, 1], [.6, .7]])
    o = multi(n=7, C=2)._replace(targets=y, logits=p.logit(), losses=torch.tensor([5., 6, 1, 2, 4, 0, 7]))
    assert groups(o) == {'Missed labels': [1, 0, 6], 'False labels': [2], 'Best predictions': [4]}

def test_images_without_a_label_that_nothing_is_said_of_are_not_shown():
    n = 200
    y = torch.zeros(n, 7)
    y[:20, 0] = 1
    shown = groups(multi(n=n)._replace(targets=y, logits=torch.where(y == 1, 2., -2.), losses=1-y[:, 0]))
    assert [*map(len, shown.values())] == [0, 0, 12] and all(i < 20 for i in shown['Best predictions'])

def test_soft_labels_are_shown_as_what_they_are_nearer_to():
    o = multi(n=1, C=2, logits=torch.tensor([[3., 2]]), targets=torch.tensor([[.7, .2]]))
    assert marks(o) == ['there', 'not there']

def test_the_first_batch_is_shown_with_its_labels():
    seen = [(Image.new('RGB', (300, 300)), torch.tensor([1., 0, 1])), (picture(3), torch.tensor([0., -100, 0]))]
    o = multi(C=3)
    parsed = Page(report_html('t', {}, o, picture, [*range(40)], {}, {}, seen))
    images = [a for a in parsed.all('img') if a['alt'].startswith('training image')]
    assert 'class 0, class 2' in parsed.text and len(images) == 2 and images[0]['src'].startswith('data:image/jpeg')
    classes = Page(report_html('t', {}, single(), picture, [*range(40)], {}, {}, [(picture(1), torch.tensor(5))]))
    assert 'Labels: class 5' in classes.text
    assert 'First training batch' not in page(o).text

def test_notes_are_shown_whatever_they_say():
    notes = dict(weights='random', diverged=True, stopped='after epoch 7: <no gain>')
    text = Page(report_html('t', {}, multi(), picture, [*range(40)], {}, notes)).text
    assert all(said in text for said in ('weights: random', 'diverged: yes', 'stopped: after epoch 7: <no gain>'))

def alpha(png): return Image.open(BytesIO(png)).convert('RGBA').getchannel('A')

def test_plots_are_transparent_and_their_ink_reads_on_white_and_on_black():
    for png in figures(multi()).values():
        assert alpha(png).getpixel((0, 0)) == 0
        image = Image.open(BytesIO(png)).convert('RGBA')
        solid = {colour for _, colour in image.getcolors(image.width*image.height) if colour[3] == 255}
        assert solid and all(40 < sum(colour[:3])/3 < 215 for colour in solid)

def made_font(letters, path):
    "A font file with a triangle for each of these letters"
    from fontTools.fontBuilder import FontBuilder
    from fontTools.pens.ttGlyphPen import TTGlyphPen
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 700), (900, 0)): pen.lineTo(corner)
    pen.closePath()
    letters = [*dict.fromkeys(letters)]
    names = ['.notdef', *(f'u{ord(c):X}' for c in letters)]
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap({ord(c): name for c, name in zip(letters, names[1:])})
    font.setupGlyf(dict.fromkeys(names, pen.glyph()))
    font.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable(dict(familyName='Made For A Test', styleName='Regular'))
    font.setupOS2(sTypoAscender=800)
    font.setupPost()
    font.save(path)

def test_names_are_drawn_by_a_font_that_has_their_letters(tmp_path, monkeypatch):
    from matplotlib.font_manager import fontManager
    own = [font for font in fontManager.ttflist if font.name.startswith(('DejaVu', 'Last Resort'))]
    monkeypatch.setattr(fontManager, 'ttflist', own)
    names = ['a', '猫', '\U0001f9a2 swan', 'कुत्ता', '❤\ufe0f']      # the last one asks for colours
    def title_and_families():
        ax = axes()
        draw_ap(ax, torch.arange(5)/5, names)
        return ax.get_title(loc='left'), ax.get_yticklabels()[0].get_fontfamily()
    said, families = title_and_families()
    assert said == '3 names with boxes for letters: install the font Noto Emoji, Noto Sans CJK, Noto Sans Devanagari'
    assert families == ['DejaVu Sans']
    made_font('猫कुत्ता', tmp_path/'made.ttf')
    fontManager.addfont(tmp_path/'made.ttf')
    said, families = title_and_families()
    assert said == '1 name with boxes for letters: install the font Noto Emoji'
    assert families == ['DejaVu Sans', 'Made For A Test']
    assert size(quiet(multi(C=5, classes=names))['ap'])[0] < 1000

def marks(o): return [a['aria-label'] for a in page(o).all('span') if 'role' in a]

def test_marks_say_what_is_there():
    o = multi(n=1, C=4, logits=torch.tensor([[3., 2, 1, -5]]))
    assert marks(o._replace(targets=torch.tensor([[0., 1, 0, 0]]))) == ['not there', 'there', 'not there']
    assert marks(o._replace(targets=torch.tensor([[1., 1, 1, 0]]))) == ['there']*3
    assert marks(o._replace(targets=torch.tensor([[1., -100, 1, 0]]))) == ['there', 'unknown', 'there']
    o = o._replace(posterior=lambda z: z.softmax(1))
    assert marks(o._replace(targets=torch.tensor([2]))) == ['not there', 'not there', 'there']
    assert marks(o._replace(targets=torch.tensor([0]))) == ['there']

def test_a_missed_label_is_shown_though_it_is_far_down():
    o = multi(n=1, C=9, logits=torch.arange(9., 0, -1)[None]-9, targets=torch.eye(9)[8:])
    assert marks(o) == ['not there']*5+['there'] and 'Labels: class 8' in page(o).text

def test_images_of_which_nothing_is_known_are_left_out():
    o = multi()
    o.targets[:30] = -100
    assert len(page(o).all('img')) == 10

evil = '"><script src=//evil.example/x.js></script><img src=x onerror=alert(1)>&amp;'

def test_names_are_text():
    o = multi(classes=[evil]*7, records=[record(**{evil: 1.})])
    html = report_html(evil, {evil: evil, 'model': evil, 'versions': {evil: [evil]}}, o, picture, [evil]*40, figures(o))
    parsed = Page(html)
    assert '<script' not in html and not parsed.all('script')
    assert len(parsed.all('img')) == 4+sum(map(len, groups(o).values()))
    assert evil in parsed.text and not any('onerror' in a for a in parsed.all('img'))

def test_pictures_are_small_and_few_pixels_stay_sharp():
    big = lambda _: Image.effect_noise((3000, 2000), 50)
    def images(picture): return Page(report_html('t', {}, multi(n=2), picture, 'ab', {})).all('img')
    from base64 import b64decode
    def opened(a): return Image.open(BytesIO(b64decode(a['src'].split(',')[1])))
    assert [opened(a).size for a in images(big)] == [(224, 149)]*2
    tiny = images(picture)
    assert all(a['class'] == 'tiny' and opened(a).size == (16, 16) for a in tiny)
    assert {opened(a).getpixel((3, 3)) for a in tiny} == {(0, 0, 0), (1, 0, 0)}     # to the last bit
    source = Image.new('RGB', (500, 500))
    images(lambda _: source)
    assert source.size == (500, 500)

def test_an_unreadable_image_costs_only_itself():
    def gone(_): raise FileNotFoundError(2, 'No such file')
    assert Page(report_html('t', {}, multi(n=2), gone, 'ab', {})).text.count('could not be read again') == 2

def test_files(tmp_path):
    write = lambda: write_report(tmp_path, 't', dict(model='m'), multi(), picture, list(range(40)))
    before = write().read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {'loss.png', 'map.png', 'reliability.png', 'ap.png', 'report.html'}
    assert write() == tmp_path/'report.html' and (tmp_path/'report.html').read_bytes() == before

def test_importing_them_is_light():
    code = "import sys, asl.training.page; print({'matplotlib', 'PIL', 'torchmetrics', 'timm'} & {*sys.modules})"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == 'set()'
