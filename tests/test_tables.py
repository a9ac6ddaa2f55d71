"Tables as people have them: what pandas, Excel, databases and released data sets write: read as meant, or refused."
import io, json, os, threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
from PIL import Image

from asl.cli import Refused
from asl.training.images import read_images, split
from asl.training.labels import described, mark, read_csv
from asl.training.score import score
from asl.training.table import joined, names_in, read_table, table_of

@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('img').mkdir()
    return tmp_path

def csv(text, **kw):
    Path('l.csv').write_text(text)
    return read_csv('l.csv', 'img', **kw)[0]

def labels(data): return [[c for c, y in zip(data.classes, row) if y == 1] for row in data.targets]

def refusal(f, *args, **kw):
    with pytest.raises(Refused) as e: f(*args, **kw)
    assert '\n' not in str(e.value)
    return str(e.value)

def asl_train(*argv):
    "What `asl_train` prints; for a refused call its line"
    from asl.train import main
    quick = ['--model', 'conv3', '--size', 16, '--epochs', 1, '--batch_size', 8, '--threads', 1, '--workers', 0]
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(out):
        try: main([str(a) for a in (*argv, *quick)])
        except SystemExit as e: assert e.code == 2
    return out.getvalue()

def pictures(names):
    for i, name in enumerate(names):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (16, 16), f'hsl({7*i}, 80%, 50%)').save(name)

# spaces

def test_a_space_never_divides():
    data = csv('file,labels\na.jpg,traffic light\nb.jpg,not nurse\nc.jpg,nurse\n')
    assert labels(data) == [['traffic light'], ['not nurse'], ['nurse']]
    assert "--separator ' '" in ' '.join(described(data))
    assert labels(csv('file,labels\na.jpg,cat dog\n', separator=' ')) == [['cat', 'dog']]
    assert labels(csv('file,labels\na.jpg,traffic light|not nurse\n')) == [['not nurse', 'traffic light']]

def test_what_is_printed_before_training():
    data = csv('file,tags\na.jpg,cat;dog;owl\nb.jpg,dog\nc.jpg,\nd.jpg,dog;cat\n')
    assert described(data) == ["labels: in the column 'tags', divided by ';'", 'labels per image: 0 to 3, median 1.5',
                               'classes: cat, dog, owl']
    data = csv('file,cat,dog\na.jpg,1,0\nb.jpg,,0\n')
    unknown, always, classes = described(data)
    assert unknown == 'labels per image: 0 to 1, median 0.5; 25% of all marks are unknown'
    assert 'to be without cat:' in always and classes == 'classes: cat, dog'
    pictures(f'img/{i}.png' for i in range(20))
    Path('l.csv').write_text('file,tags\n' + ''.join(f'{i}.png,{"a b" if i%2 else "c"}\n' for i in range(20)))
    out = asl_train('l.csv', '--images', 'img')
    assert out.index('one in each cell') < out.index('labels per image: 1 to 1') < out.index('classes: a b, c')
    assert out.index('classes: a b, c') < out.index('2 classes; 16 images') < out.index('epoch   1/1')

# files as released

CHEXPERT = ('Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,'
            'Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,'
            'Fracture,Support Devices')
CHEXPERT_ROWS = ('Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0',
                 'Male,87,Frontal,AP,,,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,',
                 'Unknown,0,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,')
NO_CLASSES = 'Sex,Age,Frontal/Lateral,AP/PA'

def chexpert(n=3, name='train.csv'):
    paths = [f'CheXpert-v1.0-small/{name[:-4]}/patient{i:05}/study1/view1_frontal.jpg' for i in range(1, n+1)]
    Path(name).write_text('\n'.join([CHEXPERT, *(f'{p},{CHEXPERT_ROWS[i%3]}' for i, p in enumerate(paths))]))
    return paths

