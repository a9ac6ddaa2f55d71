"""The documentation without Quarto. `python tools/nbsite.py site` builds `_docs`: the notebooks as nbdev processes
them, in the Markdown of MyST, through Sphinx. `python tools/nbsite.py readme [--check]` writes README.md from
nbs/index.ipynb, or fails when it is stale."""
import os, re, shutil, subprocess, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter
from nbdev.doclinks import NbdevLookup, nbglob
import menu, preview
from convert import cfg, convert, host, outside_code
from menu import stem

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

def contents(name, entries):
    "A part of the menu, as a cell of the first page"
    listed = '\n'.join(entries)
    return nbformat.v4.new_markdown_cell(f'```{{toctree}}\n:hidden:\n:caption: "{name}"\n\n{listed}\n```')

def entry(page, nb):
    "A page as the menu calls it"
    return 'Overview <self>' if page == stem(cfg.readme_nb) else f'{nb.metadata.menu} <{page}>'

def site():
    "Build the site; any warning of Sphinx is an error"
    if cfg.lib_path.name not in NbdevLookup().entries:
        sys.exit('asl is not installed, so no name would be linked: pip install -e .')
    groups = menu.groups()
    notebook_files = sorted(nbglob(as_path=True))
    faults = menu.faults(groups, notebook_files)
    if faults: sys.exit('\n'.join(faults))
    source = root/'_site_src'
    for folder in (source, built): shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(root/'docs', source)
    shutil.copytree(root/'images', source/'images')
    preview.draw(source/'static/preview.png', cfg.title, cfg.description)
    pages = {stem(path): convert(path) for path in notebook_files}
    for name, listed in groups.items():
        pages['index'].cells.append(contents(name, [entry(page, pages[page]) for page in listed]))
    for page, nb in pages.items(): nbformat.write(nb, source/f'{page}.ipynb')
    sphinx = [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-b', 'html', str(source), str(built)]
    code = subprocess.run(sphinx, env={**os.environ, 'PYTHONPATH': str(root/'tools')}).returncode
    if code: return code
    plain_pages(groups, {stem(path): path for path in notebook_files})
    (built/'notebooks').mkdir()
    for path in notebook_files: shutil.copy(path, built/'notebooks')
    return 0

def plain_pages(groups, files):
    "Each page as Markdown beside its HTML, and llms.txt, their list"
    lines = [f'# {cfg.title}', '', f'> {cfg.description}']
    for group, pages in groups.items():
        lines += ['', f'## {group}', '']
        for name in pages:
            nb = convert(files[name], plain=True)
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
