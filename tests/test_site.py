"""Every page of the site, opened from disk in a browser: `make docs` first. Needs chromium and chromedriver (Debian's
packages of these names) and selenium, and for accessibility axe-core, which `make axe` installs. Without them these
tests are skipped, and fail where CI is set."""
import json, os, re, shutil, sys
from contextlib import contextmanager
from html import unescape
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import parse_qsl, unquote, urlsplit
import pytest

root = Path(__file__).parents[1]
sys.path.insert(0, str(root/'tools'))
menu = pytest.importorskip('menu')
site = root/'_docs'
order = [page for group in menu.groups().values() for page in group]
pages = sorted(path.name for path in site.glob('*.html'))
widths = [1366, 1280, 1024, 390]
flags = '''--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --no-first-run --disable-sync
    --disable-background-networking --disable-component-update'''.split()

def absent(why):
    "Skip, but where everything must have been installed fail"
    if os.environ.get('CI'): pytest.fail(why, pytrace=False)
    pytest.skip(why)

@contextmanager
def chromium():
    "A browser that writes down what it requests and what goes wrong"
    chrome = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    driver = shutil.which('chromedriver')
    if not (chrome and driver):
        absent(f'a browser test needs chromium and chromedriver on PATH; found {chrome} and {driver}')
    from selenium import webdriver
    options = webdriver.ChromeOptions()
    options.binary_location = chrome
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    with TemporaryDirectory() as profile:
        for flag in [*flags, f'--user-data-dir={profile}']: options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        driver.get('about:blank')       # leaves chromium's own first page, which a slow machine may still be loading
        try: yield driver
        finally: driver.quit()

@pytest.fixture(scope='module')
def browser():
    if not pages: absent('there is no site in _docs: run make docs')
    with chromium() as driver: yield driver

def resize(browser, width):
    screen = dict(width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)

def visit(browser, page, width=1280):
    "Open a page and wait for its fonts; nothing may leave the machine, be missing, or complain"
    resize(browser, width)
    for kind in ('browser', 'performance'): browser.get_log(kind)   # what an earlier page has left
    browser.get(f'{site.as_uri()}/{page}')
    browser.execute_async_script('document.fonts.ready.then(arguments[0])')
    quiet(browser)

def quiet(browser):
    errors = [o['message'] for o in browser.get_log('browser') if o['level'] == 'SEVERE']
    assert not errors
    for message in (json.loads(o['message'])['message'] for o in browser.get_log('performance')):
        if message['method'] == 'Network.requestWillBeSent':
            assert message['params']['request']['url'].startswith(('file:', 'data:', 'blob:'))
        assert message['method'] != 'Network.loadingFailed' or message['params'].get('canceled'), message['params']

@pytest.fixture(scope='module', params=pages)
def page(request, browser):
    "Opens the page at a width: loaded for a desktop once, and once for a phone, then made wider or narrower"
    phone = None
    def opened(width):
        nonlocal phone
        if phone == (width < 600): resize(browser, width)
        else: visit(browser, request.param, width)
        phone = width < 600
        quiet(browser)
    return opened

@pytest.mark.parametrize('width', widths)
def test_page(browser, page, width):
    page(width)
    # Furo hides what is too wide for the page, and on a phone lets the article scroll
    wide = browser.execute_script("""return [document.documentElement, document.querySelector('.content')]
        .filter(o => o.scrollWidth > o.clientWidth).map(o => o.scrollWidth)""")
    assert not wide, 'the page scrolls sideways'
    assert browser.title
    wanted, drawn, wrong = browser.execute_script("""
        return ['.math', '.math math', 'merror'].map(o => document.querySelectorAll(o).length)""")
    assert wanted == drawn and not wrong, 'equations that are not drawn'
    prose = browser.execute_script('''const page = document.querySelector('article').cloneNode(true)
        page.querySelectorAll('pre, code, script, math').forEach(o => o.remove())
        return page.textContent''')
    assert not re.search(r'\$|\\[a-zA-Z]+|:::|\|[ :]*---|#\||<matplotlib|<Axes|<Figure', prose)

def test_links_lead_somewhere(browser, page):
    page(widths[-1])
    found = "return [...document.querySelectorAll('a[href], img[src]')].map(o => o.href || o.src)"
    for link in browser.execute_script(found):
        url = urlsplit(link)
        if url.scheme != 'file': continue
        path = Path(unquote(url.path))
        assert path.is_file(), link
        if path.stem == 'explore' and '=' in url.fragment: continue      # settings, tested below
        if url.fragment: assert re.search(rf'\bid="{re.escape(unquote(url.fragment))}"', path.read_text()), link