def test_chexpert_as_released():
    chexpert()
    said = refusal(read_csv, 'train.csv')
    assert said.startswith("train.csv, row 2, column Sex: 'Female' is not")
    assert f'--ignore_columns {NO_CLASSES} ' in said
    data, _ = read_csv('train.csv', ignore_columns=NO_CLASSES.split(','))
    assert data.classes == CHEXPERT.split(',')[5:] and data.targets.shape == (3, 14)
    assert labels(data) == [['No Finding', 'Support Devices'], *[['Lung Opacity', 'Fracture']]*2]
    assert data.targets[1].tolist() == [-100, -100, -100, 1, -100, -100, -100, -100, -100, -100, -100, -100, 1, -100]
    assert data.targets[:][0, 9] == 0
    some, _ = read_csv('train.csv', label_columns=['Fracture', 'Pneumothorax'])
    assert some.classes == ['Fracture', 'Pneumothorax']
    assert torch.equal(some.targets[:], data.targets[:][:, [12, 9]])

def test_chexpert_trains_and_validates_on_its_own_second_file():
    pictures(chexpert(12))
    lines = [CHEXPERT]
    for i in range(4):
        pictures([f'CheXpert-v1.0-small/valid/patient{i}.jpg'])
        lines.append(f'CheXpert-v1.0-small/valid/patient{i}.jpg,Male,73,Frontal,AP' + ',0.0'*13 + ',1.0')
    Path('valid.csv').write_text('\n'.join(lines))
    wanted = 'Support Devices,Pneumothorax'
    out = asl_train('train.csv', '--label_columns', wanted, '--valid', './valid.csv')
    assert '2 classes; 12 images to train on, 4 to validate' in out, out
    assert 'classes: Support Devices, Pneumothorax' in out and 'marks are unknown' in out
    settings = json.loads(next(Path('runs').glob('*/settings.json')).read_text())
    assert settings['label_columns'] == wanted

NIH = ('Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,'
       'OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],')
NIH_ROWS = ('Cardiomegaly,0,1,58,M,PA,2682,2749,0.143,0.143,',
            'Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.143,0.143,',
            'No Finding,0,2,81,M,PA,2500,2048,0.171,0.171,')

def test_nih_chest_xray_as_released():
    names = [f'{i:08}_000.png' for i in range(15)]
    pictures([f'img/{name}' for name in names])
    Path('Data_Entry_2017.csv').write_text('\n'.join([NIH, *(f'{n},{NIH_ROWS[i%3]}' for i, n in enumerate(names))]))
    data, _ = read_csv('Data_Entry_2017.csv', 'img', labels='Finding Labels')
    assert labels(data)[:3] == [['Cardiomegaly'], ['Cardiomegaly', 'Emphysema'], ['No Finding']]
    out = asl_train('Data_Entry_2017.csv', '--images', 'img', '--label_column', 'Finding Labels')
    assert "divided by '|'" in out and '3 classes; 12 images' in out
    said = asl_train('Data_Entry_2017.csv', '--images', 'img')
    assert "column Finding Labels: 'Cardiomegaly' is not" in said and '--label_column' in said

# marks

@pytest.mark.parametrize('cell, value', [
    *((cell, 1) for cell in ('1', '1.0', '1.00', '1,0', 'True', 'TRUE', 'true', 'yes', 'Yes', 'x', 'X', '1e0', '+1')),
    *((cell, 0) for cell in ('0', '0.0', '0.00', '0,0', 'False', 'FALSE', 'no', '-0')),
    *((cell, -100) for cell in ('', 'NaN', 'nan', 'NA', 'N/A', 'None', 'null', '<NA>', '-1', '-1.0', '-1,0')),
    ('0.3', .3), ('0,3', .3), ('.5', .5),
    *((cell, None) for cell in ('2', '-2', '1.5', 'cat', 'inf', '1_0', '1,0,0', '50%', 'maybe', 't', '?', '-', '٣'))])
def test_marks_mean_what_they_plainly_mean(cell, value): assert mark(cell) == value

