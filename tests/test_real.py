"The real data's parsers, on texts of a few lines: what is downloaded is not needed here"
import bz2, sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]/'tools'))
from real import data
from real.features import as_tensor, groups, plain, square
from real.sources import characters, drawing_keywords, keyword_table, label_table
from real.sources import read_arff, read_table, read_tsv, tagged_packages

HEADER = '''@relation 'Toy: -C 2 -split-number 3'
% a remark
@attribute sea {0,1}
@ATTRIBUTE 'old town' {0,1}
@attribute red numeric
@attribute "dark \\" blue" numeric

@data
'''
DENSE = '1,0,.5,-2\n0,1,0,0\n\n1,1,1e-3,4\n0,0,0,7\n'
SPARSE = '{0 1,2 .5,3 -2}\n{1 1}\n{0 1, 1 1, 2 1e-3, 3 4}\n{3 7}\n'
TABLE = torch.tensor([[1, 0, .5, -2], [0, 1, 0, 0], [1, 1, 1e-3, 4], [0, 0, 0, 7]])

@pytest.mark.parametrize('rows', [DENSE, SPARSE])
def test_arff_is_read_dense_and_sparse(rows):
    names, values, n_labels = read_arff((HEADER + rows).splitlines())
    assert names == ['sea', 'old town', 'red', 'dark \\" blue'] and n_labels == 2
    torch.testing.assert_close(values, TABLE)

def test_a_sparse_row_may_be_all_zeros():
    assert not read_arff((HEADER + '{}\n').splitlines())[1].any()

def test_the_first_columns_of_a_table_are_its_labels(tmp_path):
    (tmp_path/'Toy.arff.bz2').write_bytes(bz2.compress((HEADER + SPARSE).encode()))
    features, labels, classes = read_table('toy', tmp_path)
    assert classes == ['sea', 'old town'] and labels.tolist() == [[1, 0], [0, 1], [1, 1], [0, 0]]
    torch.testing.assert_close(features, TABLE[:, 2:])

def test_a_table_that_nobody_has_is_refused():
    with pytest.raises(SystemExit, match='not on OpenML'): read_table('imdb')

def test_comments_are_read_with_their_quotes_and_all_labels(tmp_path):
    (tmp_path/'train.tsv').write_text('text\tlabel\tid\n"He said ""no"""\t4,27\ta\nIt\'s 5" long\t0\tb\n')
    assert read_tsv(tmp_path/'train.tsv') == [('He said "no"', [4, 27]), ('It\'s 5" long', [0])]

PACKAGES = '''Package: gimp-data
Source: gimp (2.10)
Description: Data files for GIMP
Description-md5: 12ab
Tag: role::app-data, field::arts,
 use::editing

Package: plain
Description: Has no tags

Package: gimp-data
Tag: role::other
'''
TRANSLATIONS = '''Package: gimp-data
Description-md5: 12ab
Description-en: Data files for GIMP
 Brushes and palettes.
 .
 And more.
'''

def test_packages_are_read_with_their_long_description():
    found = tagged_packages(PACKAGES.splitlines(), TRANSLATIONS.splitlines(keepends=True))
    text = 'gimp data Data files for GIMP Brushes and palettes. And more.'
    assert found == [(text, 'gimp-data', 'gimp', {'role::app-data', 'field::arts', 'use::editing'})]

def test_packages_without_a_long_description_keep_their_short_one():
    assert [text for text, *_ in tagged_packages(PACKAGES.splitlines(), [])] == ['gimp data Data files for GIMP']

ROWS = [('a.png', 'cat', {'animal', 'pet'}), ('b.png', 'cat', {'animal', 'pet'}), ('c.png', 'cow', {'animal', 'farm'}),
    ('d.png', 'car', {'wheel'})]

def test_keywords_are_counted_by_concept_and_rows_without_a_class_left_out():
    kept, labels, classes = keyword_table(ROWS, 2)      # the cat's two pictures count once: its 'pet' is no class
    assert classes == ['animal'] and [item for item, *_ in kept] == ['a.png', 'b.png', 'c.png']
    assert labels.tolist() == [[True]]*3
    kept, labels, classes = keyword_table(ROWS, 1)
    assert classes == ['animal', 'farm', 'pet', 'wheel'] and labels.sum(0).tolist() == [3, 1, 2, 1]

