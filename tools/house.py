"""The rooms of the package and the arrows between them: who imports whom, and who may. 13_design draws it,
tests/test_house.py holds it."""
import ast, re
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

package = Path(__file__).resolve().parents[1]/'asl'
LIBRARY = ['', 'functional', 'posterior', 'missing', 'loss', 'family', 'adaptive', 'linear', 'distributed', 'jax',
    'decide', 'calibrate', 'metrics']
MAY = {     # who may import whom; what stands further down may import what its line names
    'ops.torch_private': [],
    'ops.checks': ['ops.torch_private'],
    'ops.reference': ['ops.torch_private', 'ops.checks'],
    'ops.common': ['ops.torch_private', 'ops.checks'],
    'ops.multi_label': ['ops.torch_private', 'ops.checks', 'ops.reference', 'ops.common'],
    'ops.single_label': ['ops.torch_private', 'ops.checks', 'ops.reference', 'ops.common'],
    'ops.gpu': ['ops.torch_private', 'ops.checks', 'ops.reference', 'ops.common'],
    'ops.tiles': ['ops.torch_private', 'ops.checks', 'ops.reference', 'ops.common', 'ops.multi_label', 'ops.gpu'],
    'ops.step': ['ops.torch_private', 'ops.checks'],
    'ops.head_checks': ['ops.checks', 'ops.common'],
    'ops.head': ['ops.torch_private', 'ops.checks', 'ops.reference', 'ops.common', 'ops.head_checks', 'ops.step',
        'ops.tiles'],
    'ops.elementwise': ['ops.torch_private', 'ops.checks', 'ops.reference', 'ops.common', 'ops.multi_label'],
    'ops.dispatch': ['ops.*'],
    'functional': ['ops.checks', 'ops.dispatch'],
    'posterior': ['ops.checks', 'ops.reference'],
    'missing': ['ops.checks'],
    'loss': ['ops.checks', 'ops.common', 'functional', 'posterior'],
    'family': ['ops.*', 'functional', 'posterior', 'loss'],
    'adaptive': ['ops.*', 'functional', 'posterior', 'loss'],
    'linear': ['ops.*', 'functional', 'posterior', 'loss'],
    'distributed': ['ops.*', 'functional', 'posterior', 'loss', 'linear'],
    'jax': ['ops.*', 'functional', 'posterior', 'loss'],
    'decide': ['ops.checks', 'posterior', 'loss'],
    'calibrate': ['ops.checks', 'posterior', 'loss', 'decide'],
    'metrics': ['ops.checks', 'decide', 'calibrate'],
    '': ['functional', 'posterior', 'missing', 'loss', 'family', 'adaptive', 'linear'],
    'cli': [],
    'training.*': [*LIBRARY, 'cli', 'training.*'],
    'benchmark.*': [*LIBRARY, 'cli', 'benchmark.*'],
    'train': ['cli', 'training.*'],
    'predict': ['cli', 'training.*'],
    'evaluate': ['cli', 'training.*'],
    'review': ['cli', 'training.*'],
    'bench': ['cli', 'benchmark.*'],
}
LATE = {
    'ops.gpu',              # needs Triton, and is imported where a kernel is called
    # These need PyTorch, which -h of a command does without
    'training.pipeline', 'training.predictor', 'training.evaluation', 'training.review', 'benchmark.measure',
}
FUNCTIONS = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda
PRIVATE = re.compile(r'''\btorch(?:\.\w+)*\._[a-z]\w* | \bfrom\ torch(?:\.\w+)*\._\w+ | \._(?:values|indices)\(\)
    | \b_dynamo\w+''', re.X)

def sources():
    "The text of each module of asl by its dotted name; that of asl itself is ''"
    texts = {}
    for path in sorted(package.rglob('*.py')):
        if path.name == '_modidx.py': continue
        name = '.'.join(path.relative_to(package).with_suffix('').parts).removesuffix('__init__').rstrip('.')
        if name not in ('ops', 'training', 'benchmark'): texts[name] = path.read_text()
    return texts

def imports(module, text, modules):
    "Of a module, what it imports of asl: (other module, name or None, whether inside of a function)"
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in ast.walk(tree):
        late = id(node) in inside
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split('.')[0] == 'asl': yield alias.name.removeprefix('asl').lstrip('.'), None, late
        elif isinstance(node, ast.ImportFrom):
            base = origin(node, module)
            if base[0] != 'asl': continue
            for alias in node.names:
                whole = '.'.join([*base[1:], alias.name])
                if whole in modules: yield whole, None, late
                else: yield '.'.join(base[1:]), alias.name, late

def origin(node, module):
    "Where a `from ... import` in a module takes its names from, as a list of the parts of that dotted name"
    named = node.module.split('.') if node.module else []
    if not node.level: return named
    return ['asl', *module.split('.')][:-node.level] + named

def graph(texts):
    "Who imports whom"
    return {module: sorted({other for other, *_ in imports(module, text, texts)}) for module, text in texts.items()}

def allowed(module):
    return next((may for pattern, may in MAY.items() if fnmatch(module, pattern)), None)

def violations(texts):
    "What is wrong in the house, a line each"
    wrong = []
    for module, text in texts.items():
        may = allowed(module)
        if may is None:
            wrong.append(f'{module}: has no room; say in tools/house.py whom it may import')
            continue
        for other, name, late in imports(module, text, texts):
            if not any(fnmatch(other, pattern) for pattern in may):
                wrong.append(f'{module}: imports {other or "asl"}, and may import {may}')
            if name and name.startswith('_') and not name.endswith('__'):
                wrong.append(f'{module}: imports the private {name} of {other}')
            if late and other not in LATE: wrong.append(f'{module}: imports {other} inside of a function')
        if module != 'ops.torch_private':
            for private in PRIVATE.findall(text):
                wrong.append(f'{module}: {private} is private in PyTorch, and belongs into ops.torch_private')
    try: TopologicalSorter(graph(texts)).prepare()
    except CycleError as e: wrong.append(f'a circle: {" -> ".join(e.args[1])}')
    top = [module for module in texts if module and '.' not in module]
    if len(top) > 18:       # twelve that users import, cli, five commands
        wrong.append(f'{len(top)} modules at the top, and 18 are enough: {top}')
    return wrong
