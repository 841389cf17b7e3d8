import argparse
import itertools
import json
import multiprocessing
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

ATTACK_SEED = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        '--attack',
        type=_positive,
        default=1,
        metavar='N',
        help='try N times as many examples in each test of tests/attack; above 1 they are others '
        'in each run, and --hypothesis-seed repeats one (default: 1)',
    )


def pytest_configure(config: pytest.Config) -> None:
    # What must pass is the same every time, what searches is not.
    seed = config.getoption('--hypothesis-seed', default=None)
    if seed is None:
        seed = 0 if config.getoption('--attack') == 1 else random.SystemRandom().getrandbits(31)
    config.stash[ATTACK_SEED] = int(seed)


def pytest_report_header(config: pytest.Config) -> str:
    return f'attack: {_attack_options(config)}'


def _attack_options(config: pytest.Config) -> str:
    return f'--attack {config.getoption("--attack")} --hypothesis-seed {config.stash[ATTACK_SEED]}'


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f'expected a whole number of 1 or more, got {text!r}')
    return int(text)


@pytest.fixture(scope='session')
def attack_factor(pytestconfig: pytest.Config) -> int:
    r"""The :obj:`N` of :obj:`--attack N`, by which what tries examples multiplies their number."""
    return pytestconfig.getoption('--attack')


@pytest.fixture
def attack_seed(pytestconfig: pytest.Config) -> int:
    r"""What examples are drawn from: 0, and with :obj:`--attack N` another in each run."""
    # Shown where a test fails.
    print(f'repeat with: pytest {_attack_options(pytestconfig)}')
    return pytestconfig.stash[ATTACK_SEED]


@pytest.fixture(scope='session')
def mag_data() -> Path:
    r"""The folder of real data that the environment variable ``MAG_DATA`` names."""
    if 'MAG_DATA' not in os.environ:
        pytest.skip(
            'MAG_DATA is not set; it names the folder that holds ml-1m/, KuaiRand-Pure/, trivago/ '
            'and tiktok/'
        )
    folder = Path(os.environ['MAG_DATA'])
    if not folder.is_dir():
        pytest.fail(f"MAG_DATA is '{folder}', which is not a folder.")
    return folder


# What takes seconds to import.
PRELOADED = [
    'lightning', 'mag.datasets', 'mag.loader', 'mag.models', 'mag.training', 'mag.transforms',
    'matplotlib.backends.backend_agg',
]  # fmt: skip
FORKED = """
import multiprocessing, os, sys

multiprocessing.set_start_method(None, force=True)  # what it starts is started as elsewhere
os.dup2(stdout.fileno(), 1)
os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
os.environ.update(env)
os.chdir(cwd or os.getcwd())
sys.path[:0] = path
sys.argv = ['-c', *arguments]
exec(code, {'__name__': '__main__'})
"""


class Forked:
    r"""A process that runs Python code."""

    def __init__(
        self, context: ForkServerContext, stderr: Path, code: str, *arguments: str,
        cwd: Path | str = '', path: Sequence[Path] = (), env: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        receiver, sender = context.Pipe(duplex=False)
        names = {
            'stdout': sender, 'stderr': str(stderr), 'code': code, 'arguments': arguments,
            'cwd': str(cwd), 'path': list(map(str, path)), 'env': env or {},
        }  # fmt: skip
        self.process = context.Process(target=exec, args=(FORKED, names))
        self.process.start()
        self.pid = self.process.pid
        sender.close()
        self.stdout = os.fdopen(os.dup(receiver.fileno()))
        self.stderr = stderr

    def finish(self) -> subprocess.CompletedProcess[str]:
        r"""Waits for its end, ten minutes at most; what it wrote that has not been read."""
        too_long = threading.Timer(600, self.process.kill)
        too_long.start()
        with self.stdout:
            output = self.stdout.read()
        self.process.join()
        too_long.cancel()
        assert self.process.exitcode is not None
        return subprocess.CompletedProcess(
            [], self.process.exitcode, output, self.stderr.read_text()
        )


@pytest.fixture(scope='session')
def fork(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Forked]:
    r"""Starts Python code in a process of its own: a fork of one that has imported, once for all
    tests, what takes seconds, and has done nothing else."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(PRELOADED)
    folder = tmp_path_factory.mktemp('stderr')
    number = itertools.count()

    def start(code: str, *arguments: str, **options: Any) -> Forked:
        return Forked(context, folder / str(next(number)), code, *arguments, **options)

    return start


class Planted:
    r"""Writes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f'touch {self.path}',)


