import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from mag.datasets import LogSchema
from mag.store import BuildPlan, build

SOURCE = Path(__file__).parents[2] / 'examples' / 'sharded_tables.py'
COLUMNS = {'user': 'who', 'item': 'what', 'time': 'when', 'label': 'clicked'}


@pytest.mark.skipif(find_spec('torchrec') is None, reason='TorchRec is not installed')
def test_two_processes_hold_half_of_each_table(log: Path, tmp_path: Path) -> None:
    plan = BuildPlan(
        LogSchema(str(log), COLUMNS), tmp_path / 'store', {'user': 4, 'item': 4}, num_windows=3,
        memory_limit='1GiB',
    )  # fmt: skip
    build(plan, progress=False)
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    done = subprocess.run(
        [*torchrun, '--nproc_per_node', '2', str(SOURCE), '--store', str(tmp_path / 'store')],
        cwd=tmp_path, capture_output=True, text=True, timeout=600,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        (line,) = re.findall(f'Process {rank} holds .*', done.stdout)
        assert "item.weight': [20]" in line and "user.weight': [30]" in line
    (row,) = re.findall(r'^test +(\S+)', done.stdout, re.MULTILINE)
    assert float(row) > 0.7


def test_help_waits_for_no_import() -> None:
    command = [sys.executable, '-S', str(SOURCE), '--help']
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, '')
    assert '--store' in done.stdout
