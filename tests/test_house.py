"The house: everything has its room, and arrows point one way. Counted by ast, imports inside of functions too."
import inspect, re, runpy, sys
from pathlib import Path

import pytest
from fastcore.docscrape import NumpyDocString

import asl, asl.distributed

sys.path.append(str(Path(__file__).parents[1]/'tools'))
from house import graph, sources, violations

def test_arrows_point_one_way_and_nobody_takes_what_is_private():
    assert violations(sources()) == []

@pytest.mark.parametrize('module, line, said', [
    ('ops.checks', 'from .reference import reduce_loss', 'ops.checks: imports ops.reference'),
    ('ops.reference', 'def f():\n    from ..loss import AsymmetricLossMultiLabel', 'ops.reference: imports loss'),
    ('ops.dispatch', 'def f():\n    from asl.ops.common import Settings', 'imports ops.common inside of a function'),
    ('ops.multi_label', 'from asl.ops.single_label import RowByRow', 'ops.multi_label: imports ops.single_label'),
    ('posterior', 'def f(): import asl.functional', 'posterior: imports functional'),
    ('linear', 'from .ops.tiles import _search', 'linear: imports the private _search of ops.tiles'),
    ('training.page', 'from ..benchmark import report', 'training.page: imports benchmark.report'),
    ('benchmark.race', 'from asl.training.digits import digit_collages', 'benchmark.race: imports training.digits'),
    ('train', 'from .predict import predict', 'train: imports predict'),
    ('cli', 'from . import loss', 'cli: imports loss'),
    ('loss', 'import torch\nactive = torch._C._functorch', 'belongs into ops.torch_private'),
    ('jax', 'from torch._compile import _disable_dynamo', 'belongs into ops.torch_private'),
])
def test_a_planted_violation_is_seen(module, line, said):
    texts = sources()
    texts[module] += f'\n{line}\n'
    assert [v for v in violations(texts) if said in v]

def test_a_circle_and_a_module_without_a_room_are_seen():
    texts = sources()
    texts['ops.checks'] += '\nfrom .reference import reduce_loss\n'
    assert any(v.startswith('a circle: ') for v in violations(texts))
    assert 'attic: has no room; say in tools/house.py whom it may import' in violations(sources() | dict(attic=''))
    many = {f'm{i}': '' for i in range(3)}
    assert any('modules at the top' in v for v in violations(sources() | many))

def test_the_graph_is_that_of_the_code():
    found = graph(sources())
    assert found['cli'] == [] and 'ops.gpu' in found['ops.dispatch']
    assert found['train'] == ['cli', 'training.options', 'training.pipeline']

public = [getattr(module, name) for module in (asl, asl.distributed) for name in module.__all__]

@pytest.mark.parametrize('found', public, ids=lambda found: found.__name__)
def test_what_users_call_describes_each_argument_where_editors_look(found):
    doc = inspect.getdoc(found)
    said = set(', '.join(NumpyDocString(doc)['Parameters']).split(', '))
    arguments = set(inspect.signature(found).parameters)
    if '**kwargs' in said: assert said - {'**kwargs'} < arguments      # the rest: settings of a function that is named
    else: assert said == arguments
    assert not re.search(r'Eqs?\. \(', doc), 'equations are numbered on pages, which help() cannot show'
    members = vars(found).items() if inspect.isclass(found) else []
    assert all(inspect.getdoc(member) for name, member in members if inspect.isfunction(member) and name[0] != '_')

def test_asl_has_the_function_posterior_and_the_module_of_that_name_can_be_imported_from():
    from asl.posterior import class_prior, posterior
    assert asl.posterior is posterior and asl.class_prior is class_prior and callable(asl.posterior)

def test_help_teaches_in_one_screen():
    assert len(asl.__doc__.splitlines()) <= 30 and 'loss.posterior(logits)' in asl.__doc__

def test_a_users_program_runs(capsys):
    runpy.run_path(str(Path(__file__).with_name('user_program.py')))
    assert 'torch.Size([32, 10])' in capsys.readouterr().out
