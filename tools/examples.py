"""Run the examples of nbs/12_integrations.ipynb, each pasted into a file of its own, where the frameworks are
installed. `python tools/examples.py` stores what they print and draw; tests/integrations compares it."""
import base64, json, os, subprocess, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

root = Path(__file__).resolve().parents[1]
notebook = root/'nbs/12_integrations.ipynb'
environment = dict(OMP_NUM_THREADS='1', COLUMNS='80', NO_COLOR='1', MPLBACKEND='agg', TQDM_DISABLE='1',
    HF_HUB_OFFLINE='1')
start = """import runpy, sys
runpy.run_path(sys.argv[1], run_name='__main__')
plt = sys.modules.get('matplotlib.pyplot')
if plt and plt.get_fignums(): plt.savefig(sys.argv[2], dpi=144, bbox_inches='tight', transparent=True)"""

def source(cell): return ''.join(cell['source'])

def examples(nb):
    "By the heading above it, each cell of a notebook that is an example: a program with imports"
    found = {}
    heading = None
    for cell in nb['cells']:
        text = source(cell)
        if cell['cell_type'] == 'markdown' and text.startswith('## '): heading = text.splitlines()[0][3:]
        elif cell['cell_type'] == 'code' and 'import' in text:
            name = heading if heading not in found else f'{heading} {sum(o.startswith(heading) for o in found)+1}'
            found[name] = cell
    return found

def run(text, folder):
    "Run a program as a file in a folder; returns what it printed and what it drew, as a notebook's outputs"
    file = Path(folder, 'example.py')
    figure = Path(folder, 'figure.png')
    file.write_text(text+'\n')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', start, file, figure], cwd=folder,
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300)
    if done.returncode: raise RuntimeError(done.stdout+done.stderr)
    out = [dict(name='stdout', output_type='stream', text=done.stdout.splitlines(True))] if done.stdout else []
    if figure.exists():
        png = base64.b64encode(figure.read_bytes()).decode()
        width, height = (int.from_bytes(figure.read_bytes()[i:i+4])//2 for i in (16, 20))
        out.append(dict(data={'image/png': png, 'text/plain': ['<Figure>']},
            metadata={'image/png': dict(width=width, height=height)}, output_type='display_data'))
    return out

def stored(outputs):
    "Outputs as tools/execute.py compares them"
    return SimpleNamespace(outputs=[SimpleNamespace(**o, get=o.get) for o in outputs])

def main():
    nb = json.loads(notebook.read_text())
    todo = list(examples(nb).values())
    def again(cell):
        with TemporaryDirectory() as folder: cell['outputs'] = run(source(cell), folder)
    with ThreadPoolExecutor(2) as pool: list(pool.map(again, todo))
    notebook.write_text(json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False)+'\n')
    print(f'{len(todo)} examples stored')

if __name__ == '__main__': main()
