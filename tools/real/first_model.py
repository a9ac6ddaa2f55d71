"""The drawings of the page "Your first imbalanced multi-label model", as one small file:

    python tools/real/data.py clipart      downloads 2 packages of Debian (156 MB), draws and looks at them: minutes
    python tools/real/first_model.py       writes images/first_model/clipart.safetensors from that

A drawing is kept that has one of CLASSES, keywords that name what can be seen; of equal files one, with the keywords
of all. The file has `features`, (n, 128) float16: the first principal components of EfficientNet-Lite0's features;
`labels`, (n, C) uint8; `part`, (n,) uint8, the place in PARTS, where look-alikes are on one side; `pictures`, the
bytes of one WebP: all drawings in their order, COLUMNS in a row, SIDE pixels wide and high. Its metadata have, as
`about`, JSON with the names of the classes and parts, and where all this is from."""
import hashlib, io, json, sys
from argparse import ArgumentParser
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1]))
from real.data import RealSet, load
from real.parts import components, divided

CLASSES = '''animal arrow beverage bird boat book building card clock clothing dessert device dog fish flag flower food
    fruit hat house insect jigsaw mammal map moon music people plant roadsign signalflag smiley sports stickmen tool toy
    transportation tree vehicle weapon weather'''.split()
PARTS = 'train', 'valid', 'test'
SHARES = .5, .25, .25     # of the groups of look-alikes
SEED = 0                  # of that division
SIDE = 64
COLUMNS = 50
QUALITY = 50              # of the WebP: what is small is still told apart
FILE = Path(__file__).resolve().parents[2]/'images'/'first_model'/'clipart.safetensors'
COMMAND = 'python tools/real/data.py clipart && python tools/real/first_model.py'

def distinct(data:RealSet) -> tuple[Tensor, Tensor]:
    "Rows of drawings that differ and have one of the classes, and their labels (n, C): those of all equal files"
    labels = data.labels[:, [data.classes.index(name) for name in CLASSES]]
    rows = {}
    for row in labels.any(1).nonzero().flatten().tolist():
        digest = hashlib.sha256(Path(data.items[row]).read_bytes()).hexdigest()
        rows.setdefault(digest, []).append(row)
    first = torch.tensor([equal[0] for equal in rows.values()])
    return first, torch.stack([labels[equal].any(0) for equal in rows.values()])

def sheet(files:list[str]) -> Image.Image:
    "All drawings as one picture"
    lines = -(-len(files)//COLUMNS)
    canvas = Image.new('RGB', (COLUMNS*SIDE, lines*SIDE), 'white')
    for i, file in enumerate(files):
        small = Image.open(file).convert('RGB').resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        canvas.paste(small, (i%COLUMNS*SIDE, i//COLUMNS*SIDE))
    return canvas

def encoded(picture:Image.Image) -> Tensor:
    "A picture as the bytes of a WebP, (bytes,) uint8"
    file = io.BytesIO()
    picture.save(file, 'WEBP', quality=QUALITY, method=6)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

def fixed_signs(x:Tensor) -> Tensor:
    "Components, whose signs an eigensolver is free in, with their largest entry positive"
    return x*x.gather(0, x.abs().argmax(0, keepdim=True)).sign()

def tensors(data:RealSet) -> dict[str, Tensor]:
    "What the file holds, of the set clipart"
    rows, labels = distinct(data)
    part = torch.empty(len(rows), dtype=torch.uint8)
    divisions = divided(data.groups[rows], SEED, SHARES)
    for place, members in enumerate(divisions): part[members] = place
    features = fixed_signs(components(data.features[rows], divisions[0])).half()
    pictures = encoded(sheet([data.items[row] for row in rows.tolist()]))
    return dict(features=features, labels=labels.byte(), part=part, pictures=pictures)

def file_bytes(data:RealSet) -> bytes:
    "The file: the same bytes each time, for its metadata have one entry"
    from safetensors.torch import save
    about = dict(classes=CLASSES, parts=PARTS, source=data.source, licence=data.licence, command=COMMAND)
    return save(tensors(data), dict(about=json.dumps(about)))

def main():
    "Write the file, and say how large it is"
    parser = ArgumentParser(description='Write the drawings of the first model.')
    parser.add_argument('--out', type=Path, default=FILE, help='another file')
    options = parser.parse_args()
    content = file_bytes(load('clipart'))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(content)
    print(f'{options.out}: {len(content)/1e6:.2f} MB')

if __name__ == '__main__': main()