def test_other_cells_are_refused_by_name_and_without_a_wrong_cure():
    rows = ''.join(f'{i}.jpg,1,0\n' for i in range(5))
    said = refusal(csv, f'file,a,b\n{rows}x.jpg,1,2\n')
    assert said.startswith("l.csv, row 7, column b: '2' is not 0, 1 or empty") and '--' not in said
    said = refusal(csv, 'file,a,age\nx.jpg,1,70\ny.jpg,0,\n')
    assert '--ignore_columns age ' in said and '--label_column' not in said
    said = refusal(csv, 'file,a,"age, years",sex\nx.jpg,1,70,f\n', ignore_columns=['sex'])
    assert """--ignore_columns 'sex,"age, years"' """ in said
    assert names_in('sex,"age, years"') == ['sex', 'age, years']
    assert '--ignore' not in refusal(csv, 'file,a,age\nx.jpg,1,70\n', label_columns=['a', 'age'])
    assert "no column 'dog'" in refusal(csv, 'file,a,b\nx.jpg,1,0\n', label_columns=['a', 'dog'])
    assert "no column 'dog'" in refusal(csv, 'file,a,b\nx.jpg,1,0\n', ignore_columns=['dog'])
    assert 'cannot hold two things' in refusal(csv, 'file,a,b\nx.jpg,1,0\n', label_columns=['a', 'file'])
    assert 'said already' in refusal(csv, 'file,a,b\nx.jpg,1,0\n', labels='a', label_columns=['b'])
    assert 'write 0' in refusal(csv, 'file,a,b\nx.jpg,1,-1\ny.jpg,,1\n')

def test_what_x_leaves_empty_is_not_there():
    data = csv('file,a,b\nx.jpg,x,\ny.jpg,,X\n')
    assert data.targets.tolist() == [[1, 0], [0, 1]] and 'empty cell' in described(data)[0]
    assert csv('file,a,b\nx.jpg,x,0\ny.jpg,,x\n').targets.tolist() == [[1, 0], [-100, 1]]

@pytest.mark.parametrize('cells, targets', [(('True', 'False', 'True'), [1, 0, 1]), (('-1', '0', '1'), [-100, 0, 1]),
    (('1.0', '0.0', 'NaN'), [1, 0, -100]), (('yes', 'no', ''), [1, 0, -100]), (('0.25', '1', '0'), [.25, 1, 0])])
def test_a_lone_column_of_marks_is_a_class(cells, targets):
    data = csv('file,defect\n' + ''.join(f'{i}.jpg,{cell}\n' for i, cell in enumerate(cells)))
    assert data.classes == ['defect'] and data.targets[:].flatten().tolist() == targets

def test_soft_labels_train_and_are_judged_as_decisions():
    pictures(f'img/{i}.png' for i in range(20))
    rows = ''.join(f'{i}.png,{(.9, .1)[i%2]},{(.2, "0,7")[i%2]}\n'.replace('0,7', '"0,7"') for i in range(20))
    data = csv('file,a,b\n' + rows)
    assert data.targets[0].tolist() == pytest.approx([.9, .2]) and data.targets[:][1, 1] == pytest.approx(.7)
    _, valid = split(data, .4)
    assert (valid.targets[:] >= .5).sum(0).tolist() == [4, 4]      # a half and more counts as there, and is stratified
    logits = torch.randn(20, 2)
    known = score(logits, (data.targets[:] >= .5).float())
    assert score(logits, data.targets[:])[0] == known[0]
    out = asl_train('l.csv', '--images', 'img')
    assert 'labels per image: 1 to 1' in out and 'calibration error' in out

# lists

@pytest.mark.parametrize('cell', ["['cat', 'dog']", '["cat", "dog"]', "['cat' 'dog']", "['cat'\n 'dog']",
    '["cat","dog"]',
    """["cat", 'dog']""", '[cat, dog]', "['dog', 'cat', 'cat', '']"])
def test_lists_are_read_as_lists(cell):
    quoted = cell.replace('"', '""')
    data = csv(f'file,labels\na.jpg,"{quoted}"\nb.jpg,[]\nc.jpg,\n')
    assert labels(data) == [['cat', 'dog'], [], []]

def test_names_in_lists_keep_what_they_contain():
    data = csv('file,labels\na.jpg,"[""dog\'s"", \'a, b\', \'it\\\'s\']"\nb.jpg,"[""caf\\u00e9""]"\n')
    assert data.classes == ['a, b', 'café', "dog's", "it's"]
    assert labels(csv('file,labels\na.jpg,"[3, 14]"\nb.jpg,[14]\n')) == [['14', '3'], ['14']]
    assert labels(csv('file,labels\na.jpg,[sic]\nb.jpg,cat\n')) == [['[sic]'], ['cat']]

