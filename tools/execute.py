"""Run notebooks. `python tools/execute.py [notebooks]` stores what they show; with `--check` nothing is stored, and
whatever shows something else than is stored fails. This is the notebooks' test as well: a cell that raises fails."""
import os, re, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

os.environ.update(OMP_NUM_THREADS='1', COLUMNS='80', NO_COLOR='1')  # the same numbers and widths everywhere
heavy = 'torch', 'timm', 'torchmetrics', 'matplotlib.pyplot'    # imported once: notebooks run in forks of that process
number = re.compile(r'(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?(?!\w)', re.I)
skipped = re.compile(r'^#\| *(eval: *false|notest)', re.M)

def same(old, new, tolerance=1e-5):
    "Equal words, and equal numbers but for what float32 rounding does to a number printed with many digits"
    if number.split(old) != number.split(new): return False
    pairs = zip(map(float, number.findall(old)), map(float, number.findall(new)))
    return all(abs(a-b) <= tolerance*abs(a) for a, b in pairs)

def shown(cell):
    "The texts that a cell shows, by kind, and the number of its figures"
    texts = {}
    figures = 0
    for o in cell.outputs:
        data = {o.name: o.text} if o.output_type == 'stream' else dict(o.get('data', {}))
        data = {kind: ''.join(text) for kind, text in data.items()}
        if any(k.startswith('image/') for k in data) or '<svg' in data.get('text/html', ''): figures += 1
        else:
            for kind, text in data.items(): texts[kind] = texts.get(kind, '')+text
    return texts, figures

def compare(old, new, varies, tolerance=1e-5):
    "What is wrong with the stored outputs `old`, given the new ones"
    old, old_figures = shown(old)
    new, new_figures = shown(new)
    if old_figures != new_figures: return [f'{old_figures} stored figures, {new_figures} new ones']
    if varies and old.keys() == new.keys(): return []
    return [f'stored {kind}:\n{old.get(kind)}\nnew {kind}:\n{new.get(kind)}' for kind in old.keys()|new.keys()
        if not same(old.get(kind, ''), new.get(kind, ''), tolerance)]

def run(path, check=False):
    "Run one notebook in its folder; returns its faults"
    from execnb.nbio import read_nb, write_nb
    from execnb.shell import CaptureShell
    from nbdev.clean import clean_nb
    os.chdir(path.parent)
    old = read_nb(path)
    new = read_nb(path)
    shell = CaptureShell(path=path.parent)
    for cell in new.cells:
        if cell.cell_type != 'code' or skipped.search(cell.source): continue        # keeps what it shows
        cell.outputs = []
        shell.cell(cell)
        cell.outputs = [o for o in cell.outputs if o.get('name') != 'stderr']       # logs, bars: never the same twice
        if shell.exc: return [f'{cell.id}: {type(shell.exc).__name__}: {shell.exc}\n{cell.source}']
    clean_nb(new, clean_ids=True)
    if not check:
        write_nb(new, path)
        return []
    return [f'{b.id}: {fault}\n{b.source}' for a, b in zip(old.cells, new.cells) if a.cell_type == 'code'
        for fault in compare(a, b, '#| varies' in b.source)]

def timed(path, check):
    "The faults of one notebook, and how many seconds it took"
    start = time.perf_counter()
    return run(path, check), time.perf_counter()-start

def main(args):
    from nbdev.doclinks import nbglob
    check = '--check' in args
    paths = [Path(o).resolve() for o in args if o != '--check'] or sorted(nbglob(as_path=True))
    context = get_context('forkserver' if hasattr(os, 'fork') else 'spawn')
    if hasattr(os, 'fork'): context.set_forkserver_preload([*heavy])
    with ProcessPoolExecutor(min(2, len(paths)), context, max_tasks_per_child=1) as pool:
        results = list(zip(paths, pool.map(timed, paths, [check]*len(paths))))
    for path, (faults, seconds) in results:
        print(f"{'FAILED' if faults else 'ok'} {path.name} ({seconds:.0f} s)", *faults, sep='\n  ')
    failed = sum(bool(faults) for _, (faults, _) in results)
    print(f'{len(paths)-failed} passed, {failed} failed')
    return failed > 0

if __name__ == '__main__': sys.exit(main(sys.argv[1:]))
