r"""How a benchmark of speed tells what it measured, and on which machine."""

import os
import platform
import shlex
import sys
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path


def made_by(script: str, packages: Iterable[str]) -> str:
    r"""The last line of a table: its command, machine, date and versions."""
    command = shlex.join(['python', f'benchmarks/{script}', *sys.argv[1:]])
    versions = ', '.join(f'{name} {version(name)}' for name in packages)
    return (
        f'Made by `{command}` on {processor()} with {os.cpu_count()} cores, '
        f'{date.today().isoformat()}, {versions}.'
    )


def processor() -> str:
    r"""The name of this machine's processor."""
    path = Path('/proc/cpuinfo')
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(':')[1].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.processor() or platform.machine()


def publish(lines: Iterable[str], path: str | None) -> None:
    r"""Prints a report, or replaces a file by it, whole."""
    text = '\n'.join(lines) + '\n'
    if path is None:
        print(text, end='')
        return
    temporary = f'{path}.tmp'
    Path(temporary).write_text(text)
    os.replace(temporary, path)
