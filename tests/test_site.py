"""Every page of the site, opened from disk in a browser: `make docs` first. Needs chromium and chromedriver (Debian's
packages of these names) and selenium, and for accessibility axe-core, which `make axe` installs. Without them these
tests are skipped, and fail where CI is set."""
import json, os, re, shutil, sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit
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
    "Open a page and wait for its equations; nothing may leave the machine, be missing, or complain"
    resize(browser, width)
    for kind in ('browser', 'performance'): browser.get_log(kind)   # what an earlier page has left
    browser.get(f'{site.as_uri()}/{page}')
    browser.execute_async_script("""const done = arguments[0]
        window.MathJax ? MathJax.startup.promise.then(() => done()) : done()""")
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
        return ['.math', 'mjx-container', '[data-mml-node=merror], mjx-container [fill=red]']
            .map(o => document.querySelectorAll(o).length)""")
    assert wanted == drawn and not wrong, 'equations that are not drawn'
    prose = browser.execute_script('''const page = document.querySelector('article').cloneNode(true)
        page.querySelectorAll('pre, code, script, mjx-container').forEach(o => o.remove())
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

@pytest.mark.parametrize('width', [1280, 390])
def test_a_loss_can_be_chosen(browser, width):
    visit(browser, 'family.html', width)
    look = '''const figure = document.querySelector('.asl-family')
        const curves = [...figure.querySelectorAll('g[id^=family-]')].filter(o => getComputedStyle(o).display != 'none')
        return [curves.map(o => o.id).join(), figure.querySelector('output').textContent]'''
    before = browser.execute_script(look)
    assert before[0].count('family-') == 3
    browser.execute_script('''const choice = document.querySelector('.asl-family select')
        choice.value = '1'; choice.dispatchEvent(new Event('input', {bubbles: true}))''')
    after = browser.execute_script(look)
    quiet(browser)
    assert after[0] == 'family-1-0,family-1-1,family-1-2' and after[1] != before[1]

@pytest.mark.parametrize('slider', ['gamma_neg', 'clip'])
@pytest.mark.parametrize('width', [1280, 390])
def test_sliders(browser, slider, width):
    visit(browser, 'loss.html', width)
    look = '''const figure = document.querySelector('.asl-slider')
        const curves = [...figure.querySelectorAll('path')]
            .filter(o => getComputedStyle(o.parentNode).display != 'none')
        return [curves.map(o => o.getAttribute('d')).join(), figure.querySelector('output').textContent]'''
    curves, values = browser.execute_script(look)
    browser.execute_script('''const slider = document.querySelector(`.asl-slider input[name=${arguments[0]}]`)
        slider.value = slider.max; slider.dispatchEvent(new Event('input', {bubbles: true}))''', slider)
    after = browser.execute_script(look)
    quiet(browser)
    assert after[0] != curves and after[1] != values
