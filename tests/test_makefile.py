r"""The recipe of ``make test``, with stand-ins for pip and pytest."""

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which('make') is None, reason='there is no make')

WORKERS = '--numprocesses auto --maxprocesses 4 --dist loadfile'
# Each writes down how it was called. pip finds wheels if the file `wheels` is there.
PIP = """#!/bin/sh
echo "pip $*" >> calls
case $1 in
    install) [ -e wheels ] ;;
    wheel) echo $$ > compiling; . ./compile ;;
esac
"""
PYTEST = """#!/bin/sh
echo "pytest $*" >> calls
echo "a summary"
case "$*" in
    *--collect-only*) exit $CODE_COLLECT ;;
    *'-m not sparse'*) while [ ! -e "$WAIT_FOR" ]; do sleep 0.05; done; exit $CODE_OTHERS ;;
    *'-m sparse'*) exit $CODE_SPARSE ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    r"""What ``make test`` finds where all is installed but torch-scatter and torch-sparse."""
    for name in ('Makefile', 'setup.cfg'):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / 'bin').mkdir()
    for name, script in (('pip', PIP), ('pytest', PYTEST), ('python', '#!/bin/sh\n')):
        (tmp_path / 'bin' / name).write_text(script)
        (tmp_path / 'bin' / name).chmod(0o755)
    (tmp_path / 'compile').write_text('touch wheels\n')
    stamps = tmp_path / '.venv' / 'stamps'
    stamps.mkdir(parents=True)
    count = subprocess.run(['cksum'], input='torch', capture_output=True, text=True).stdout
    for name in (f'torch-{count.split()[0]}', 'mag', 'test'):
        (stamps / name).touch()
    os.utime(tmp_path / 'setup.cfg', (0, 0))
    return tmp_path


def start(folder: Path, arguments: str = '', **codes: int | str) -> subprocess.Popen[str]:
    variables = {
        'CODE_COLLECT': 0,
        'CODE_OTHERS': 0,
        'CODE_SPARSE': 0,
        'WAIT_FOR': 'wheels',
        **codes,
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith('MAKE')}
    environment |= {name: str(value) for name, value in variables.items()}
    environment |= {'XDG_CACHE_HOME': str(folder / 'cache'), 'CXX': 'true'}
    return subprocess.Popen(
        ['make', 'test', 'BIN=bin', 'TORCH=torch', f'PYTEST_ARGS={arguments}'],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell starts what it puts into the background without an ear for Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def run(folder: Path, arguments: str = '', **codes: int | str) -> tuple[int, str, str]:
    r"""The code that the recipe ended with, and what it wrote."""
    process = start(folder, arguments, **codes)
    output, errors = process.communicate(timeout=60)
    code = re.search(r'Error (\d+)', errors)
    assert (process.returncode == 0) == (code is None), errors
    return (0 if code is None else int(code[1])), output, errors


def calls(folder: Path, name: str) -> list[str]:
    lines = (folder / 'calls').read_text().splitlines()
    return [line.removeprefix(f'{name} ') for line in lines if line.startswith(f'{name} ')]


def test_wheels_that_are_there_are_installed_and_all_tests_run_in_one_go(folder: Path) -> None:
    (folder / 'wheels').touch()
    assert run(folder, '-k dice') == (0, 'a summary\n', '')
    (install,) = calls(folder, 'pip')
    assert '--only-binary :all:' in install
    assert install.endswith('torch-scatter==2.1.2 torch-sparse==0.6.18')
    # The second time they are installed.
    assert run(folder, '-k dice') == (0, 'a summary\n', '')
    assert len(calls(folder, 'pip')) == 1
    assert calls(folder, 'pytest') == [f'{WORKERS} -k dice'] * 2


def test_nothing_is_compiled_for_tests_that_do_not_need_it(folder: Path) -> None:
    assert run(folder, '-k dice', CODE_COLLECT=5) == (0, 'a summary\n', '')
    assert not (folder / 'compiling').exists()
    assert calls(folder, 'pytest') == [
        '-k dice -m sparse --collect-only',
        f'{WORKERS} -k dice',
    ]


@pytest.mark.parametrize(
    ('others', 'sparse', 'code'),
    [
        (0, 0, 0),
        (0, 1, 1),
        (1, 0, 1),
        (1, 1, 1),
        # Nothing selected.
        (5, 0, 0),
        (0, 5, 0),
        (5, 1, 1),
        (1, 5, 1),
        (5, 5, 5),
        (0, 4, 4),
    ],
)
def test_other_tests_run_while_it_compiles(
    folder: Path, others: int, sparse: int, code: int
) -> None:
    got, output, errors = run(folder, 'tests/nn', CODE_OTHERS=others, CODE_SPARSE=sparse)
    assert got == code, errors
    assert output.splitlines() == [
        'There are no wheels of torch-scatter and torch-sparse for this torch. They are compiled '
        'beside the tests that need neither: 10 to 20 minutes on two cores, once.',
        'a summary',
        'Waiting for torch-scatter and torch-sparse, which the last tests need.',
        'a summary',
    ]
    assert ('Of the tests before these, some failed' in errors) == (others == 1)
    assert calls(folder, 'pytest')[1:] == [
        f'{WORKERS} tests/nn -m not sparse',
        'tests/nn -m sparse',
    ]
    installs = [call.split()[0] for call in calls(folder, 'pip')]
    assert installs == ['install', 'wheel', 'install']


@pytest.mark.parametrize('others', [0, 1])
def test_a_compilation_that_fails_shows_the_end_of_its_log(folder: Path, others: int) -> None:
    lines = "seq 1 100\necho 'error: no such header' >&2\ntouch failed\nexit 1\n"
    (folder / 'compile').write_text(lines)
    code, output, errors = run(folder, CODE_OTHERS=others, WAIT_FOR='failed')
    assert (code, output.count('a summary')) == (1, 1)
    shown = errors.splitlines()
    assert shown[:40] == [*map(str, range(62, 101)), 'error: no such header']
    assert shown[40] == (
        'torch-scatter and torch-sparse were not compiled: .venv/compile.log ends as above.'
    )
    assert not (folder / '.venv' / 'stamps' / 'sparse').exists()


@pytest.mark.parametrize('code', [2, 3, 4])
def test_nothing_else_runs_where_pytest_itself_fails(folder: Path, code: int) -> None:
    (folder / 'compile').write_text('touch begun; sleep 600\n')
    got, output, _ = run(folder, CODE_OTHERS=code, WAIT_FOR='begun')
    assert (got, output.count('a summary')) == (code, 1)
    assert_dead(int((folder / 'compiling').read_text()))


def test_an_interrupt_ends_the_compilation(folder: Path) -> None:
    (folder / 'compile').write_text('sleep 600 & echo $! > compiler; touch begun; wait\n')
    process = start(folder, WAIT_FOR='never')
    until(lambda: (folder / 'begun').exists())
    # As Ctrl-C does, to all that runs in the foreground.
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    for name in ('compiling', 'compiler'):
        assert_dead(int((folder / name).read_text()))


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_dead(pid: int) -> None:
    def is_dead() -> bool:
        try:
            state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
        except FileNotFoundError:
            return True
        return state == 'Z'

    until(is_dead)
