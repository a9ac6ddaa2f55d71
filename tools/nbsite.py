"""The documentation without Quarto. `python tools/nbsite.py site` builds `_docs`: the notebooks as nbdev processes
them, in the Markdown of MyST, through Sphinx. `python tools/nbsite.py readme [--check]` writes README.md from
nbs/index.ipynb, or fails when it is stale."""
import os, re, shutil, subprocess, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from nbdev.doclinks import NbdevLookup, nbglob
import preview
from convert import cfg, convert, host, outside_code, stem

rooms = dict(learn='Learn', use='Use', ops='Inside: how losses are computed', training='Inside: training',
    benchmark='Inside: benchmark')
root, notebooks, built = (Path(o).resolve() for o in (cfg.config_path, cfg.nbs_path, cfg.doc_path))

def export(nb, name, images):
    "A notebook as plain Markdown, and its images by file name"
    text, resources = MarkdownExporter().from_notebook_node(nb, dict(output_files_dir=images, unique_key=name))
    captions = iter([c.metadata.mystnb for c in nb.cells if c.cell_type == 'code' for o in c.outputs
        if any(k.startswith('image/') for k in o.get('data', {}))])
    def described(m):
        figure = next(captions)
        caption = f"\n\n*{figure['figure']['caption']}*" if 'figure' in figure else ''
        return f"![{figure['image']['alt']}]({m[1]}){caption}"
    text = re.sub(rf'!\[(?:png|jpeg|svg)\]\(({images}/.*?)\)', described, text)
    text = re.sub(r'^```python\s*```$', '', text, flags=re.M)     # what is left of a cell that shows its output alone
    text = outside_code(lambda s: re.sub(r'\n(\s*\n){2,}', '\n\n', s), text)
    return text.strip()+'\n', resources['outputs']

def room(path):
    "The part of the menu that a page stands in: its room in the package, or what its number says"
    inside, dot, _ = stem(path).partition('.')
    return rooms[inside if dot else 'learn' if path.name[0] == '1' else 'use']

def menu(name, entries):
    "A part of the menu, as a cell of the first page"
    listed = '\n'.join(entries)
    return nbformat.v4.new_markdown_cell(f'```{{toctree}}\n:hidden:\n:caption: {name}\n\n{listed}\n```')

def site():
    "Build the site; any warning of Sphinx is an error"
    if cfg.lib_path.name not in NbdevLookup().entries:
        sys.exit('asl is not installed, so no name would be linked: pip install -e .')
    source = root/'_site_src'
    for folder in (source, built): shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root/'docs', source)
    shutil.copytree(root/'images', source/'images')
    preview.draw(source/'static/preview.png', cfg.title, cfg.description)
    pages = {path: convert(path) for path in sorted(nbglob(as_path=True))}
    groups = {'Start': ['Overview <self>']} | {room: [] for room in rooms.values()}
    for path in pages:
        if path.name != cfg.readme_nb: groups[room(path)].append(stem(path))
    for path, nb in pages.items():
        if path.name == cfg.readme_nb: nb.cells += [menu(name, entries) for name, entries in groups.items() if entries]
        nbformat.write(nb, source/f'{stem(path)}.ipynb')
    sphinx = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', str(source), str(built)]
    code = subprocess.run(sphinx, env={**os.environ, 'PYTHONPATH': str(root/'tools')}).returncode
    if not code: plain_pages(pages)
    return code

def plain_pages(pages):
    "Each page as Markdown beside its HTML, and llms.txt, their list"
    lines = [f'# {cfg.title}', '', f'> {cfg.description}', '', '## Docs', '']
    for path in sorted(pages, key=lambda o: (o.name != cfg.readme_nb, o.name[0] != '1', o.name)):  # the reading order
        nb = convert(path, plain=True)
        name = stem(path)
        text, images = export(nb, name, f'{name}_files')
        for file, data in {f'{name}.html.md': text.encode(), **images}.items():
            (built/file).parent.mkdir(exist_ok=True)
            (built/file).write_bytes(data)
        page = nb.metadata.page
        lines.append(f"- [{page['title']}]({host}{name}.html.md): {page.get('description', '')}")
    (built/'llms.txt').write_text('\n'.join(lines)+'\n')

def readme(check=False):
    "Write README.md and its images; or, when `check`, fail if that would change them"
    text, images = export(convert(notebooks/cfg.readme_nb, plain=True), 'index', 'images/index')
    note = '<!-- Written from nbs/index.ipynb by `make readme`: do not edit -->\n\n'
    files = {root/name: data for name, data in {'README.md': (note+text).encode(), **images}.items()}
    stored = {path: path.read_bytes() for path in [root/'README.md', *(root/'images/index').glob('*')] if path.exists()}
    if check: return 'README.md or its images are stale: run make readme' if files != stored else 0
    for path in stored.keys()-files.keys(): path.unlink()
    for path, data in files.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)

if __name__ == '__main__':
    os.environ['IN_TEST'] = '1'     # nbdev: look at nothing but the notebook
    os.chdir(notebooks)
    sys.exit(readme('--check' in sys.argv) if sys.argv[1] == 'readme' else site())