@pytest.fixture(scope='module')
def axe():
    "The script of axe-core, which looks for what keeps people from reading a page"
    path = root/'node_modules/axe-core/axe.min.js'
    if not path.exists(): absent('accessibility is tested by axe-core: make axe')
    return path.read_text()

FINDINGS = """const [theme, only, done] = arguments
    document.body.dataset.theme = theme
    const choice = only ? {runOnly: {type: 'rule', values: only}} : {}
    axe.run({...choice, resultTypes: ['violations'], preload: false}).then(found => {
        document.body.dataset.theme = 'auto'
        done(found.violations.filter(o => ['serious', 'critical'].includes(o.impact))
            .map(o => [o.impact, o.id, o.nodes.length, o.nodes[0].html]))
    })"""

@pytest.mark.parametrize('theme, rules', [('light', None), ('dark', ['color-contrast'])])
def test_nothing_keeps_anybody_from_reading(browser, page, axe, theme, rules):
    page(1280)
    if not browser.execute_script('return !!window.axe'): browser.execute_script(axe)
    assert not browser.execute_async_script(FINDINGS, theme, rules)

def test_what_scrolls_is_reached_by_keyboard_and_what_is_shown_has_words(browser, page):
    page(1280)
    browser.execute_script('reach()')
    missed = browser.execute_script("""return [...document.querySelectorAll('article *')].filter(o =>
        o.scrollWidth > o.clientWidth+1 && /auto|scroll/.test(getComputedStyle(o).overflowX) && o.clientWidth
        && o.tabIndex < 0 && !o.querySelector('[tabindex="0"]')).map(o => o.outerHTML.slice(0, 99))""")
    assert not missed
    words = browser.execute_script("return [...document.querySelectorAll('article img')].map(o => o.alt)")
    assert all(len(alt) > 9 for alt in words)
    assert not browser.execute_script("return document.querySelector('[role=heading]:not([aria-level])')")

def test_no_visible_line_of_code_is_over_100_characters(browser, page):
    page(1280)
    lines = browser.execute_script("""return [...document.querySelectorAll('article pre')]
        .filter(o => !o.closest('.cell_output') && !o.closest('details:not([open])') && o.clientWidth)
        .flatMap(o => o.textContent.split('\\n'))""")
    assert [line for line in lines if len(line) > 100] == []

def test_a_page_leads_on_to_its_source_and_to_what_comes_next(browser, page):
    page(1280)
    name = Path(urlsplit(browser.current_url).path).stem
    if name not in order: return                                    # the page of the search
    links = browser.execute_script("""const href = o => document.querySelector(o)?.getAttribute('href')
        return [href('.view-this-page a'), href('.edit-this-page a'), href('.related-pages a.next-page'),
            href('link[rel="shortcut icon"]'), document.querySelector('details.inside').open]""")
    notebook, repository, following, icon, opened = links
    assert menu.stem(notebook) == name and (site/notebook).is_file() and (site/icon).is_file()
    assert repository.startswith('https://')
    after = order[order.index(name)+1:]
    assert following == (f'{after[0]}.html' if after else None)
    assert opened == menu.inside(name, menu.groups()) == browser.title.startswith(menu.INSIDE)

def test_the_pages_own_contents_stand_beside_it_at_1280(browser):
    visit(browser, 'loss.html', 1280)
    left, right, wide = browser.execute_script("""const o = document.querySelector('.toc-tree').getBoundingClientRect()
        return [o.left, o.right, document.querySelector('article').getBoundingClientRect().right]""")
    assert wide <= left < right <= 1280

def test_print_shows_the_article_alone_and_cuts_no_code(browser):
    visit(browser, 'train.html', 1024)
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media='print'))
    shown, cut = browser.execute_script("""return [
        [...document.querySelectorAll('.skip-to-content, .sidebar-drawer, .toc-drawer, .copybtn, .all-code')]
            .filter(o => getComputedStyle(o).display != 'none').map(o => o.className),
        [...document.querySelectorAll('article pre')].filter(o => o.scrollWidth > o.clientWidth+1).length]""")
    browser.execute_cdp_cmd('Emulation.setEmulatedMedia', dict(media=''))
    assert not shown and not cut

def test_one_button_opens_all_code_and_the_next_page_begins_so(browser):
    visit(browser, 'ops.checks.html')
    look = "return [...document.querySelectorAll('article details.hide')].map(o => o.open)"
    assert not any(browser.execute_script(look))
    press = "document.querySelector('button.all-code').click()"
    browser.execute_script(press)
    assert all(browser.execute_script(look))
    visit(browser, 'ops.common.html')
    assert all(browser.execute_script(look))
    browser.execute_script(press)
    assert not any(browser.execute_script(look))

