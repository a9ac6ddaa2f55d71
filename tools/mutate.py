"""Would the tests notice? `python tools/mutate.py [--count 40] [--seed 0] [--only MODULE]` plants faults in a copy of
the package, one at a time, and runs the tests of its module. What survives is a gap, or a change without effect."""
import argparse, ast, os, random, shutil, subprocess, sys
from pathlib import Path
from tempfile import TemporaryDirectory

root = Path(__file__).resolve().parents[1]
TIMEOUT = 120           # seconds; a fault that makes the tests take longer is noticed
LOSSES = ['functional', 'ops']
TRAINING = ['train', 'own_images::test_a_csv_trains_and_its_run_predicts',
    'own_images::test_the_report_says_what_predict_says',
    'own_images::test_resume_refuses_what_is_not_the_run', 'own_images::test_a_folder_per_class']    # the quick ones
TESTS = {               # by module, or by room for all that stand in it: which files of tests/ are about it
    'ops.reference': [*LOSSES, 'posterior'], 'ops.checks': [*LOSSES, 'loss', 'posterior'], 'ops': LOSSES,
    'ops.tiles': ['linear'], 'ops.head': ['linear', 'step'], 'ops.head_checks': ['linear'],
    'functional': ['functional'], 'posterior': ['posterior'], 'loss': ['loss'],
    'missing': ['missing'], 'adaptive': ['adaptive'], 'jax': ['jax'], 'linear': ['linear'],
    'distributed': ['class_parallel'], 'bench': ['bench'], 'benchmark': ['bench'],
    'training.images': ['images', 'datasets', 'pictures'], 'training.targets': ['datasets'],
    'training.stored': ['datasets'], 'training.coco': ['datasets'], 'training.labels': ['images', 'tables'],
    'training.table': ['tables', 'images'], 'training.batches': ['images'],
    'training.figures': ['figures'], 'training.page': ['figures'],
    'training': TRAINING, 'train': ['train'], 'predict': TRAINING, 'cli': ['bench'],
}
OTHER = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt,
    ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.And: ast.Or, ast.Or: ast.And}

def tests_of(module):
    "The test files of a module, or of its room"
    names = TESTS.get(module) or TESTS.get(module.split('.')[0], [])
    divided = (name.partition('::') for name in names)
    return [f'tests/test_{file}.py{colons}{test}' for file, colons, test in divided]

def changes(node):
    "What can be changed at a node: the part that is replaced, and by what"
    if isinstance(node, ast.BinOp) and type(node.op) in OTHER:
        yield node, ast.BinOp(node.left, OTHER[type(node.op)](), node.right)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not): yield node, node.operand
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in OTHER:
        yield node, ast.Compare(node.left, [OTHER[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    elif isinstance(node, ast.BoolOp): yield node, ast.BoolOp(OTHER[type(node.op)](), node.values)
    elif isinstance(node, ast.If | ast.IfExp):
        yield node.test, ast.UnaryOp(ast.Not(), node.test)
        yield node.test, ast.Constant(False)
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int):
        yield node.slice, ast.Constant(node.slice.value+1)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float): yield node, ast.Constant(node.value*2+1)

def faults(path):
    "Every fault that can be planted in the functions of a module: (line, before, after, the module with it)"
    source = path.read_bytes()
    tree = ast.parse(source)
    starts = [0]
    for line in source.splitlines(keepends=True): starts.append(starts[-1]+len(line))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
    in_strings = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    nodes = {id(node): node for function in functions for node in ast.walk(function) if id(node) not in in_strings}
    seen = set()
    for node in nodes.values():
        for old, new in changes(node):
            start = starts[old.lineno-1] + old.col_offset
            end = starts[old.end_lineno-1] + old.end_col_offset
            text = f'({ast.unparse(ast.fix_missing_locations(new))})'
            if (start, end, text) in seen: continue
            seen.add((start, end, text))
            before = ' '.join(source[start:end].decode().split())
            yield old.lineno, before, text, (source[:start]+text.encode()+source[end:]).decode()

def passes(copy, tests):
    "Whether tests pass with the package of the copy"
    environment = os.environ | dict(PYTHONPATH=str(copy), PYTHONDONTWRITEBYTECODE='1')
    command = [sys.executable, '-W', 'ignore', '-m', 'pytest', '-x', '-q', '-p', 'no:cacheprovider', *tests]
    try: done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired: return False
    return done.returncode == 0

def choose(count, seed, only):
    "So many faults, spread evenly over all that there are: (module, path, fault)"
    found = []
    for path in sorted((root/'asl').rglob('*.py')):
        module = '.'.join(path.relative_to(root/'asl').with_suffix('').parts)
        if only in (None, module) and tests_of(module): found += [(module, path, fault) for fault in faults(path)]
    if not found: sys.exit(f'--only {only}: no such module with tests')
    offset = random.Random(seed).random()
    return [found[int((i+offset)*len(found)/count)] for i in range(min(count, len(found)))]

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--count', type=int, default=40, help='how many faults (default: 40)')
    parser.add_argument('--seed', type=int, default=0, help='which ones')
    parser.add_argument('--only', metavar='MODULE', help='in this module alone, such as ops.reference')
    options = parser.parse_args()
    chosen = choose(options.count, options.seed, options.only)
    survivors = 0
    with TemporaryDirectory() as folder:
        copy = Path(folder).resolve()
        for part in ('asl', 'tests', 'tools'):
            shutil.copytree(root/part, copy/part, ignore=shutil.ignore_patterns('__pycache__'))
        for tests in {tuple(tests_of(module)) for module, *_ in chosen}:
            if not passes(copy, tests): sys.exit(f'{" ".join(tests)}: do not pass as they are within {TIMEOUT} s')
        for module, path, (line, before, after, text) in chosen:
            planted = copy/path.relative_to(root)
            planted.write_text(text)
            noticed = not passes(copy, tests_of(module))
            shutil.copy(path, planted)
            survivors += not noticed
            verdict = 'noticed ' if noticed else 'SURVIVED'
            print(f'{verdict} {path.relative_to(root)}:{line}: {before} -> {after}', flush=True)
    print(f'{len(chosen)-survivors} passed, {survivors} failed')
    return survivors > 0

if __name__ == '__main__': sys.exit(main())
