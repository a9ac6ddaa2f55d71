"""Notebooks for the documentation: processed by nbdev, which writes for Quarto, and from there to the Markdown of MyST,
or to plain Markdown as GitHub shows it."""
import ast, inspect, re, sys
from functools import cache
from importlib import import_module
from operator import attrgetter
from textwrap import wrap
import nbformat, yaml
from fastcore.docscrape import NumpyDocString
from execnb.nbio import nb2str, read_nb
from nbdev import processors
from nbdev.config import get_config
from nbdev.doclinks import NbdevLookup
from nbdev.processors import FilterDefaults, exec_show_docs
import menu
from menu import stem

cfg = get_config()
host = f'{cfg.doc_host}{cfg.doc_baseurl}'.rstrip('/')+'/'

class Lookup(NbdevLookup):
    "Names mean PyTorch's functions, not JAX's; what is shared inside of asl has no entry that a link could lead to"
    def __init__(self): super().__init__(skip_mods='asl.jax')

    def doc(self, sym):
        found = self[sym]
        if not isinstance(found, tuple) or not found[1].startswith('asl/'): return super().doc(sym)
        module = import_module(found[1].removesuffix('.py').replace('/', '.'))
        return found[0] if sym.split('.')[0] in module.__all__ else None

processors.NbdevLookup = Lookup
processors._hide_dirs = processors._hide_dirs - {'exporti'}   # what a module shares inside of asl is shown, no entry

code = re.compile(r'^(`{3,}).*?^\1`*[ \t]*$|`[^`\n]+`', re.M|re.S)
callout = re.compile(r'^:::+ *\{\.callout-(\w+)[^}]*\}\n+(?:#+ +([^\n]+)\n)?(.*?)^:::+ *$', re.M|re.S)
entry = re.compile(r'\A(?:---\n+)?\[source\]\((\S+)\)\{[^}]*\}\n+(#+ (\S+))\n+(```python\n.*?\n```)(.*)\Z', re.S)
documented = re.compile(r'^ {4}(\*{0,2}\w+)(?::(.*?))?(?:=.*?)?, # (.*)$', re.M)
paper = re.compile(r'(?:arxiv\.org/abs|doi\.org)/([^\s)>\]"]+)')
returned = re.compile(r'^\)->(.*): # (.*)$', re.M)

def slug(title):
    "The address of a heading, as nbdev's doclinks have it"
    return re.sub(r'[^\w .-]', '', title.strip().lower()).replace(' ', '-')

def outside_code(change, text):
    "Apply `change` to `text`, but not to the code in it"
    blocks = []
    text = change(code.sub(lambda m: blocks.append(m[0]) or f'\0{len(blocks)-1}\0', text))
    return re.sub('\0(\\d+)\0', lambda m: blocks[int(m[1])], text)

def admonition(m, plain):
    kind, title, body = m.groups()
    body = body.strip()
    if not plain: return f':::{{admonition}} {title or kind.title()}\n:class: {kind}\n\n{body}\n:::'
    lines = [f'[!{kind.upper()}]', *([f'**{title}**', ''] if title else []), *body.splitlines()]
    return '\n'.join(f'> {line}'.rstrip() for line in lines)

@cache
def papers(): return yaml.safe_load((menu.root/'docs/references.yml').read_text(encoding='utf-8'))

def references(texts, name):
    "The papers that texts of a page link to or name, as the list at its end; '' where there are none"
    linked = dict.fromkeys(key.rstrip('.') for text in texts for key in paper.findall(text))
    unknown = [key for key in linked if key not in papers()]
    if unknown: sys.exit(f'{name} links to {", ".join(unknown)}: say in docs/references.yml what that is')
    return '\n'.join(['## References', '', *(f'- {papers()[key]}' for key in linked)]) if linked else ''

def shown_text(cell):
    "The Markdown of a cell, or of what it shows"
    if cell.cell_type == 'markdown': return cell.source
    return '\n'.join(''.join(o.get('data', {}).get('text/markdown', '')) for o in cell.get('outputs', []))

def signature(name, found):
    "How to call it; nbdev's own signature has too long lines, and no `*`"
    try: call = inspect.signature(found)
    except ValueError: return f'{name}(*args)'      # an exception's constructor, which is C
    arguments = [o.replace(annotation=o.empty) for o in call.parameters.values() if o.name != 'self']
    return name + re.sub(r'<.* at 0x\w+>', '...', str(call.replace(parameters=arguments, return_annotation=call.empty)))