@pytest.mark.parametrize('text, says', [
    ("a.jpg,['cat']\nb.jpg,dog\n", "row 3, column labels: 'dog' is no list"),
    ("a.jpg,['cat' ... 'dog']\nb.jpg,[]\n", 'is no list of names'),
    ('a.jpg,"[{""name"": ""cat""}]"\n', 'is no list of names'), ('a.jpg,"[0.1, 0.9]"\n', 'is no list of names'),
    ('a.jpg,"[0, 1, 0]"\nb.jpg,"[1, 0, 0]"\n', 'do not name the classes'),
    ("a.jpg,['cat'\n", "labels: 'x'"), ('a.jpg,cat\nb.jpg,nan\n', "'nan' is no label"),
    ("a.jpg,['cat']\n", '--separator')])
def test_lists_that_are_none(text, says):
    if says.startswith('labels'):
        assert labels(csv('file,labels\n' + text)) == [["['cat'"]]     # half a list is a name, and is printed
        return
    kw = dict(separator=',') if says == '--separator' else {}
    assert says in refusal(csv, 'file,labels\n' + text, labels='labels', **kw)

# one row for each image and label

def test_rows_of_one_image_are_taken_together():
    text = 'file,label,part\na.jpg,cat,train\nb.jpg,dog,valid\nx/../a.jpg,dog,train\na.jpg,cat,train\nc.jpg,,train\n'
    Path('l.csv').write_text(text)
    data, in_valid = read_csv('l.csv', 'img', labels='label', valid='part')
    assert [f.name for f in data.files] == ['a.jpg', 'b.jpg', 'c.jpg']
    assert labels(data) == [['cat', 'dog'], ['dog'], []] and in_valid.tolist() == [False, True, False]
    assert data.where == ['l.csv, row 2', 'l.csv, row 3', 'l.csv, row 6']
    assert '5 rows of 3 images, taken together' in described(data)
    said = refusal(csv, text + 'b.jpg,cat,train\n', labels='label', valid='part')
    assert said.startswith('l.csv, row 7: the same image as in row 3')
    assert 'already in row 2' in refusal(csv, 'file,cat,dog\na.jpg,1,0\na.jpg,0,1\n')

# headers, indices, delimiters

def test_no_header_is_told_and_never_guessed():
    text = 'a.jpg,cat\nb.jpg,dog\n'
    assert '--no_header' in refusal(csv, text)
    assert labels(csv(text, no_header=True)) == [['cat'], ['dog']]
    data = csv('1,a.jpg,cat\n2,b.jpg,dog\n', no_header=True, files='2', labels='3')
    assert labels(data) == [['cat'], ['dog']]
    Path('l.csv').write_text('a.jpg,cat,0\nb.jpg,cat,1\n')
    train, valid = read_images('l.csv', 'img', '3', no_header=True)
    assert labels(train) == labels(valid) == [['cat']]
    pictures(['img/a.jpg'])
    assert 'names the image a.jpg' in refusal(csv, 'a,cat\nb,dog\n', suffix='.jpg')
    assert 'names an image' in refusal(csv, 'cat,a.jpg\ndog,b.jpg\n', files='a.jpg')

@pytest.mark.parametrize('name', ['', 'Unnamed: 0'])
def test_the_index_of_pandas_is_no_class(name):
    for index in ((0, 1), (5, 9), (0, 0)):
        text = f'{name},file,cat,dog\n{index[0]},a.jpg,1,0\n{index[1]},b.jpg,0,1\n'
        data = csv(text)
        assert data.classes == ['cat', 'dog'] and [f.name for f in data.files] == ['a.jpg', 'b.jpg']
        assert 'index' in described(data)[0]
    assert csv(f'file,cat,{name}\na.jpg,1,0\nb.jpg,0,1\n').classes == ['cat']
    if not name: assert 'column 1 has no name; give it one' in refusal(csv, ',cat,dog\na.jpg,1,0\n')

