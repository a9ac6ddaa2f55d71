"""Every page of the site, opened from disk in a browser: `make docs` first. Needs chromium and chromedriver (Debian's
packages of these names) and selenium. Without them these tests are skipped, and fail where CI is set."""
import json, os, re, shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit
import pytest

site = Path(__file__).parents[1]/'_docs'
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
