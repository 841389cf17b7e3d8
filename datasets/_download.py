r"""Files from elsewhere, of which the content is compared and none is run."""

import os
import os.path as osp
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape, glob
from urllib.request import urlopen
from zipfile import BadZipFile, ZipFile

from tqdm import tqdm

from mag.datasets._fingerprint import hash_file


@contextmanager
def emptied(folder: str) -> Iterator[str]:
    r"""Gives an empty folder, whatever a killed process left there, and deletes it at the end."""
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(url: str, path: str, log: bool) -> None:
    r"""Downloads a file, and shows progress if :obj:`log` says so."""
    with urlopen(url, timeout=10) as response, open(path, 'wb') as file:
        size = int(response.headers.get('Content-Length') or 0)
        with tqdm(
            total=size or None,
            desc=f'Downloading {url}',
            unit='B',
            unit_scale=True,
            disable=not log,
        ) as progress:
            while block := response.read(1 << 20):
                progress.update(file.write(block))


def check_hash(path: str, algorithm: str, expected: str) -> None:
    r"""Raises an :class:`OSError` unless a file has the hash that is expected."""
    found = hash_file(path, algorithm)
    if found != expected:
        raise OSError(
            f'the {algorithm} of {osp.basename(path)} must be {expected}, but got {found}'
        )


def download_wheel(wheel: str, sha256: str, folder: str) -> str:
    r"""Downloads the wheel of a package, runs nothing that is in it, and returns its path.

    Args:
        wheel (str): The package and its version, such as :obj:`'recbole==1.2.1'`.
        sha256 (str): Its hash.
        folder (str): Where to put it.

    Raises:
        OSError: If it cannot be had, or has another hash.
    """
    # pip takes a hash from a file alone. It compares what it has fetched before it opens it,
    # and a wheel is no more than opened, where a source package would be run.
    pinned = osp.join(folder, 'requirements.txt')
    with open(pinned, 'w', encoding='utf-8') as file:
        file.write(f'{wheel} --hash=sha256:{sha256}\n')
    options = '--no-deps --only-binary=:all: --require-hashes --quiet --disable-pip-version-check'
    command = [sys.executable, '-m', 'pip', 'download', *options.split(), '--retries', '1']
    command += ['--dest', folder, '--requirement', pinned]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = glob(osp.join(escape(folder), '*.whl'))
    if done.returncode or not wheels:
        raise OSError(_explain_pip(done.stderr, wheel, sha256))
    check_hash(wheels[0], 'sha256', sha256)
    return wheels[0]


def extract(archive: str, members: list[str], staging: str, folder: str) -> None:
    r"""Unpacks members of an archive into a folder, by way of :obj:`staging` on the same disk.

    Raises:
        OSError: If they cannot be unpacked.
    """
    # The paths are made here, so that no name in an archive says where a file is written.
    extracted = [osp.join(staging, osp.basename(member)) for member in members]
    try:
        with ZipFile(archive) as file:
            for member, path in zip(members, extracted):
                with file.open(member) as source, open(path, 'wb') as target:
                    shutil.copyfileobj(source, target)
    except (BadZipFile, EOFError, KeyError, RuntimeError, zlib.error) as error:
        raise OSError(f'{osp.basename(archive)} cannot be unpacked: {error.args[0]}') from error
    os.makedirs(folder, exist_ok=True)
    # The first comes last: a folder that has it has the others.
    for path in reversed(extracted):
        os.replace(path, osp.join(folder, osp.basename(path)))


def _explain_pip(errors: str, wheel: str, sha256: str) -> str:
    found = re.search(r'^ *Got +([0-9a-f]{64})$', errors, re.MULTILINE)
    if found:
        return f'the sha256 of {wheel} must be {sha256}, but got {found.group(1)}'
    last = (errors.strip().splitlines() or ['no wheel came'])[-1]
    return re.sub(r' \(from -r .*\)$', '', last)
