r"""What it takes to check files: writing and reading tensors with and without a checksum, in turn.

Without is torch.save to a temporary name, fsync and rename, and torch.load. The kinds of checksum
are compared on the bytes of the same file, which come from the page cache: beside a slow disk a
checksum, which brings them there, costs less.

    python benchmarks/checksums.py --markdown benchmarks/checksums.md
"""

import argparse
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from report import made_by, publish
from tqdm import tqdm

from mag.files import checksum, read_tensors, write_tensors

PACKAGES = ('pyg-mag', 'torch')
MIB = 2**20


def write_plainly(value: object, path: Path) -> None:
    temporary = path.with_suffix('.tmp')
    with open(temporary, 'wb') as file:
        torch.save(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def digest(name: str, path: Path) -> None:
    content = hashlib.new(name)
    with open(path, 'rb') as file:
        while block := file.read(MIB):
            content.update(block)


def measure(steps: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    r"""Seconds of each step, which take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(repeats):
        for name, step in steps.items():
            start = perf_counter()
            step()
            seconds[name].append(perf_counter() - start)
    return seconds


def ratio(first: list[float], second: list[float]) -> float:
    return median(a / b for a, b in zip(first, second))


def run(args: argparse.Namespace) -> Iterator[str]:
    yield '# What checksums cost'
    yield ''
    yield (
        f'Writing and reading int64 tensors, against torch.save (with fsync and rename) and '
        f'torch.load of the same; then the checksum alone, against two of a cryptographic kind. '
        f'The median of {args.repeats} runs in turn, and of their ratios.'
    )
    yield ''
    yield (
        '| MiB | write, ms | plainly = 1 | read, ms | plainly = 1 | CRC-32, MiB/s | '
        'SHA-256, CRC-32 = 1 | BLAKE2b, CRC-32 = 1 |'
    )
    yield '| --- | --- | --- | --- | --- | --- | --- | --- |'
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path, plain = Path(folder, 'value.pt'), Path(folder, 'plain.pt')
        for size in tqdm(args.sizes):
            value = {'edge_index': torch.arange(size * MIB // 8).view(2, -1)}
            seconds = measure(
                {
                    'write': lambda: write_tensors(value, path),  # noqa: B023
                    'write plainly': lambda: write_plainly(value, plain),  # noqa: B023
                    'read': lambda: read_tensors(path),
                    'read plainly': lambda: torch.load(plain, weights_only=True),
                    'CRC-32': lambda: checksum(path),
                    'SHA-256': lambda: digest('sha256', path),
                    'BLAKE2b': lambda: digest('blake2b', path),
                },
                args.repeats,
            )
            cells = [f'{size:,}']
            for name in ('write', 'read'):
                cells.append(f'{1000 * median(seconds[name]):,.1f}')
                cells.append(f'{ratio(seconds[name], seconds[f"{name} plainly"]):.2f}')
            cells.append(f'{size / median(seconds["CRC-32"]):,.0f}')
            for name in ('SHA-256', 'BLAKE2b'):
                cells.append(f'{ratio(seconds[name], seconds["CRC-32"]):.1f}')
            yield f'| {" | ".join(cells)} |'
    yield ''
    yield made_by('checksums.py', PACKAGES)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--markdown', help='file to write; default: print')
    parser.add_argument('--sizes', nargs='+', type=int, default=[1, 100, 1000], help='in MiB')
    parser.add_argument('--repeats', type=int, default=7, help='runs of each, default: 7')
    parser.add_argument('--folder', help='where files go; default: that of temporary files')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    publish(run(args), args.markdown)


if __name__ == '__main__':
    main()
