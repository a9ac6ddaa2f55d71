"Sphinx's settings; `tools/nbsite.py` puts the pages beside this file"
import re
from html import escape
from pathlib import Path
from docutils import nodes
from nbdev.config import get_config
import menu
from convert import host

cfg = get_config()
project, author, copyright, html_title, html_baseurl = cfg.title, cfg.author, cfg.copyright, cfg.title, host
extensions, html_math_renderer = ['myst_nb', 'equations', 'sphinx_copybutton'], 'mathml'
exclude_patterns, smartquotes = ['images/README.md'], False
myst_enable_extensions = ['amsmath', 'attrs_block', 'attrs_inline', 'colon_fence', 'deflist', 'dollarmath', 'html_image']
myst_heading_anchors, myst_heading_slug_func = 4, 'convert.slug'
nb_render_markdown_format = 'myst'
nb_execution_mode, nb_code_prompt_show, nb_code_prompt_hide = 'off', 'Show the code', 'Hide the code'
suppress_warnings = ['myst.header']   # a name's entry is a heading of level 3, wherever it stands
html_theme = 'furo'
html_copy_source = html_show_sphinx = html_use_index = False
html_theme_options = dict(top_of_page_buttons=['view', 'edit'])     # templates/ makes them: notebook and repository
templates_path, html_favicon, html_search_scorer = ['templates'], 'static/favicon.svg', str(Path(__file__).with_name('scorer.js'))
html_static_path = ['static']
html_css_files, html_js_files = ['site.css'], ['site.js']
groups = menu.groups()
notebooks = {menu.stem(path): path.name for path in menu.root.glob('nbs/*.ipynb')}

def describe(app, pagename, template, context, doctree):
    "What a search engine or a link preview shows"
    if doctree is None: return
    quote = next(doctree.findall(nodes.block_quote), None)
    about = dict(title=doctree.next_node(nodes.title).astext(), description=quote.astext() if quote else cfg.description,
        type='website', url=f'{host}{pagename}.html', image=f'{host}_static/preview.png', site_name=project)
    tags = [f'<meta name="description" content="{escape(about["description"])}">', '<meta name="twitter:card" content="summary_large_image">']
    tags += [f'<meta property="og:{name}" content="{escape(text)}">' for name, text in about.items()]
    context['metatags'] = context.get('metatags', '') + '\n'.join(tags)

CAPTION = re.compile(r'<p class="caption" role="heading"><span class="caption-text">(.*?)</span></p>')

def navigation(app, pagename, template, context, doctree):
    "The menu: its captions are headings of a level, and what begins with Inside is folded but around the page that is shown"
    tree = context.get('furo_navigation_tree', '')
    start = tree.find(f'<span class="caption-text">{menu.INSIDE}')
    outside, within = (tree, '') if start < 0 else split(tree, tree.rfind('<p ', 0, start))
    if within:
        within = within.removesuffix('</div>')      # nothing but the lists: Furo's template closes the rest
        opened = ' open' if 'current-page' in within else ''
        within = f'<details class="inside"{opened}><summary>Inside</summary>{headed(within, 3)}</details>'
    context['furo_navigation_tree'] = headed(outside, 2)+within
    context.update(notebook=notebooks.get(pagename), repository=cfg.git_url)

def split(text, at): return text[:at], text[at:]

def headed(tree, level):
    "Captions as headings of a level, without the word that stands above them all"
    def caption(m):
        name = m[1].removeprefix(menu.INSIDE)
        name = name[0].upper()+name[1:]
        return f'<p class="caption" role="heading" aria-level="{level}"><span class="caption-text">{name}</span></p>'
    return CAPTION.sub(caption, tree)

def summaries(app, pagename, template, context, doctree):
    "What folds is called by what stands on it, and tells it to everybody"
    context['body'] = context.get('body', '').replace('<summary aria-label="Toggle hidden content">', '<summary>')

def patient_images(app, pagename, template, context, doctree):
    "Images whose size is known are loaded when they are about to be seen"
    context['body'] = re.sub(r'<img (?=[^>]* height=)', '<img loading="lazy" ', context.get('body', ''))

def explorer(app, pagename, template, context, doctree):
    "The page of moving pictures has scripts of its own"
    if pagename == 'explore':
        for name in ('losses.js', 'explore.js'): app.add_js_file(name)

def setup(app):
    app.connect('html-page-context', summaries)
    app.connect('html-page-context', patient_images)
    app.connect('html-page-context', explorer)
    app.connect('html-page-context', navigation, priority=900)      # after Furo
    app.connect('html-page-context', describe)
    # Search would read the pages with fetch, which a browser forbids between files
    app.add_js_file(None, body="if (location.protocol=='file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false", priority=900)
