"The drawings of the page on a first model: small, and what the tool makes of the set where that is at hand"
import io, json, sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open

root = Path(__file__).parents[1]
sys.path.append(str(root/'tools'))
from real.data import RealSet, load
from real.first_model import CLASSES, COLUMNS, FILE, PARTS, SIDE, distinct, file_bytes, fixed_signs, sheet

def contents(source):
    "Tensors, and what is said about them"
    with safe_open(source, 'pt') as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()['about'])

def drawings(data):
    "All small pictures as one array of numbers"
    picture = Image.open(io.BytesIO(data['pictures'].numpy().tobytes())).convert('RGB')
    return torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(picture.height, picture.width, 3)

def test_the_file_is_small_and_whole():
    data, about = contents(FILE)
    n = len(data['part'])
    assert FILE.stat().st_size < 2e6
    assert data['features'].shape == (n, 128) and data['features'].isfinite().all()
    assert data['labels'].shape == (n, len(CLASSES)) and about['classes'] == CLASSES
    assert drawings(data).shape == (-(-n//COLUMNS)*SIDE, COLUMNS*SIDE, 3)
    assert data['labels'].any(1).all(), 'a drawing without a label'
    for place, part in enumerate(PARTS):
        assert data['labels'][data['part'] == place].any(0).all(), f'a class without a drawing in {part}'

def test_it_is_what_the_tool_makes(tmp_path):
    try: found = load('clipart')
    except FileNotFoundError: pytest.skip('python tools/real/data.py clipart was not run')
    (tmp_path/'new').write_bytes(file_bytes(found))
    (old, about), (new, about_new) = contents(FILE), contents(tmp_path/'new')
    assert about == about_new
    for name in ('labels', 'part'): assert torch.equal(old[name], new[name])
    torch.testing.assert_close(old['features'], new['features'], atol=.02, rtol=.01)  # another CPU rounds otherwise
    assert (drawings(old).float()-drawings(new).float()).abs().mean() < 2             # another WebP, too

def small_set(folder):
    "Five drawings: a dog twice as equal files with other keywords, a tree, what shows none of the classes, a fish"
    colours = 'red', 'red', 'green', 'blue', 'white'
    for i, colour in enumerate(colours): Image.new('RGB', (128, 128), colour).save(folder/f'{i}.png')
    classes = [*CLASSES, 'icon']
    labels = torch.zeros(5, len(classes), dtype=torch.bool)
    for i, names in enumerate((['dog'], ['animal', 'icon'], ['tree'], ['icon'], ['fish'])):
        labels[i, [classes.index(name) for name in names]] = True
    files = [str(folder/f'{i}.png') for i in range(5)]
    return RealSet('toy', torch.randn(5, 3), labels, torch.arange(5), classes, '', '', files)

def test_equal_files_are_one_drawing_with_the_keywords_of_all(tmp_path):
    rows, labels = distinct(small_set(tmp_path))
    named = [[CLASSES[c] for c in line.nonzero().flatten()] for line in labels]
    assert rows.tolist() == [0, 2, 4] and named == [['animal', 'dog'], ['tree'], ['fish']]

def test_drawings_stand_in_their_order_from_left_to_right(tmp_path):
    picture = sheet(small_set(tmp_path).items)
    assert picture.size == (COLUMNS*SIDE, SIDE)
    assert [picture.getpixel((i*SIDE + 9, 9)) for i in range(4)] == [(255, 0, 0), (255, 0, 0), (0, 128, 0), (0, 0, 255)]

def test_components_have_one_sign_whatever_an_eigensolver_says():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fixed_signs(x), fixed_signs(-x))
    assert (fixed_signs(x).abs() == x.abs()).all()