def test_answers_stay_folded_when_all_code_is_shown(browser):
    visit(browser, 'first_model.html')
    look = "return [...document.querySelectorAll('article details.answer')].map(o => o.open)"
    press = "document.querySelector('button.all-code').click()"
    browser.execute_script(press)
    assert browser.execute_script(look) == [False]*3
    browser.execute_script(press)
    browser.execute_script("document.querySelector('details.answer summary').click()")
    assert browser.execute_script(look) == [True, False, False]
    shown = browser.execute_script("return document.querySelector('details.answer .cell_output').clientHeight")
    assert shown > 0, 'code and what it shows belong to the answer'

def test_the_inside_comes_last_in_search(browser):
    from selenium.webdriver.support.wait import WebDriverWait
    visit(browser, 'search.html?q=gradient')
    found = WebDriverWait(browser, 10).until(lambda b: b.execute_script("""
        const links = [...document.querySelectorAll('#search-results li a')]
        const done = document.querySelector('#search-results p')?.textContent.includes('found')
        return done ? links.map(o => o.pathname.split('/').pop().replace('.html', '')) : null"""))
    inside = [menu.inside(name, menu.groups()) for name in found]
    assert any(inside) and not all(inside) and inside == sorted(inside)

def test_search(browser):
    from selenium.webdriver.support.wait import WebDriverWait
    visit(browser, 'search.html?q=AsymmetricLossMultiLabel')
    found = WebDriverWait(browser, 10).until(lambda b: b.execute_script(
        "return [...document.querySelectorAll('#search-results li a')].map(o => o.href)"))
    quiet(browser)
    assert any('/loss.html' in link for link in found)

SCRIPTS, TEXTS = 120_000, 700_000       # bytes, before a server compresses them

@pytest.mark.parametrize('name', pages)
def test_no_page_is_heavy(name):
    text = (site/name).read_text()
    def files(pattern): return [site/unquote(url.split('?')[0]) for url in re.findall(pattern, text)]
    scripts = files(r'<script[^>]* src="([^"]+)"')
    sheets = files(r'<link[^>]* rel="stylesheet"[^>]* href="([^"]+)"')
    fonts = [*site.glob('_static/fonts/*.woff2')] if '<math' in text else []
    if name != 'search.html': assert sum(path.stat().st_size for path in scripts) < SCRIPTS     # that has the index
    assert sheets and sum(path.stat().st_size for path in [site/name, *sheets, *fonts]) < TEXTS

def test_the_font_of_equations_has_every_character_of_theirs():
    recipe = (site/'_static/fonts/LICENSE.txt').read_text()
    ranges = [part.split('-') for part in re.search('--unicodes=(.*)', recipe)[1].replace('U+', '').split(',')]
    drawn = {chr(code) for ends in ranges for code in range(int(ends[0], 16), int(ends[-1], 16)+1)}
    for name in pages:
        formulas = ''.join(re.findall('<math.*?</math>', (site/name).read_text(), re.S))
        seen = unescape(re.sub('<annotation.*?</annotation>|<[^>]*>', '', formulas, flags=re.S))
        assert not set(seen)-drawn-{'\n'}, name

def test_equations_are_drawn_in_their_font_and_copied_as_tex(browser):
    visit(browser, 'loss.html')
    loaded = "return [...document.fonts].filter(o => o.status == 'loaded').map(o => o.family).join()"
    assert 'STIX' in browser.execute_script(loaded)
    text, page = browser.execute_script("""
        const formula = document.querySelector('div.math')
        getSelection().selectAllChildren(formula.closest('section'))
        const data = new DataTransfer()
        dispatchEvent(new ClipboardEvent('copy', {clipboardData: data, cancelable: true}))
        return [data.getData('text/plain'), data.getData('text/html')]""")
    assert '$$L = y\\,L_+ + (1-y)\\,L_-$$' in text and r'$p = \sigma(z)$' in text
    assert '<math' not in page and not browser.execute_script("return document.querySelector('.copied')")

