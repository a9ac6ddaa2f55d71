"Sphinx's settings; `tools/nbsite.py` puts the pages beside this file"
from html import escape
from importlib.metadata import distribution
from docutils import nodes
from nbdev.config import get_config
from convert import host

cfg = get_config()
project, author, copyright, html_title, html_baseurl = cfg.title, cfg.author, cfg.copyright, cfg.title, host
extensions = ['myst_nb', 'sphinx.ext.mathjax', 'sphinx_copybutton']
exclude_patterns, smartquotes = ['images/README.md'], False
myst_enable_extensions = ['amsmath', 'attrs_block', 'attrs_inline', 'colon_fence', 'deflist', 'dollarmath', 'html_image']
myst_heading_anchors, myst_heading_slug_func = 4, 'convert.slug'
nb_render_markdown_format = 'myst'
nb_execution_mode, nb_code_prompt_show, nb_code_prompt_hide = 'off', 'Show the code', 'Hide the code'
suppress_warnings = ['myst.header']   # a name's entry is a heading of level 3, wherever it stands
html_theme = 'furo'
html_copy_source = html_show_sphinx = html_use_index = False
html_theme_options = dict(top_of_page_buttons=[])   # they would lead to notebooks under their old names
# One file, with its fonts: nothing is fetched
mathjax = distribution('sphinx-mathjax-offline').locate_file('sphinx-mathjax-offline/static/mathjax/tex-svg-full.js')
html_static_path, mathjax_path = ['static', str(mathjax)], 'tex-svg-full.js'
html_css_files = ['site.css']

def describe(app, pagename, template, context, doctree):
    "What a search engine or a link preview shows"
    if doctree is None: return
    quote = next(doctree.findall(nodes.block_quote), None)
    about = dict(title=doctree.next_node(nodes.title).astext(), description=quote.astext() if quote else cfg.description,
        type='website', url=f'{host}{pagename}.html', image=f'{host}_static/preview.png', site_name=project)
    tags = [f'<meta name="description" content="{escape(about["description"])}">', '<meta name="twitter:card" content="summary_large_image">']
    tags += [f'<meta property="og:{name}" content="{escape(text)}">' for name, text in about.items()]
    context['metatags'] = context.get('metatags', '') + '\n'.join(tags)

def setup(app):
    app.connect('html-page-context', describe)
    # Search would read the pages with fetch, which a browser forbids between files
    app.add_js_file(None, body="if (location.protocol=='file:') DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false", priority=900)
