import os, sys
from pathlib import Path

os.environ['TRITON_INTERPRET'] = '1'           # before anything imports triton
sys.path.insert(0, str(Path(__file__).parent))
