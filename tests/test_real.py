"The real data's parsers, on texts of a few lines, and the judgement, on numbers by hand: no download is needed here"
import bz2, copy, json, sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.append(str(Path(__file__).parents[1]/'tools'))
from real import data, picture
from real.features import as_tensor, groups, plain, square
from real.judge import VALID, critical_difference, friedman, mean_ranks, over_seeds, over_sets
from real.record import Record, both, by_block, by_set, overall
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
    data.write_table([data.row(found)], tmp_path/'sets.json')
    assert json.loads((tmp_path/'sets.json').read_text())[0]['positive, %'] == '50.00'

def test_what_a_second_vocabulary_misses_is_counted():
    labels = torch.tensor([[1, 0, 1], [1, 0, 0]]).bool()
    found = data.RealSet('toy', torch.zeros(2, 1), labels, torch.arange(2), ['a', 'b', 'c'], '', '', [])
    assert data.written(found) == ''
    second = torch.tensor([[1, 1, 0], [1, 1, 1]]).bool()                # the last class is rare there, and not counted
    assert data.written(found._replace(second=second, in_second=torch.tensor([True, True, False]))) == '50'

# The judgement

def test_an_interval_over_seeds_knows_that_parts_overlap():
    found = over_seeds([1., 2, 3])                                      # s = 1, t = 4.3027 with 2 degrees of freedom
    assert found.mean == 2 and found.n == 3
    assert found.half == pytest.approx(4.3027*(1/3 + 25/60)**.5, rel=1e-4)
    assert over_seeds([1., 2, 3], VALID).half == pytest.approx(4.3027*(1/3 + 15/60)**.5, rel=1e-4)
    ten = over_seeds([0.]*5 + [1.]*5)                                   # 2.3 times as wide as if they did not
    assert ten.half/over_sets([0.]*5 + [1.]*5).half == pytest.approx((1 + 10*25/60)**.5)

@pytest.mark.parametrize('differences, word', [
    ([1., 1.1, .9, 1.], 'leads'), ([-1., -1.1, -.9, -1.], 'behind'), ([1., -1.1, .9, -1.], 'no difference seen')])
@pytest.mark.parametrize('judged', [over_seeds, over_sets])
def test_a_judgement_can_come_out_all_three_ways(judged, differences, word):
    assert judged(differences).word == word

def test_what_may_be_there_unseen_is_the_far_end_of_the_interval():
    found = over_sets([-1., 0, 2.5])
    assert found.word == 'no difference seen' and found.hidden == found.high > abs(found.low)
    assert found.half == pytest.approx(4.3027*np.std([-1, 0, 2.5], ddof=1)/3**.5, rel=1e-4)

def test_what_could_have_been_seen_is_by_hand():
    assert over_sets([0., 1, 2]).visible == pytest.approx(over_sets([0., 1, 2]).half*(1 + 1.0607/4.3027), rel=1e-4)

@pytest.mark.parametrize('judged', [over_seeds, over_sets])
def test_of_one_value_nothing_is_said(judged):
    assert judged([5.]).word == 'no difference seen' and judged([5.]).hidden == float('inf')

def test_ranks_are_shared_by_equals():
    assert mean_ranks([[3, 1, 2], [5, 5, 1]]).tolist() == [1.25, 2.25, 2.5]

def test_the_critical_difference_is_that_of_the_paper():
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=.005)   # Demsar 2006, 3.2.4: 4 learners, 14 sets

def test_friedmans_test_is_that_of_the_paper():
    ranks = [3.143, 2., 2.893, 1.964]                                   # the same: F = 3.69 with 3 and 39 degrees
    assert friedman(ranks, 14) == pytest.approx(.0197, abs=5e-4)
    assert friedman([2., 2, 2], 5) == 1 and friedman([1., 2, 3], 5) == 0

