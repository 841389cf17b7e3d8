r"""What it takes to check files: writing and reading tensors with and without a checksum, in turn.

Without is torch.save to a temporary name, fsync and rename, and torch.load. The kinds of checksum
are compared on the bytes of the same file, which come from the page cache: beside a slow disk a
checksum, which brings them there, costs less.

    python benchmarks speed.checksums --markdown benchmarks/speed/checksums.md
"""

import argparse
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from records import made_here, make_parser, publish, table
from timing import median_ratio, seconds_of, take_turns

from mag.files import checksum, read_tensors, write_tensors

PACKAGES = ('pyg-mag', 'torch')
MIB = 2**20
# What CRC-32 is compared with.
KINDS = ('SHA-256', 'BLAKE2b')


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


def measure(folder: Path, size: int, repeats: int) -> list[str]:
    r"""The cells of a row, for a tensor of so many MiB."""
    path, plain = folder / 'value.pt', folder / 'plain.pt'
    value = {'edge_index': torch.arange(size * MIB // 8).view(2, -1)}
    steps: dict[str, Callable[[], object]] = {
        'write': partial(write_tensors, value, path),
        'write plainly': partial(write_plainly, value, plain),
        'read': partial(read_tensors, path),
        'read plainly': partial(torch.load, plain, weights_only=True),
        'CRC-32': partial(checksum, path),
        'SHA-256': partial(digest, 'sha256', path),
        'BLAKE2b': partial(digest, 'blake2b', path),
    }
    for step in steps.values():
        step()
    seconds = take_turns({name: partial(seconds_of, steps[name]) for name in steps}, repeats)
    cells = [f'{size:,}']
    for name in ('write', 'read'):
        cells.append(f'{1000 * median(seconds[name]):,.1f}')
        cells.append(f'{median_ratio(seconds[name], seconds[f"{name} plainly"]):.2f}')
    cells.append(f'{size / median(seconds["CRC-32"]):,.0f}')
    cells += [f'{median_ratio(seconds[name], seconds["CRC-32"]):.1f}' for name in KINDS]
    return cells


def run(args: argparse.Namespace) -> Iterator[str]:
    yield '# What checksums cost'
    yield ''
    yield (
        f'Writing and reading int64 tensors, against torch.save (with fsync and rename) and '
        f'torch.load of the same; then the checksum alone, against two of a cryptographic kind. '
        f'The median of {args.repeats} runs in turn, and of their ratios.'
    )
    yield ''
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        yield from table(
            [
                'MiB', 'write, ms', 'plainly = 1', 'read, ms', 'plainly = 1', 'CRC-32, MiB/s',
                *(f'{name}, CRC-32 = 1' for name in KINDS),
            ],
            [measure(Path(folder), size, args.repeats) for size in args.sizes],
        )  # fmt: skip
    yield ''
    yield made_here(*PACKAGES)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.checksums', __doc__)
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--sizes', nargs='+', type=int, default=[1, 100, 1000], help='in MiB')
    parser.add_argument('--repeats', type=int, default=7, help='runs of each; default: %(default)s')
    parser.add_argument('--folder', help='where files go; default: that of temporary files')
    args = parser.parse_args(arguments)
    publish(run(args), args.markdown)