# What the page "What would my loss do?" computes, beside the package
EXPLORED = '''
    loss=asl
    loss=asl&gamma_neg=0&clip=0.2&score=0.22&prior=0.001
    loss=asl&gamma_neg=7&clip=0&score=0.0001
    loss=asl&gamma_neg=2.5&gamma_pos=0.5&clip=0.3&score=0.9999&cost=0.01
    loss=asl&clip=0.1&score=0.05&pos_weight=20&prior=0.5
    loss=asl&gamma_pos=0&disable_torch_grad_focal_loss=true&cost=100
    loss=asl&gamma_pos=2&disable_torch_grad_focal_loss=true
    loss=bce&score=0.3&cost=4
    loss=bce&pos_weight=0.1&axis=logit
    loss=focal&gamma=3.5&score=0.9999
    loss=focal&gamma=0
    loss=poly
    loss=poly&epsilon=-0.75&score=0.99
    loss=gce
    loss=gce&k_pos=0&k_neg=0.7&prior=0.0001
    loss=gce&k_pos=1&k_neg=1
    loss=gce&k_pos=1&k_neg=0.5
    loss=hill
    loss=hill&lam=2.5&margin=-1.5&gamma=0.75&score=0.97
    loss=apl&score=0.95
    loss=apl&gamma_pos=1.5&epsilon_1=0.5&score=0.999&disable_torch_grad_focal_loss=false
    loss=apl&epsilon_1=-2&epsilon_2=-4&gamma_neg=0&clip=0
    loss=ral
    loss=ral&gamma_pos=1&lam=2&score=0.9
    loss=ral&clip=0&score=0.02'''.split()

NUMBERS = """return [
    Object.fromEntries([...document.querySelectorAll('#explore data')].map(o => [o.dataset.name, Number(o.value)])),
    document.querySelector('#explore .python').textContent, {...chosen}]"""

def explore(browser, address, width=1280):
    "The numbers that the page shows, its lines of Python, and what is chosen"
    visit(browser, f'explore.html#{address}', width)
    return browser.execute_script(NUMBERS)

def by_package(code, chosen):
    "What the lines of Python make, and functions of a score and of logits by the loss that they make"
    import torch
    made = dict(logits=torch.logit(torch.tensor([chosen['score']], dtype=torch.float64)))
    exec(code, made)
    def sides(logits, label):
        leaf = logits.clone().requires_grad_()
        values = torch.stack([made['loss'](o, torch.full_like(o, label)) for o in leaf.split(1)])
        return values.detach(), torch.autograd.grad(values.sum(), leaf)[0].abs()
    return made, sides

@pytest.mark.parametrize('address', EXPLORED)
def test_the_explorer_says_what_the_package_says(browser, address):
    import torch
    shown, code, chosen = explore(browser, address)
    for name, value in parse_qsl(address): assert str(chosen[name]).lower() == value
    made, sides = by_package(code, chosen)
    loss = made['loss']
    expected = dict(probability=chosen['cost']/(1+chosen['cost']))
    for name, label in (('positive', 1.), ('negative', 0.)):
        value, pull = sides(made['logits'], label)
        expected |= {f'{name}_loss': value.item(), f'{name}_pull': pull.item()}
    at_half = [sides(torch.zeros(1, dtype=torch.float64), label)[1].item() for label in (0., 1.)]
    expected['balance'] = (1-chosen['prior'])/chosen['prior']*at_half[0]/at_half[1]
    expected['most'] = loss.posterior(torch.tensor([1e4], dtype=torch.float64)).item()
    expected['posterior'] = made['probability'].item()
    bounds = {}
    for name, ask, value in (('cut', loss.threshold, expected['probability']), ('even', loss.threshold, .5),
            ('start', loss.prior_logit, chosen['prior'])):
        try: expected[name] = ask(value)
        except ValueError as error: bounds[name] = float(re.search(r'(?:less than|at least) ([\d.e-]+)', str(error))[1])
    for name, value in bounds.items():
        assert name not in shown
        if name != 'even': assert shown.pop(f'{name}_bound') == pytest.approx(value, rel=1e-5)
    shown.pop('cut_bound', None)            # the margin's, which a threshold does not refuse
    assert shown.keys() == expected.keys()
    assert shown == pytest.approx(expected, rel=1e-7, abs=1e-7)
    for name, made_as in (('cut', 'cut'), ('start', 'bias')):
        if name in expected: assert made[made_as] == pytest.approx(expected[name])
        else: assert made_as not in made

PICTURES = """return [Object.fromEntries([...document.querySelectorAll('[data-picture]')].map(o => [o.dataset.picture,
    [Number(o.dataset.top), Object.fromEntries([...o.querySelectorAll('path')]
        .map(path => [path.getAttribute('class'), path.getAttribute('d')]))]])), FRAME, MOST_LOGIT]"""