def arguments(found, definition):
    "What is said about each argument, and about what comes back: in a numpy docstring, or in comments of the signature"
    said = NumpyDocString(inspect.getdoc(found) or '')
    if said['Parameters']: return documented_arguments(said, inspect.signature(found).parameters)
    listed = [(typed(argument, kind), text) for argument, kind, text in documented.findall(definition)]
    return listed + [(f'returns {kind}', text) for kind, text in returned.findall(definition)]

def documented_arguments(said, call):
    "The same from a numpy docstring, with the annotations of the signature"
    listed = [(typed(name, formatted(call[name].annotation) if name in call else ''), ' '.join(item.desc))
        for name, item in said['Parameters'].items()]
    result = said['Returns']
    if result: listed.append((f'returns {result.type or result.name}', ' '.join(result.desc)))
    kinds, _, when = said['Raises'].strip().partition('\n')
    if kinds: listed.append((f'raises {kinds}', ' '.join(when.split())))
    return listed

def typed(name, kind): return f'{name}: {kind}' if kind else name

def formatted(annotation):
    "An annotation without the modules of its names; '' where there is none"
    if annotation is inspect.Parameter.empty: return ''
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', inspect.formatannotation(annotation))

def methods(found):
    "How to call each method that a class defines for its users, and the first line of what is said about it"
    listed = []
    for name, method in vars(found).items() if inspect.isclass(found) else ():
        about = inspect.getdoc(method) if inspect.isfunction(method) or isinstance(method, property) else None
        if not about or name[0] == '_': continue
        call = name if isinstance(method, property) else signature(name, method)
        listed.append((f'.{call}', about.splitlines()[0]))
    return listed

def reference(m, plain):
    "nbdev's entry for a function or class: name, link, signature, sentence, and then what was said about each argument"
    link, heading, name, definition, about = m.groups()
    file = link.split('#')[0]
    module = re.search(r'.*/(asl/.+)\.py$', file)[1].replace('/', '.')
    found = attrgetter(name)(import_module(module))     # the module, also where asl has a function of its name
    line = inspect.getsourcelines(inspect.unwrap(found))[1]
    link = f'{file}#L{line}'
    if plain: return f'{heading}\n\n[source]({link})\n\n{definition}{about}'
    short = '\n'.join(wrap(signature(name, found), 88, subsequent_indent='    '))
    listed = [*arguments(found, definition), *methods(found)]
    items = '\n\n'.join(f'`{argument}`\n: {text}' for argument, text in listed)
    return f'{heading}\n\n[source]({link}){{.source}}\n\n```python\n{short}\n```\n\n{about.strip()}\n\n' + (
        f'{{.parameters}}\n{items}' if items else '')

def markdown(text, plain):
    "Quarto's Markdown as MyST, or as plain Markdown for GitHub"
    def change(text):
        text = callout.sub(lambda m: admonition(m, plain), text)
        if plain:
            text = re.sub(r'\]\(([\w.]+\.ipynb)(#[^)]*)?\)', lambda m: f"]({host}{stem(m[1])}.html{m[2] or ''})", text)
            return re.sub(r'(\]\([^)\n]*\))\{[^}\n]*\}', r'\1', text)
        text = re.sub(rf'\]\({re.escape(host)}([\w.]+)\.html', r'](\1.ipynb', text)   # a link that Sphinx checks
        return re.sub(r'\]\(([\w.]+\.ipynb)', lambda m: f']({stem(m[1])}.ipynb', text)
    return outside_code(change, entry.sub(lambda m: reference(m, plain), text))

class ShowDocs(exec_show_docs):
    "Signatures come from the package. nbdev would run the notebook's imports too, and need whatever its tests need"
    def begin(self):
        super().begin()
        for cell in self.nb.cells:
            module = cell.directives_.get('default_exp')
            if module: self.k.run_cell(f'from asl import *; from asl.{module[0]} import *')

    def __call__(self, cell):
        if cell.cell_type == 'code' and 'show_doc(' in cell.source: super().__call__(cell)

def mark_source(cell):
    "Remember that a cell is exported and shown: later its directives are gone"
    if cell.cell_type == 'code' and 'exporti' in cell.directives_: cell.metadata['tags'] = ['source']

class Pages(FilterDefaults):
    def base_procs(self): return [mark_source, *(ShowDocs if o is exec_show_docs else o for o in super().base_procs())]

@cache
def processed(path):
    "What nbdev makes of a notebook for its documentation: signatures, links, hidden cells"
    nb = read_nb(path)
    if not re.fullmatch(r'# .+\s+> .+', nb.cells[0].source.strip()):
        sys.exit(f"{path.name}: the first cell must be '# Title' and '> One sentence', no more: nbdev drops the rest")
    Pages()(nb)
    return nb2str(nb)

