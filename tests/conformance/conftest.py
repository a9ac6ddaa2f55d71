import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import paths  # noqa: F401 - before anything imports triton

def pytest_generate_tests(metafunc):
    "A law is asked of the tables of the module that it is collected in"
    law = getattr(metafunc.function, 'law', None)
    if law: metafunc.parametrize(*law(vars(metafunc.module)))
