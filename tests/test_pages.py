"The order of the site's pages, their papers, what is folded, and how the project is cited: what needs no browser."
import sys
from pathlib import Path

import pytest, yaml

root = Path(__file__).parents[1]
sys.path.insert(0, str(root/'tools'))
menu = pytest.importorskip('menu')
notebooks = sorted(path.name for path in (root/'nbs').glob('*.ipynb'))

def test_each_page_stands_in_one_group():
    assert menu.faults(menu.groups(), notebooks) == []

def test_a_page_that_no_group_names_is_told_with_what_to_do():
    said = menu.faults(menu.groups(), [*notebooks, '99_new.ipynb'])
    assert said == ['nbs/99_new.ipynb stands in no group of the menu: '
        'add `new` where a reader would look, in docs/pages.yml']

def test_a_name_without_a_page_and_a_page_in_two_groups_are_told():
    listed = menu.groups() | dict(More=['loss', 'nowhere'])
    assert menu.faults(listed, notebooks) == [
        'docs/pages.yml lists `nowhere`, and nbs/ has no such notebook', 'docs/pages.yml lists `loss` 2 times']

def test_the_groups_go_from_the_start_to_the_inside():
    names = list(menu.groups())
    assert names[:3] == ['Start', 'Learn', 'Use'] and all(name.startswith(menu.INSIDE) for name in names[3:])

def test_pages_that_readers_know_keep_their_addresses():
    pages = {page for group in menu.groups().values() for page in group}
    assert {'index', 'loss', 'asymmetric_loss', 'posterior', 'train', 'compare', 'calibration'} <= pages

def test_the_citation_is_of_this_version_and_of_both_records_of_the_paper():
    from configparser import ConfigParser
    ini = ConfigParser(delimiters=['='])
    ini.read(root/'settings.ini', encoding='utf-8')
    cited = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert str(cited['version']) == ini['DEFAULT']['version'] and cited['repository-code'] == ini['DEFAULT']['git_url']
    first = [record['authors'][0]['family-names'] for record in cited['references']]
    assert first == ['Ben-Baruch', 'Ridnik'] and [record['year'] for record in cited['references']] == [2020, 2021]
    assert all(len(record['authors']) == 7 for record in cited['references'])

@pytest.fixture
def convert():
    pytest.importorskip('nbdev')
    from importlib import import_module
    return import_module('convert')

def test_a_page_lists_the_papers_that_it_links_to_once_each(convert):
    text = 'See [ASL](https://arxiv.org/abs/2009.14119), [it](https://arxiv.org/abs/2009.14119) and <https://arxiv.org/abs/1708.02002>.'
    listed = convert.references([text], 'a page').splitlines()
    assert listed[0] == '## References' and ['Ben-Baruch' in line for line in listed[2:]] == [True, False]
    assert convert.references(['no paper'], 'a page') == ''

def test_a_paper_that_nobody_described_stops_the_build(convert):
    with pytest.raises(SystemExit, match=r'x\.ipynb links to 0000\.00000: say in docs/references\.yml'):
        convert.references(['https://arxiv.org/abs/0000.00000'], 'x.ipynb')

def test_a_figure_without_words_stops_the_build(convert):
    import nbformat
    cell = nbformat.v4.new_code_cell('plot()', outputs=[nbformat.v4.new_output('display_data', {'image/png': ''})])
    with pytest.raises(SystemExit, match='a figure without words'): convert.figure(cell, {}, 'x.ipynb')

def folded(convert, source, tags=(), option=(), picture=False):
    "What stands on the fold of a cell; None where it is open"
    import nbformat
    outputs = [nbformat.v4.new_output('display_data', {'image/png': ''})] if picture else []
    cell = nbformat.v4.new_code_cell(source, outputs=outputs, metadata=dict(tags=list(tags), mystnb={}))
    convert.fold(cell, dict(option))
    assert ('hide-input' in cell.metadata.tags) == ('code_prompt_show' in cell.metadata.mystnb)
    return cell.metadata.mystnb.get('code_prompt_show')

def test_what_a_reader_can_do_without_is_folded_and_called_by_name(convert):
    source = 'A = 1\n\ndef f(x): return x\n\nclass B: pass'
    assert folded(convert, source, ['source']) == 'Source of A, f, B'
    assert folded(convert, 'x = 1\n'*5, picture=True) == 'Code of this picture'
    assert folded(convert, 'x = 1\n'*5+'assert x') == 'Test'
    assert folded(convert, 'x = 1', option={'code-fold': 'true'}) == 'Code'

def test_short_examples_stay_open(convert):
    assert folded(convert, 'loss(x, y)') is None and folded(convert, 'assert loss(x, y) > 0') is None
    assert folded(convert, 'plot(x)', picture=True) is None

def test_each_answer_that_is_folded_ends_before_the_next_question():
    import json
    for name in notebooks:
        cells = json.loads((root/'nbs'/name).read_text(encoding='utf-8'))['cells']
        opened = False
        for cell in cells:
            text = ''.join(cell['source']) if cell['cell_type'] == 'markdown' else ''
            if text.startswith('#'): assert not opened, f'{name}: an answer reaches into another section'
            for tag in ('<details', '</details>'):
                if text.startswith(tag): opened = tag == '<details'
        assert not opened, f'{name}: an answer has no end'

def headings(page):
    "The headings of a notebook, in lower case"
    import json
    cells = json.loads((root/'nbs'/page).read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'markdown')
    return [line.lstrip('# ').lower() for line in text.splitlines() if line.startswith('#')]

def test_the_glossary_has_each_word_in_order():
    words = headings('18a_glossary.ipynb')[1:-2]
    assert words == sorted(words)
    assert {'score', 'logit', 'prior', 'posterior', 'link', 'margin', 'easy and hard', 'active', 'pull', 'detached',
        'map', 'of1', 'cf1', 'ece', 'reliability diagram', 'micro and macro', 'class imbalance', 'long-tailed',
        'missing labels', 'threshold', 'pos_weight', 'nan', 'citation'} <= {*words}

def test_the_print_style_of_the_cheat_sheet_finds_its_headings(convert):
    style = (root/'docs/static/site.css').read_text(encoding='utf-8')
    slugs = [convert.slug(title).replace(':', '') for title in headings('18b_cheat_sheet.ipynb')]
    assert f'#{slugs[0]} {{ zoom' in style and '#the-sheet-tested { break-before: page }' in style
    assert 'the-sheet-tested' in slugs