def convert(path, plain=False):
    "A processed notebook, free of what only Quarto understands"
    nb = nbformat.reads(processed(path), 4)
    cells = []
    for i, cell in enumerate(nb.cells):
        if cell.cell_type == 'raw':
            nb.metadata.page = page = yaml.safe_load(cell.source.strip().strip('-'))
            nb.metadata.menu = page['title']
            if menu.inside(stem(path), menu.groups()): page['title'] = menu.INSIDE + page['title']
            cell = nbformat.v4.new_markdown_cell(f"# {page['title']}\n\n> {page.get('description', '')}")
        if cell.source.startswith('<!-- WARNING'): continue
        if cell.cell_type == 'code':
            option = dict(re.findall(r'^#\| *([\w-]+): *"?(.*?)"?$', cell.source, re.M))
            cell.source = re.sub(r'^#\|.*\n?', '', cell.source, flags=re.M)
            tags = cell.metadata.setdefault('tags', [])
            if option.get('include') == 'false': continue
            if option.get('output') == 'false': cell.outputs = []
            if option.get('echo') == 'false': tags.append('remove-input')
            if option.get('output') == 'asis':
                cell = nbformat.v4.new_markdown_cell('\n'.join(o.data.get('text/markdown', '') for o in cell.outputs))
            else:
                figure(cell, option, path.name, *nb.cells[i+1:i+2])
                fold(cell, option)
                for o in cell.outputs:          # a page's links may stand in what a cell shows, too
                    if 'text/markdown' in o.get('data', {}):
                        o.data['text/markdown'] = markdown(''.join(o.data['text/markdown']), plain)
            if cell.cell_type == 'code' and plain:
                if 'remove-input' in tags: cell.source = ''
            if not cell.source and not cell.get('outputs'): continue
        if cell.cell_type == 'markdown': cell.source = markdown(cell.source, plain)
        cells.append(cell)
    listed = references(map(shown_text, cells), path.name) if path.name != cfg.readme_nb else ''
    if listed: cells.append(nbformat.v4.new_markdown_cell(markdown(listed, plain)))
    nb.cells = cells
    nb.metadata['language_info'] = dict(name='python')
    return nb

PICTURE, TEST = 4, 5        # lines from which on the code of a picture, and a test that shows nothing, are folded

def fold(cell, option):
    "Fold what a reader can do without, and say what it is: source of the package, the code of a picture, long tests"
    lines = len(cell.source.strip().splitlines())
    if 'source' in cell.metadata.tags: what = f'Source of {defined(cell.source)}'
    elif pictures(cell) and lines > PICTURE: what = 'Code of this picture'
    elif option.get('code-fold') == 'true': what = 'Code'
    elif not cell.outputs and lines > TEST and re.search(r'^ *(assert|test_|says)', cell.source, re.M): what = 'Test'
    else: return
    if 'hide-input' not in cell.metadata.tags: cell.metadata.tags.append('hide-input')
    cell.metadata.mystnb |= dict(code_prompt_show=what, code_prompt_hide=what)

def defined(source):
    "The names that a piece of source defines"
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign): names += [ast.unparse(target) for target in node.targets]
        elif hasattr(node, 'name'): names.append(node.name)
    names = list(dict.fromkeys(names))
    return ', '.join(names[:4]) + (' and more' if len(names) > 4 else '') if names else 'what is imported'

def pictures(cell): return [kind for o in cell.outputs for kind in o.get('data', {}) if kind.startswith('image/')]

def figure(cell, option, page, following=None):
    "Give the cell's figures the size that they were drawn for, a caption, and in words what they show"
    caption = option.get('fig-cap')
    text = following.source if following and following.cell_type == 'markdown' else ''
    below = re.match(r'\*([^*].*?)\*(\n\n|\Z)', text, re.S)
    image = dict(alt=option.get('fig-alt') or caption or (' '.join(below[1].split()) if below else ''))
    if pictures(cell) and not image['alt']:
        sys.exit(f'{page}: a figure without words; add `#| fig-alt: "What it shows"` to cell {cell.id}, which draws it')
    for o in cell.outputs:
        for kind, size in o.get('metadata', {}).items():
            if kind.startswith('image/') and 'width' in size: image['width'] = f"{size['width']}px"
    cell.metadata.mystnb = dict(image=image, **(dict(figure=dict(caption=caption)) if caption else {}))
