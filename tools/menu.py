"The order of the site's pages: docs/pages.yml, checked against the notebooks that there are."
import re
from pathlib import Path
import yaml

root = Path(__file__).resolve().parents[1]
INSIDE = 'Inside: '

def stem(path):
    "The name of a notebook's page: 20_ops.checks.ipynb is ops.checks.html"
    return re.sub(r'^\d+[a-z]?_|\.ipynb$', '', Path(path).name.lower())

def groups(text=None):
    "The names of pages by the group they stand in, as docs/pages.yml lists them"
    listed = yaml.safe_load(text or (root/'docs/pages.yml').read_text(encoding='utf-8'))
    return {name: pages or [] for name, pages in listed.items()}

def group_of(page, listed):
    "The group that a page stands in"
    return next(name for name, pages in listed.items() if page in pages)

def inside(page, listed):
    "Whether a page is for those who change the code"
    return group_of(page, listed).startswith(INSIDE)

def faults(listed, notebooks):
    "What does not fit between the list and the notebooks, a line each"
    pages = [page for group in listed.values() for page in group]
    files = {stem(path): Path(path).name for path in notebooks}
    missing = [f'nbs/{name} stands in no group of the menu: add `{page}` where a reader would look, in docs/pages.yml'
        for page, name in files.items() if page not in pages]
    unknown = [f'docs/pages.yml lists `{page}`, and nbs/ has no such notebook' for page in pages if page not in files]
    often = [page for page in dict.fromkeys(pages) if pages.count(page) > 1]
    twice = [f'docs/pages.yml lists `{page}` {pages.count(page)} times' for page in often]
    return missing+unknown+twice
