"The command `asl_bench` as its users run it. How long anything takes is never asserted."
import inspect, json, subprocess, sys

import pytest

from asl.bench import bench, main
from asl.cli import Refused

absent = 'timm', 'torchvision', 'kornia'      # in the tests of what is done without them
command = [sys.executable, '-c', 'from asl.bench import main; main()']

def run(*args, cwd):
    return subprocess.run([*command, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=120)

def small(**options): return bench(**dict(quick=True, sizes='8x20', repeats=1, easy='.9') | options)

@pytest.fixture(scope='module')
def quick(tmp_path_factory):
    folder = tmp_path_factory.mktemp('quick')
    return folder, run('--quick', '--out', 'a.json', '--plot', 'a.png', cwd=folder)

def test_quick_from_end_to_end(quick):
    folder, result = quick
    assert result.returncode == 0, result.stderr
    assert {p.name for p in folder.iterdir()} == {'a.json', 'a.png'} and (folder/'a.png').read_bytes()[:4] == b'\x89PNG'
    for word in ('multi-label, 64 x 80, float32, 50% easy', 'single-label, 64 x 1000, float32', 'x timm', 'copy floor'):
        assert word in result.stdout

def test_the_record(quick):
    record = json.loads((quick[0]/'a.json').read_text())
    assert record['command'].startswith('asl_bench') and '--quick' in record['command']
    assert record['machine']['cpu'] and record['machine']['cores'] and record['machine']['gpu'] is None
    assert {'python', 'torch', 'asl', 'threads'} <= record['versions'].keys()
    assert record['date'] and record['skipped'] == []
    assert record['options']['seed'] == 0 and record['seconds'] >= 0
    found = {(r['task'], tuple(r['size']), r['easy']) for r in record['rows']}
    sizes = (64, 80), (64, 1000)
    assert found == {('multi', s, e) for s in sizes for e in (.5, .9)} | {('single', s, None) for s in sizes}
    for r in record['rows']:
        assert len(r['both']) == 4 and r['both'] == sorted(r['both'])
        assert r['dtype'] == 'float32' and r['samples'] == 5*(20 if r['size'][1] == 80 else 16)
        if r['peer'] == 'copy floor':
            assert len(r['fresh']) == 4
            continue
        assert len(r['each']) == r['samples'] and min(r['each']) == r['both'][0]
        assert r['mode'] == 'eager' and 'failed' not in r and len(r['forward']) == len(r['backward']) == 4
        assert 0 <= r['kept_beyond_inputs'] <= r['kept'] and r['peak'] >= r['bytes']      # the gradient, at least
        if (r['task'], r['peer']) == ('multi', 'timm'): assert r['kept_beyond_inputs'] == 11*r['bytes']
        if (r['task'], r['peer']) == ('multi', 'asl'): assert r['kept'] <= r['bytes']

def test_what_was_asked_for():
    record = small(task='single', sizes='3x7,8x20', dtypes='bfloat16,float16', seed=3)
    assert {(r['task'], tuple(r['size']), r['dtype']) for r in record['rows']} == {
        ('single', s, d) for s in ((3, 7), (8, 20)) for d in ('bfloat16', 'float16')}
    assert {r['bytes'] for r in record['rows']} == {2*3*7, 2*8*20} and record['options']['seed'] == 3

def test_as_many_negatives_are_easy_as_was_asked_for():
    from asl.benchmark.race import inputs
    for share in (.01, .5, .9):
        z, _ = inputs('multi', (200, 500), easy=share)
        assert abs((z.sigmoid() <= .05).float().mean().item()-share) < .01

def test_a_plot_needs_matplotlib_before_anything_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr('asl.cli.find_spec', lambda name: None if name == 'matplotlib' else name)
    with pytest.raises(Refused, match='matplotlib'): small(task='single', plot=tmp_path/'a.png')
    assert small(task='single')['rows']

def test_threads_are_used_recorded_and_given_back():
    import torch
    before = torch.get_num_threads()
    assert small(task='single', threads=before+1)['versions']['threads'] == before+1
    assert torch.get_num_threads() == before

def test_a_compiled_peer_that_fails_is_in_the_table(monkeypatch):
    import asl.benchmark.race, asl.benchmark.report
    def breaks(z, _y):
        if z.sum() > 0: return z.sum()
        return (2*z).sum()
    monkeypatch.setattr(asl.benchmark.race, 'peers', lambda _task: {'breaks': breaks})
    record = small(task='single')
    assert [r['mode'] for r in record['rows']] == ['', 'eager']
    fs = asl.benchmark.race.entrants('single', True)
    z, y = asl.benchmark.race.inputs('single', (8, 20))
    rows = asl.benchmark.race.measure(fs, z, y, 1)
    assert [r['mode'] for r in rows] == ['', 'eager', 'compiled'] and 'both' in rows[1] and 'both' not in rows[2]
    assert 'failed: ' in asl.benchmark.report.table([dict(bytes=z.nbytes, **r) for r in rows])

def test_a_size_too_large_is_skipped_and_the_rest_goes_on(capsys):
    record = small(task='single', sizes='1000000x1000000,8x20')
    assert [s['size'] for s in record['skipped']] == [[10**6, 10**6]] and 'GiB' in record['skipped'][0]['reason']
    assert {tuple(r['size']) for r in record['rows']} == {(8, 20)}
    assert '1000000 x 1000000 skipped, out of memory' in capsys.readouterr().out

def test_the_family_beside_cross_entropy(capsys):
    from asl import family
    record = small(task='family')
    members = [name for name in family.__all__ if name != 'class_weights']
    names = [row['peer'] for row in record['rows']]
    assert names[:2] == ['copy floor', 'BCE'] and {*members, 'AsymmetricLossMultiLabel'} == {*names[2:]}
    assert not any('failed' in row for row in record['rows'])
    shown = capsys.readouterr().out
    assert 'family, 8 x 20, float32, 90% easy' in shown and 'x BCE' in shown and 'x timm' not in shown

def test_compiled_members_do_not_crowd_each_other_out():
    "Dynamo keeps eight variants of a function; here each compiles, without code being written"
    import torch
    from asl.benchmark.race import inputs, peers
    z, y = inputs('family', (8, 20))
    torch.compiler.reset()
    for loss in peers('family').values(): torch.compile(loss, backend='eager', fullgraph=True, dynamic=False)(z, y)

def test_only_too_large_sizes(tmp_path):
    out, plot = tmp_path/'a.json', tmp_path/'a.png'
    record = small(task='single', sizes='1000000x1000000', out=str(out), plot=str(plot))
    assert record['rows'] == [] and json.loads(out.read_text()) == record and not plot.exists()

def test_who_needs_more_memory_than_there_is_is_left_out_and_the_rest_measured(monkeypatch):
    import asl.benchmark.measure as m
    monkeypatch.setattr(m, 'free_memory', lambda _: 4*16*8*20)          # 16 float32 tensors of the logits
    record = small(task='multi')
    failed = {r['peer']: r['failed'] for r in record['rows'] if 'failed' in r}
    assert failed.keys() == {'timm', 'published'} and all('out of memory: needs' in why for why in failed.values())
    assert [r['peer'] for r in record['rows'] if 'both' in r][:3] == ['copy floor', 'asl', 'BCE']
    rows = small(linear=True, features=1)['rows']
    assert [r['peer'] for r in rows if 'failed' in r] == ['timm'] and rows[0]['peer'] == 'asl'

def test_kornia_takes_part_where_it_is_installed_and_is_named_where_not(monkeypatch, capsys):
    import asl.benchmark.race as race
    import torch, types
    def focal(z, y, **_reduction): return (z*y).sum()
    module = types.SimpleNamespace(binary_focal_loss_with_logits=focal)
    find = race.find_spec
    monkeypatch.setattr(race, 'find_spec', lambda p: None if p == 'kornia' else find(p))
    assert 'kornia focal' not in [r['peer'] for r in small(task='multi')['rows']]
    assert 'left out, not installed: kornia' in capsys.readouterr().out
    monkeypatch.setattr(race, 'find_spec', lambda p: p if p == 'kornia' else find(p))
    monkeypatch.setitem(sys.modules, 'kornia.losses', module)
    monkeypatch.setitem(sys.modules, 'kornia', types.SimpleNamespace(losses=module))
    assert race.peers('multi')['kornia focal'](torch.ones(2), torch.ones(2)) == 2
    assert 'kornia' not in race.missing('multi')

def test_heads(tmp_path, capsys):
    out, plot = tmp_path/'a.json', tmp_path/'a.png'
    record = small(linear=True, sizes='8x40,4x2000', features=16, easy='.5,.999', out=str(out), plot=str(plot))
    who = [('asl', 'eager'), ('timm', 'eager'), ('tiles', 'indices'), ('tiles', 'dense'), ('tiles', 'row-sparse'),
        ('torch CE', 'chunked')]
    assert [(r['peer'], r['mode']) for r in record['rows']] == 4*who and not any('failed' in r for r in record['rows'])
    assert json.loads(out.read_text()) == record and plot.read_bytes()[:4] == b'\x89PNG'
    for r in record['rows']:
        assert r['features'] == 16 and r['bytes'] == 4*r['size'][0]*r['size'][1] and r['both'] == sorted(r['both'])
        if r['peer'] == 'timm': assert r['peak'] > 11*r['bytes']
        if r['peer'] == 'asl': assert r['peak'] >= r['bytes']
        assert abs(sum(r['shares'][k] for k in ('skipped', 'sparse', 'columns', 'dense'))-1) < 1e-9
    assert 'head of 16 features, 4 x 2000, float32, 99.9% easy' in capsys.readouterr().out

def test_heads_without_timm_and_compiled(monkeypatch):
    import asl.benchmark.race
    find = asl.benchmark.race.find_spec
    monkeypatch.setattr(asl.benchmark.race, 'find_spec', lambda p: None if p in absent else find(p))
    record = bench(linear=True, sizes='8x40', features=8, easy='.9', repeats=1)
    assert [(r['peer'], r['mode']) for r in record['rows']] == [('asl', 'eager'), ('asl', 'compiled'),
        ('tiles', 'compiled'), ('tiles', 'indices'), ('tiles', 'dense'), ('tiles', 'row-sparse'),
        ('torch CE', 'chunked')]
    assert not any('failed' in r for r in record['rows'])

bad = ['--task foo', '--linear --features 0', '--sizes 64', '--sizes 64x0', '--sizes 8x8,', '--sizes -1x5',
    '--dtypes float8', '--dtypes float64', '--easy 2', '--easy nan', '--easy x', '--repeats 0', '--repeats x',
    '--threads 0', '--seed -1', '--device tpu', '--size 8x8', '--out missing/a.json', '--plot missing/a.png',
    '--plot a.txt', '--out .', 'a.json']

def refused(options, capsys):
    "The one line of a refused call"
    with pytest.raises(SystemExit) as e: main(options.split())
    out, err = capsys.readouterr()
    assert e.value.code == 2 and out == '' and err.count('\n') == 1 and err.startswith('asl_bench: ')
    return err

@pytest.mark.parametrize('options', bad)
def test_a_bad_option_is_one_line(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    named = options.split()[-2 if options.startswith('--linear') else 0]
    assert named in refused(options, capsys) and not list(tmp_path.iterdir())

def test_no_gpu_is_one_line(capsys):
    import torch
    if torch.cuda.is_available(): pytest.skip('there is a GPU')
    assert '--device cuda' in refused('--quick --device cuda', capsys)

def test_an_existing_file_is_kept_unless_forced(tmp_path, capsys):
    for name, option in (('a.json', 'out'), ('a.png', 'plot')):
        (tmp_path/name).write_text('mine')
        assert '--force' in refused(f'--quick --{option} {tmp_path/name}', capsys)
        assert (tmp_path/name).read_text() == 'mine'
    small(task='single', out=str(tmp_path/'a.json'), force=True)
    assert json.loads((tmp_path/'a.json').read_text())['rows']

def test_a_missing_package_is_one_line(monkeypatch, capsys):
    import asl.cli as c
    find = c.find_spec
    monkeypatch.setattr(c, 'find_spec', lambda p: None if p == 'tqdm' else find(p))
    assert "tqdm not installed: pip install 'asymmetric-loss[train]'" in refused('--quick', capsys)

def test_without_timm_the_rest_is_measured(monkeypatch):
    import asl.benchmark.measure, asl.benchmark.race
    find = asl.benchmark.race.find_spec
    for module in (asl.benchmark.measure, asl.benchmark.race):
        monkeypatch.setattr(module, 'find_spec', lambda p: None if p in absent else find(p))
    record = small(task='multi')
    assert [r['peer'] for r in record['rows']] == ['copy floor', 'asl', 'published', 'BCE']
    assert 'timm' not in record['versions']

def test_nothing_else_is_printed_by_a_refusal(tmp_path):
    result = run('--sizes', 'x', cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == '' and result.stderr.count('\n') == 1

def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as e: main(['-h'])
    assert e.value.code == 0
    out = capsys.readouterr().out
    for name in inspect.signature(bench).parameters: assert f'--{name}' in out

def test_importing_it_is_light():
    heavy = 'timm', 'torchvision', 'matplotlib', 'sklearn'
    code = f'import sys, asl.bench; print([m for m in {heavy} if m in sys.modules])'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True).stdout.strip() == '[]'