def test_words_that_are_no_class_are_no_label():
    assert label_table([{'pet', 'nice'}, ()], ['animal', 'pet']).tolist() == [[False, True], [False, False]]

def test_a_drawing_has_the_words_of_its_metadata():
    listed = 'Animals', 'unsorted', 'black &amp; white', '0x2a', '7', ''
    words = ''.join(f'<rdf:li>{word}</rdf:li>' for word in listed)
    svg = f'<dc:title>Cat</dc:title><dc:subject>\n<rdf:Bag>{words}</rdf:Bag></dc:subject><rdf:li>elsewhere</rdf:li>'
    assert drawing_keywords(svg) == {'animal', 'black & white'}
    assert drawing_keywords('<svg/>') == set()

def test_an_emoji_is_the_same_with_and_without_its_selector():
    assert characters('2764-FE0F') == characters('2764') == '❤'
    assert characters('1F468-200D-1F33E') != characters('1F468')

def test_a_group_has_one_key():
    b, a, again, c = groups(['b', 'a', 'b', 'c']).tolist()
    assert b == again and len({a, b, c}) == 3

def test_a_group_looks_alike_in_a_chain():
    angle = torch.tensor([0., .3, .6, 2.])                  # cosines: .955 from one to the next, .825 over two steps
    features = torch.stack([angle.cos(), angle.sin()], 1)
    features = torch.cat([features, -features])             # so that their mean is 0
    found = groups(range(8), features, .94).tolist()
    assert found[0] == found[1] == found[2] and found[4] == found[5] == found[6] and len({*found}) == 4
    assert groups(range(8), features, .96).unique().numel() == 8
    found = groups([0, 1, 2, 0, 4, 5, 6, 7], features, .94).tolist()      # a key joins, too
    assert found[0] == found[2] == found[3] and len({*found}) == 3

def test_groups_follow_cosines_around_the_mean():
    up, down, again = groups(range(3), torch.tensor([[100., 1.], [100., -1.], [100., 1.1]]), .93).tolist()
    assert up == again != down                              # seen from 0 all would be one

def test_one_text_has_one_plain_form():
    assert plain('Thank you!') == plain('thank  YOU...') == 'thank you'
    assert plain(':)') == ':)' != plain(':(')

def test_a_picture_is_a_square_on_white(tmp_path):
    Image.new('RGBA', (40, 20), (255, 0, 0, 255)).save(tmp_path/'red.png')
    values = as_tensor(square(tmp_path/'red.png', 8))
    assert values.shape == (3, 8, 8)
    torch.testing.assert_close(values[:, 4, 4], torch.tensor([1., -1, -1]))
    torch.testing.assert_close(values[:, 0, 0], torch.ones(3))

def test_a_blank_picture_is_seen(tmp_path):
    picture = Image.new('RGB', (8, 8), 'white')
    picture.save(tmp_path/'blank.png')
    picture.putpixel((3, 3), (255, 255, 200))
    picture.save(tmp_path/'dot.png')
    assert data.blank(tmp_path/'blank.png') and not data.blank(tmp_path/'dot.png')

def test_what_is_built_is_loaded(tmp_path, monkeypatch, capsys):
    (tmp_path/'Scene.arff.bz2').write_bytes(bz2.compress((HEADER + DENSE + DENSE).encode()))
    monkeypatch.setenv('ASL_REAL', str(tmp_path/'cache'))
    with pytest.raises(FileNotFoundError, match='data.py scene'): data.load('scene')
    data.build('scene', tmp_path)
    found = data.load('scene')
    assert (found.features.dtype, found.labels.dtype, found.groups.dtype) == (torch.float32, torch.bool, torch.int64)
    assert found.groups[:4].equal(found.groups[4:]) and found.groups.unique().numel() == 4
    assert found.items[7] == 'row 7' and found.second is None
    data.print_table([data.row(found)])
    assert '| scene | 8       | 4      | 2       | 50.00       | 1.00' in capsys.readouterr().out