@pytest.fixture
def record(tmp_path):
    "Two sets, two ways, two seeds: b is 1 better than a in x, 3 in y; of y there is one way"
    cells = []
    for loss, more in (('a', 0), ('b', 1)):
        for name, way, times in (('x', 'linear', 1), ('x', 'mlp', 1), ('y', 'mlp', 3)):
            maps = [50.+more*times, 60.+more*times]
            cells.append(dict(set=name, way=way, labels='all', length=1., loss=loss, rate=.002, edge=False,
                test=dict(mAP=maps, ECE=[9., 9.]), valid={'0.001': [40., 40.], '0.002': maps}, curve=[[1, 2], [1, 2]]))
    (tmp_path/'r.json').write_text(json.dumps(dict(machines=[], command='', cells=cells)))
    return Record(tmp_path/'r.json')

def test_differences_are_paired_by_seed_and_averaged_by_set(record):
    lead = record.less('b', 'a')
    blocks = by_block(lead, ['x', 'y', 'z'])
    means = {block: found.mean for block, found in blocks.items()}
    assert means == {('x', 'linear'): 1, ('x', 'mlp'): 1, ('y', 'mlp'): 3}
    assert {found.word for found in blocks.values()} == {'leads'}       # by the same in each seed
    assert by_set(lead, ['x', 'y', 'z']) == dict(x=1, y=3)
    assert overall(lead, ['x', 'y', 'z'])[::2] == (2, 2) and overall(lead, ['z']) is None
    assert overall(record.less('a', 'b'), ['x', 'y']).mean == -2

def test_one_block_may_come_from_another_record(record):
    again = copy.copy(record)
    turned = {'a': 'b', 'b': 'a'}
    again.cells = {(*which, turned[loss]): cell for (*which, loss), cell in record.cells.items()
        if which[:2] == ['x', 'mlp']}
    assert by_set((record | again).less('b', 'a'), ['x', 'y']) == dict(x=0, y=3)               # x: 1 and -1
    assert by_set(record.less('b', 'a'), ['x', 'y']) == dict(x=1, y=3)

def test_a_verdict_in_words():
    found = over_sets([0., 1, 2])
    assert str(found) == '+1.0 (-1.5 to +3.5)' and found.ends(2) == '-1.48 to +3.48'

def test_what_was_not_run_is_none(record):
    assert record.less('b', 'c')(('x', 'mlp')) is None and record.less('b', 'a', labels='kept 25')(('x', 'mlp')) is None
    assert record.at_rate(.004, ('x', 'mlp'), 'a') is None and record.rates(('z', 'mlp'), 'a') == []

def test_rates_are_found_by_their_factor(record):
    assert record.drop('b', .5)(('y', 'mlp')).tolist() == [13, 23] and record.drop('b', 2)(('y', 'mlp')) is None
    assert both(record.drop('b', .5), record.drop('a', .5))(('y', 'mlp')).tolist() == [3, 3]
    assert record.less_at_rate('b', 'a', lambda _: .001)(('x', 'mlp')).tolist() == [0, 0]
    assert record.less_at_rate('b', 'a', lambda _: None)(('x', 'mlp')) is None

def test_the_picture_is_drawn_of_whatever_was_run(record):
    record.cells |= {(*key[:-1], {'a': 'BCE + prior', 'b': 'ASL + prior'}[key[-1]]): cell
        for key, cell in record.cells.items()}
    for cell in record.cells.values(): cell['test'] |= dict(ECE_sure=[20., 20.], ECE_sure_posterior=[2., 2.])
    picture.summary(record, ['x', 'y', 'z'], picture.names(dict(x=12.34, y=1.234, z=.5), 'xyz'))
    left, right = picture.plt.gcf().axes
    assert [text.get_text() for text in left.get_yticklabels()][:3] == ['x, 12%', 'y, 1.2%', 'z, 0.5%']
    assert len(left.containers) == 3 + 2 + 1                            # what was run, each way, all
    assert [text.get_text() for text in right.get_xticklabels()] == ['3', '10']
    picture.plt.close('all')