@pytest.fixture
def planted() -> type[Planted]:
    r"""An object by its path, which writes that file where it is unpickled."""
    return Planted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    r"""A disk of one megabyte, where somebody may make one."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    made = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=1m', 'none', str(folder)], capture_output=True
    )
    if made.returncode != 0:
        pytest.skip('a small disk can only be made by root')
    yield folder
    subprocess.run(['umount', '--lazy', str(folder)], check=True)


@pytest.fixture
def toy_graph() -> HeteroData:
    r"""The hand-checkable graph of three users and four items, in two clusters each: clicks at the
    times 0 to 6, and every pair as an exposure at time 7."""
    data = HeteroData()
    data['user'].num_nodes = 3
    data['user'].group = torch.tensor([0, 0, 1])
    data['user'].num_group = 2
    data['item'].num_nodes = 4
    data['item'].category = torch.tensor([0, 0, 1, 1])
    data['item'].num_category = 2
    clicks = data['user', 'clicks', 'item']
    clicks.edge_index = torch.tensor([[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 1, 3, 2, 3]])
    clicks.time = torch.arange(7)
    clicks.cutoff = torch.tensor(7)
    clicks.edge_label_index = torch.cartesian_prod(torch.arange(3), torch.arange(4)).t()
    clicks.edge_label = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    clicks.edge_label_time = torch.full((12,), 7)
    return data


@pytest.fixture
def click_log() -> HeteroData:
    r"""A random log of 800 exposures, half of them clicked, with ties in time, repeated pairs, and
    users and items that first appear late."""
    generator = torch.Generator().manual_seed(0)
    num_users, num_items, num_exposures = 25, 15, 800
    time = torch.randint(0, 500, (num_exposures,), generator=generator).sort().values
    share = torch.linspace(0.4, 1, num_exposures)
    user = (torch.rand(num_exposures, generator=generator) * share * num_users).long()
    item = (torch.rand(num_exposures, generator=generator) * share * num_items).long()
    clicked = torch.rand(num_exposures, generator=generator) < 0.5

    data = HeteroData()
    data['user'].num_nodes = num_users
    data['user'].group = torch.arange(num_users) % 3
    data['user'].num_group = 3
    data['item'].num_nodes = num_items
    data['item'].category = torch.arange(num_items) % 4
    data['item'].num_category = 4
    clicks = data['user', 'clicks', 'item']
    clicks.edge_label_index = torch.stack([user, item])
    clicks.edge_label = clicked.float()
    clicks.edge_label_time = time
    clicks.edge_index = clicks.edge_label_index[:, clicked]
    clicks.time = time[clicked]
    return data


@pytest.fixture(scope='session')
def golden_target() -> dict[str, Any]:
    r"""The golden numbers of the counts at the target, derived by two routes that agree: twelve
    exposures (user, item, time, click), and of each view the exposures and clicks strictly before
    each, the rates shrunk with strength 2, and the counts decayed with a half-life of 5."""
    return json.loads(Path(__file__).with_name('golden_target.json').read_text())


@pytest.fixture
def micro() -> Callable[..., HeteroData]:
    r"""Makes five clicks, at the times 1, 2, 2, 5 and 9, with attributes."""

    def make(**attributes: object) -> HeteroData:
        data = HeteroData()
        data['user'].num_nodes = 3
        data['item'].num_nodes = 4
        clicks = data['user', 'clicks', 'item']
        clicks.edge_index = torch.tensor([[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]])
        clicks.time = torch.tensor([1, 2, 2, 5, 9])
        for name, value in attributes.items():
            clicks[name] = value
        return data

    return make
