r"""What every benchmark writes: records of runs in JSON, Markdown tables, and what made them."""

import argparse
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Results:
    r"""Records of runs in a JSON file that is replaced whole after each, so that a kill loses at
    most the run at work."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: list[Record] = json.loads(path.read_text()) if path.exists() else []

    def find(self, **wanted: Any) -> list[Record]:
        return select(self.records, **wanted)

    def append(self, record: Record) -> None:
        self.records.append(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write(self.path, json.dumps(self.records, indent=1) + '\n')


def select(records: list[Record], **wanted: Any) -> list[Record]:
    return [
        record
        for record in records
        if all(record.get(name) == value for name, value in wanted.items())
    ]


def stamp(*packages: str) -> Record:
    r"""When and how a record was made."""
    return {
        'date': date.today().isoformat(),
        'command': command(),
        'commit': commit(),
        'packages': {name: installed(name) for name in packages},
    }


def installed(package: str) -> str:
    r"""The version of a package, or that it is not installed, but run from its folder, say."""
    try:
        return version(package)
    except PackageNotFoundError:
        return 'not installed'


def made_by(records: list[Record]) -> Iterable[str]:
    r"""The last lines of a table of records: their commands, dates, commits and versions."""
    commands = sorted({record['command'] for record in records})
    dates = sorted({record['date'] for record in records})
    found = [f'{name} {number}' for name, number in records[0]['packages'].items()]
    # Records of before have none.
    found += sorted({f'commit {record["commit"]}' for record in records if record.get('commit')})
    yield 'Made by ' + ' and '.join(f'`{command}`' for command in commands) + ','
    yield f'{" to ".join(dict.fromkeys([dates[0], dates[-1]]))}, {", ".join(found)}.'


def made_here(*packages: str) -> str:
    r"""The last line of a table of timings: its command, machine, date, commit and versions."""
    made = stamp(*packages)
    found = [made['date'], *(f'{name} {number}' for name, number in made['packages'].items())]
    if made['commit'] is not None:
        found.append(f'commit {made["commit"]}')
    return (
        f'Made by `{made["command"]}` on {processor()} with {os.cpu_count()} cores, '
        f'{", ".join(found)}.'
    )


def command() -> str:
    r"""The command that this process was started by."""
    return shlex.join(['python', 'benchmarks', *sys.argv[1:]])


def commit() -> str | None:
    r"""The commit of the code that runs, or :obj:`None` outside of a repository or without git."""
    if shutil.which('git') is None:
        return None
    found = subprocess.run(
        ['git', 'describe', '--always', '--dirty'],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    return found.stdout.strip() or None


def processor() -> str:
    r"""The name of this machine's processor."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = '---') -> list[str]:
    r"""The lines of a Markdown table.

    Args:
        header: The titles of the columns.
        rows: The cells, row by row.
        align: What stands below all titles but the first; ``'---:'`` puts cells to the right.
    """
    lines = [header, ['---'] + [align] * (len(header) - 1), *rows]
    return [f'| {" | ".join(line)} |' for line in lines]


def write(path: Path, text: str) -> None:
    r"""Replaces a file, whole."""
    temporary = path.with_name(f'{path.name}.tmp')
    temporary.write_text(text, encoding='utf-8')
    os.replace(temporary, path)


def publish(lines: Iterable[str], path: Path | None) -> None:
    r"""Prints a report, or replaces a file by it."""
    text = '\n'.join(lines) + '\n'
    if path is None:
        print(text, end='')
    else:
        write(path, text)


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    r"""The parser of a benchmark.

    Args:
        name: Its module, such as ``'speed.gmcm'``.
        description: The docstring of the module.
    """
    return argparse.ArgumentParser(
        prog=f'python benchmarks {name}',
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
