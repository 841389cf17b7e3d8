import json
import subprocess
import sys
from pathlib import Path

import pytest

# The other files are what these share.
EXAMPLES = [
    'count_net.py',
    'flip.py',
    'gmcm.py',
    'gnn.py',
    'hyperctr.py',
    'macgnn.py',
    'simcen.py',
    'srjgraph.py',
    'stack.py',
    'store.py',
]
# Runs an example where nothing that takes time to import can be imported.
RUN = """
import json, os, runpy, sys

path, *arguments = json.loads(sys.argv[1])
for name in ('lightning', 'mag', 'matplotlib', 'numpy', 'torch', 'torch_geometric'):
    sys.modules[name] = None
sys.argv = [path, *arguments]
# As where an example is run by its path.
sys.path[0] = os.path.dirname(path)
runpy.run_path(path, run_name='__main__')
"""


def run(example: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = Path(__file__).parents[2] / 'examples' / example
    command = [sys.executable, '-c', RUN, json.dumps([str(path), *arguments])]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize('example', EXAMPLES)
def test_help_and_a_wrong_argument_wait_for_no_import(example: str) -> None:
    done = run(example, '--help')
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.startswith(f'usage: {example} [-h]')
    assert '--dataset' in done.stdout
    options = {line.split()[0] for line in done.stdout.splitlines() if line.startswith('  --')}
    assert len(options) <= 8
    wrong = run(example, '--seed', 'x')
    assert (wrong.returncode, wrong.stdout) == (2, '')
    assert wrong.stderr.endswith(f"{example}: error: argument --seed: invalid int value: 'x'\n")