@pytest.mark.parametrize('address', ['loss=asl&axis=logit', 'loss=ral&axis=logit&prior=0.1', 'loss=hill',
    'loss=apl&pos_weight=3'])
def test_the_explorers_curves_are_the_packages(browser, address):
    import torch
    _, code, chosen = explore(browser, address)
    pictures, frame, most = browser.execute_script(PICTURES)
    made, sides = by_package(code, chosen)
    def points(name, kind):
        "Logits and heights of a curve, as shares of the picture's"
        top, paths = pictures[name]
        pairs = [[float(o) for o in pair.split(',')] for pair in paths[kind][1:].split('L')][12:-12:9]
        x, y = torch.tensor(pairs, dtype=torch.float64).T
        share = (x-frame['left'])/(frame['right']-frame['left'])
        z = most*(2*share-1) if chosen['axis'] == 'logit' else torch.logit(share)
        return z, (frame['bottom']-y)/(frame['bottom']-frame['top']), top
    def agree(name, kind, of, within=.012):
        z, height, top = points(name, kind)
        seen = height < 2                       # steeper ones are far above the picture
        assert seen.sum() > 3 and torch.allclose(height[seen], of(z)[seen]/top, atol=within), (name, kind)
    for kind, label, share in (('positive', 1., chosen['prior']), ('negative', 0., 1-chosen['prior'])):
        agree('loss', kind, lambda z, label=label: sides(z, label)[0])
        agree('pull', kind, lambda z, label=label: sides(z, label)[1])
        agree('together', kind, lambda z, label=label, share=share: share*sides(z, label)[1], .06)
    agree('meaning', 'line', made['loss'].posterior)

def test_settings_by_which_scores_mean_nothing_are_refused_by_both(browser):
    shown, code, chosen = explore(browser, 'loss=hill&lam=1.75&margin=2&gamma=0.75')
    assert 'posterior' not in shown and browser.execute_script("return !!document.querySelector('[data-refused]')")
    with pytest.raises(ValueError, match='the probability falls'): by_package(code + '\nloss.posterior(logits)', chosen)

@pytest.mark.parametrize('width', [1280, 390])
def test_the_explorer_by_keyboard_and_its_address(browser, width):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    before, *_ = explore(browser, 'loss=asl', width)
    browser.find_element(By.CSS_SELECTOR, '[data-slide=gamma_neg]').send_keys(Keys.ARROW_RIGHT)
    after, _, chosen = browser.execute_script(NUMBERS)
    assert chosen['gamma_neg'] == 4.25 and after['cut'] > before['cut']
    box = browser.find_element(By.CSS_SELECTOR, '[data-number=prior]')
    box.send_keys(Keys.CONTROL, 'a')
    box.send_keys('0.003')
    browser.find_element(By.ID, 'choose-loss').send_keys(Keys.ARROW_DOWN)
    after, code, chosen = browser.execute_script(NUMBERS)
    assert 'PolyLoss(epsilon=2)' in code and chosen['prior'] == .003 and 'gamma_neg' not in chosen
    address = urlsplit(browser.current_url).fragment
    assert dict(parse_qsl(address)) == {name: str(value) for name, value in chosen.items()}
    browser.get('about:blank')
    again, *_ = explore(browser, address, width)
    assert again == after

def test_a_picture_is_touched(browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    explore(browser, 'loss=asl&score=0.9')
    picture = browser.find_element(By.CSS_SELECTOR, '[data-picture=pull]')
    ActionChains(browser).move_to_element(picture).click().perform()
    chosen = browser.execute_script(NUMBERS)[2]
    assert .4 < chosen['score'] < .55 and f"score={chosen['score']}" in browser.current_url

def test_what_an_address_cannot_mean_is_left_out(browser):
    _, _, chosen = explore(browser, 'loss=none&gamma_neg=99&clip=x&prior=&score=0.2&constructor=1')
    assert [chosen[o] for o in ('loss', 'gamma_neg', 'clip', 'prior', 'score')] == ['asl', 4, .05, .02, .2]

def test_links_to_settings_set_them(browser):
    explore(browser, '')
    links = browser.execute_script("""return [...document.querySelectorAll('article li a')].map(o => o.hash)
        .filter(o => o.includes('='))""")
    assert len(links) > 5
    for link in links:
        browser.execute_script("document.querySelector(`a[href='${arguments[0]}']`).click()", link)
        chosen = browser.execute_script('return readAddress(location.hash)')
        for name, value in parse_qsl(link[1:]): assert str(chosen[name]).lower() == value, link
        assert browser.execute_script('return chosen') == chosen
