r"""What a run writes on the screen: its progress, and nothing of a library's."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from training_run import train

logs = [logging.getLogger(name) for name in ('lightning', 'lightning.fabric', 'lightning.pytorch')]
levels = [log.level for log in logs]
train(sys.argv[2], max_epochs=2, progress=sys.argv[3] == 'shown', precision=sys.argv[4])
assert [log.level for log in logs] == levels
"""


def run(folder: Path, progress: str, precision: str) -> tuple[str, str]:
    arguments = [str(Path(__file__).parent), str(folder), progress, precision]
    command = [sys.executable, '-c', RUN, *arguments]
    # As bytes: in a text, each return to the start of the line would be a new line.
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed'])
def test_without_progress_nothing_is_written(tmp_path: Path, precision: str) -> None:
    assert run(tmp_path, 'hidden', precision) == ('', '')


@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed'])
def test_progress_is_one_bar(tmp_path: Path, precision: str) -> None:
    output, errors = run(tmp_path, 'shown', precision)
    assert output == ''
    # The bar is drawn over itself, and ends its only line.
    assert errors.startswith('\r') and errors.index('\n') == len(errors) - 1
    number = r'[\d.e-]+'
    metrics = ', '.join(f'{name}={number}' for name in ('val_gauc', 'val_auc', 'val_logloss'))
    bar = (
        rf'(epoch [12]/2: )? *\d+%\|.*\| \d+/52 \[[^\]]*?(, train_loss={number}(, {metrics})?)?\] *'
    )
    for drawn in errors[1:-1].split('\r'):
        assert re.fullmatch(bar, drawn), drawn
    assert re.fullmatch(r'epoch 2/2: 100%\|.*\| 52/52 \[.*train_loss=.*\] *', drawn)
