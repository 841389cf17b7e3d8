r"""What a run writes on the screen: its progress, and nothing of a library's."""

import re
import subprocess
import sys
from pathlib import Path

RUN = """
import logging, sys
sys.path.insert(0, sys.argv[1])
from training_run import train

logs = [logging.getLogger(name) for name in ('lightning', 'lightning.fabric', 'lightning.pytorch')]
levels = [log.level for log in logs]
for precision in ('32-true', 'bf16-mixed'):
    directory = f'{sys.argv[2]}/{precision}'
    train(directory, max_epochs=2, progress=sys.argv[3] == 'shown', precision=precision)
assert [log.level for log in logs] == levels
"""


def run(folder: Path, progress: str) -> tuple[str, str]:
    r"""What two runs write, in one precision and then in the other."""
    arguments = [str(Path(__file__).parent), str(folder), progress]
    command = [sys.executable, '-c', RUN, *arguments]
    # As bytes: in a text, each return to the start of the line would be a new line.
    done = subprocess.run(command, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


def test_without_progress_nothing_is_written(tmp_path: Path) -> None:
    assert run(tmp_path, 'hidden') == ('', '')


def test_progress_is_one_bar(tmp_path: Path) -> None:
    output, errors = run(tmp_path, 'shown')
    assert output == ''
    number = r'[\d.e-]+'
    metrics = ', '.join(f'{name}={number}' for name in ('val_gauc', 'val_auc', 'val_logloss'))
    bar = (
        rf'(epoch [12]/2: )? *\d+%\|.*\| \d+/52 \[[^\]]*?(, train_loss={number}(, {metrics})?)?\] *'
    )
    # The bar of each run is drawn over itself, and ends its only line.
    *lines, rest = errors.split('\n')
    assert len(lines) == 2 and rest == ''
    for line in lines:
        assert line.startswith('\r')
        for drawn in line[1:].split('\r'):
            assert re.fullmatch(bar, drawn), drawn
        assert re.fullmatch(r'epoch 2/2: 100%\|.*\| 52/52 \[.*train_loss=.*\] *', drawn)