def test_the_delimiter_splits_all_rows_alike():
    assert csv('name, file;cat;dog\na.jpg;1,0;0,0\nb.jpg;0,0;1,0\n').targets.tolist() == [[1, 0], [0, 1]]
    assert csv('file,cat;dog,owl\na.jpg,1,0\nb.jpg,0,1\n').classes == ['cat;dog', 'owl']
    assert labels(csv('file\ttags, all\na.jpg\tcat\nb.jpg\tdog, cat\n')) == [['cat'], ['cat', 'dog']]
    assert labels(csv('file|tags\na.jpg|cat;dog\n')) == [['cat', 'dog']]
    assert "',' or ';'" in refusal(csv, 'a.jpg;1,0\nb.jpg;0,1\n', no_header=True)
    assert csv('sep=;\na.jpg;1,0\nb.jpg;0,0\n', no_header=True).targets.tolist() == [[1], [0]]
    assert 'row 3: too few cells' in refusal(csv, 'file;a;b\na.jpg;1;0\nb.jpg;1\n')

def test_lines_that_say_nothing_are_skipped():
    data = csv('# exported, by "hand\n#\nfile,labels\na.jpg,"two\n# lines"\n#b.jpg,dog\n# c\n')
    assert data.where == ['l.csv, row 4', 'l.csv, row 6']       # rows are lines of the file, and #b.jpg is an image
    assert labels(data) == [['two\n# lines'], ['dog']] and data.files[1].name == '#b.jpg'
    assert '3 lines that begin with #' in described(data)[0]
    for line in ('sep=;\n', '"sep=;"\r\n', 'SEP=;\n'):
        assert labels(csv(line + 'file;labels\na.jpg;x,y\n')) == [['x', 'y']]

def test_a_comma_at_the_end_is_no_column():
    for text in ('file,a,\nx.jpg,1,\ny.jpg,0,\n', 'file,a\nx.jpg,1,\ny.jpg,0,\n', 'file,a,\nx.jpg,1\ny.jpg,0\n'):
        assert csv(text).classes == ['a']
    assert 'too many cells' in refusal(csv, 'file,a\nx.jpg,1,\ny.jpg,0\n')

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_a_file_is_read_once_so_it_can_be_a_pipe():
    pictures(f'img/{c}.jpg' for c in 'abcd')
    text = 'file,labels\na.jpg,cat\nb.jpg,dog\nc.jpg,cat\nd.jpg,dog\n'
    os.mkfifo('pipe')
    writer = threading.Thread(target=lambda: Path('pipe').write_text(text), daemon=True)
    writer.start()
    train, valid = read_images('pipe', 'img', '0.5')
    writer.join(10)
    assert not writer.is_alive() and len(train.files) == len(valid.files) == 2

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='needs named pipes')
def test_a_run_whose_labels_came_from_a_pipe_goes_on(here):
    from asl.train import train
    pictures(f'img/{i}.jpg' for i in range(8))
    os.mkfifo('pipe')
    text = 'file,labels\n' + ''.join(f'{i}.jpg,{"ab"[i//4]}\n' for i in range(8))
    writer = threading.Thread(target=lambda: Path('pipe').write_text(text), daemon=True)
    writer.start()
    quick = dict(threads=1, workers=0)
    options = dict(images='img', model='conv3', size=16, batch_size=4, valid='.5', out=here/'runs', **quick)
    with redirect_stdout(io.StringIO()):
        run = train('pipe', epochs=1, **options)
        train(resume=run, epochs=2, **quick)
    kept = json.loads((run/'settings.json').read_text())
    assert Path(kept['labels']) == run/'labels_from_pipe.csv' and Path(kept['labels']).read_text() == text
    assert len((run/'metrics.jsonl').read_text().splitlines()) == 2

