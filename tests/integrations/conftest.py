"What needs the frameworks' own environment: pip install -e '.[integrations]'. Elsewhere there is nothing here to run."
from importlib.util import find_spec
import pytest

if not all(map(find_spec, ('fastai', 'transformers', 'lightning'))): collect_ignore_glob = ['*']

@pytest.fixture(params=[False, True], ids=['multi', 'single'])
def single(request): return request.param
