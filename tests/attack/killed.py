r"""Does what tests/attack/test_kills.py kills, each time in a fork, which need not import again.

It reads a line of JSON for each: the name of a function, its arguments, and after how many seconds
it is killed (null: never); and writes a line with the exit status and the seconds it took."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from mag.datasets import EventLog
from mag.macro_graph import Grouping
from mag.pipeline import Pipeline

sys.path.insert(0, str(Path(__file__).parents[1] / 'training'))
import training_run  # noqa: E402

COLUMNS = {'user': 'u', 'item': 'i', 'time': 't'}


def make_cache(root: str, log: str, time_unit: str) -> None:
    EventLog(root, log, COLUMNS, time_unit, force_reload=True, log=False)


def save_grouping(path: str, seed: int) -> None:
    grouping = Grouping(50, seed=seed)
    grouping.centroids = torch.full((50, 10_000), float(seed))
    grouping.save(path)


def save_pipeline(source: str, folder: str) -> None:
    Pipeline.load(source).save(folder)


def train(directory: str) -> None:
    training_run.mag.training.run.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    training_run.train(directory, callbacks=(training_run.RandomBatches(),), validate_every=10)


def main() -> None:
    torch.set_num_threads(1)
    out = os.fdopen(os.dup(1), 'w')
    # What is done may print.
    os.dup2(2, 1)
    for line in sys.stdin:
        name, arguments, delay = json.loads(line)
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            globals()[name](*arguments)
            os._exit(0)
        if delay is not None:
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), time.monotonic() - start]), file=out)
        out.flush()


if __name__ == '__main__':
    main()