def test_a_cure_does_not_throw_away_what_it_is_about():
    released = 'Image Index,Finding Labels,Patient Age\na.jpg,Mass|Nodule,034Y\nb.jpg,No Finding,51Y\n'
    said = refusal(csv, released)
    assert "--label_column 'Finding Labels'" in said and '--ignore_columns' not in said
    said = refusal(csv, 'file,snow,fjord\na.jpg,ja,1\nb.jpg,nein,0\n')
    assert 'write 1 and 0' in said and '--label_column' not in said
    said = refusal(csv, 'file,part,a\na.jpg,train,1\nb.jpg,val,0\nc.jpg,test,0\n')
    assert '--valid part' in said and '--label_column' not in said
    assert '--files name' in refusal(csv, 'id,name,a\n7,a.jpg,1\n8,b.jpg,0\n')
    assert csv('id,name,a\n7,a.jpg,1\n8,b.jpg,0\n', files='name', ignore_columns=['id']).classes == ['a']

def test_columns_that_divide_the_images_are_told():
    said = csv('file,part,labels\na.jpg,train,x\nb.jpg,test,y\n', labels='labels').told
    assert any("'part' divides the images" in line for line in said)
    said = csv('file,fold,a\na.jpg,0,1\nb.jpg,1,0\n').told
    assert any("'fold' is taken for a class" in line for line in said)
    assert not any('taken' in line for line in csv('file,a,b\na.jpg,0,1\nb.jpg,1,0\n').told)

def test_a_class_that_nobody_is_known_to_lack_is_told_and_has_no_average_precision():
    data = csv('file,all,a\na.jpg,1,1\nb.jpg,,0\nc.jpg,1,0\n')
    assert any('to be without all:' in line for line in described(data))
    found, ap = score(torch.randn(3, 2), data.targets[:])
    assert ap.isnan().tolist() == [True, False] and found['mAP'] == 100*ap[1].item()

def test_one_label_a_row_may_have_a_comma():
    data = csv('file,tag\na.jpg,"sea, deep"\na.jpg,fjord\nb.jpg,fjord\n')
    assert data.classes == ['fjord', 'sea, deep'] and described(data)[-1] == "classes: fjord, 'sea, deep'"

def test_a_none_that_python_wrote_is_no_label():
    assert "'None' is no label" in refusal(csv, 'file,labels\na.jpg,None\nb.jpg,cat\n')
    assert csv('file,labels\na.jpg,none\nb.jpg,cat\n').classes == ['cat', 'none']

def test_links_to_one_file_stay_on_one_side():
    pictures(f'img/{i}.jpg' for i in range(6))
    for i in range(6): os.symlink(f'{i}.jpg', f'img/l{i}.jpg')
    rows = [f'{link}{i}.jpg,{"ab"[i%2]}\n' for link in ('', 'l') for i in range(6)]
    Path('l.csv').write_text('file,labels\n' + ''.join(rows))
    for seed in range(5):
        parts = read_images('l.csv', 'img', '.4', seed=seed)
        sides = [{Path(file).name.lstrip('l') for file in part.files} for part in parts]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 6

def test_a_table_for_prediction_is_read_the_same_way():
    Path('l.csv').write_text('sep=;\n# list\n;file;note\n0;a.jpg;x\n1;b.jpg;\n')
    assert read_table('l.csv') == (['file', 'note'], [(4, ['a.jpg', 'x']), (5, ['b.jpg', ''])])

def test_names_survive_an_option():
    for names in (['a'], ['a', 'b c'], ['a, b', '"c"', "d'e"]): assert names_in(joined(names)) == names
    assert names_in('a, b,') == ['a', 'b']
    assert 'no names' in refusal(names_in, '"a')

def test_options_about_columns_need_a_csv():
    for option in ('--label_columns', '--ignore_columns'):
        assert f'{option}: is about a CSV' in asl_train('--images', 'img', option, 'a')
    assert '--no_header: is about a CSV' in asl_train('--images', 'img', '--no_header')

def test_a_hundred_thousand_rows_are_read_in_seconds():
    from time import process_time
    Path('l.csv').write_text('file;labels, a, b\n' + ''.join(f'{i}.jpg;c{i%50},d{i%7}\n' for i in range(100_000)))
    start = process_time()
    table = table_of('l.csv')
    assert table.header == ['file', 'labels, a, b'] and len(table.rows) == 100_000
    assert process_time() - start < 8
