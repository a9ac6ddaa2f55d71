"The page's examples, pasted into files: they run where the frameworks are, are short, and show what the page shows"
import json, sys
from pathlib import Path
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]/'tools'))
import examples
from execute import compare

OF_ANOTHER_PROCESSOR = .05      # a short training in float32 ends elsewhere there: figures 1.4 % apart were seen

page = examples.examples(json.loads(examples.notebook.read_text()))

@pytest.mark.parametrize('name', page)
def test_example(name, tmp_path):
    text, outputs = examples.source(page[name]), page[name]['outputs']
    lines = [o for o in text.splitlines() if o and not o.startswith('#|')]
    assert len(lines) <= 20 and max(map(len, lines)) <= 100
    new = examples.run(text, tmp_path)
    assert new, 'it shows nothing'
    faults = compare(examples.stored(outputs), examples.stored(new), '#| varies' in text,
        OF_ANOTHER_PROCESSOR)
    assert not faults, faults[0]
