import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / 'examples'
# Runs an example with other values of what it sets beside its options.
RUN = """
import importlib, json, sys

name, settings, *sys.argv[1:] = json.loads(sys.argv[1])
example = importlib.import_module(name)
args = example.parse_args()
unknown = json.loads(settings).keys() - vars(args).keys()
assert not unknown, unknown
vars(args).update(json.loads(settings))
example.main(args)
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path, fork: Callable[..., Any]) -> Run:
    r"""Runs an example in a folder of its own: ``run('gmcm', '--epochs', '1', patience=2)``."""

    def run(
        name: str, *options: str, extra: Sequence[Path] = (), **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        arguments = json.dumps([name, json.dumps(settings), *options])
        return fork(RUN, arguments, cwd=tmp_path, path=[EXAMPLES, *extra]).finish()

    return run


@pytest.fixture(scope='session')
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""Users who click the items of their own kind."""
    generator = torch.Generator().manual_seed(0)
    user = torch.randint(60, (4000,), generator=generator)
    item = torch.randint(40, (4000,), generator=generator)
    noise = torch.rand(4000, generator=generator)
    clicked = noise < torch.where(user % 4 == item % 4, 0.9, 0.1)
    lines = ['who,what,when,clicked,kind']
    lines += [
        f'u{u},i{i},{1000 + t},{int(c)},kind {i % 4}'
        for t, (u, i, c) in enumerate(zip(user.tolist(), item.tolist(), clicked.tolist()))
    ]
    path = tmp_path_factory.mktemp('log') / 'log.csv'
    path.write_text('\n'.join(lines))
    return path
