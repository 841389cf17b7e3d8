r"""Work that goes on after a kill: units, each of which is done whole or anew."""

import json
import os
import os.path as osp
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from mag.files import flush, replacing

_T = TypeVar('_T')
# The header of an array, of whatever shape.
_HEADER = 128
_MAGIC = b'\x93NUMPY\x01\x00'


class Units:
    r"""Runs units of work in order, each once.

    A unit computes, and then writes what a second run of it would write again. When all that it
    wrote is on the disk, a marker is renamed into its place, with what it tells later units. After
    a kill at any moment, units that have a marker are skipped, and so the files become those of a
    build that was not killed.

    Args:
        folder (str): Where the files of the build are, and the markers in :obj:`work/done`.
        threads (int): How many units may compute at once. They are written in their order.
        progress (bool): Whether to show bars, with rate and remaining time.
        memory (int, optional): How many bytes units that compute at once may hold together, where
            they tell how many they need. (default: no limit)

    Attributes:
        results (dict): By the name of each unit that is done, what it told.
    """

    def __init__(
        self, folder: str, threads: int, progress: bool, memory: int = sys.maxsize
    ) -> None:
        self.folder = folder
        self.threads = threads
        self.memory = memory
        self.progress = progress
        self._markers = self.path('work/done')
        os.makedirs(self._markers, exist_ok=True)
        self._written: set[str] = set()
        self.results: dict[str, Any] = {}
        for name in os.listdir(self._markers):
            # What a killed process began to write has a longer end.
            if name.endswith('.json'):
                with open(osp.join(self._markers, name), encoding='utf-8') as file:
                    self.results[name.removesuffix('.json')] = json.load(file)

    def path(self, name: str) -> str:
        r"""The path of a file of the build."""
        return osp.join(self.folder, name)

    def wrote(self, path: str) -> None:
        r"""Has a file flushed before the marker of the unit that wrote it."""
        self._written.add(path)

    def run(self, name: str, work: Callable[[], Any]) -> Any:
        r"""Does one unit, or takes what it told.

        Args:
            name (str): Its name.
            work (callable): Writes files, and returns values of JSON.
        """
        if name not in self.results:
            self._finish(name, work())
        return self.results[name]

    def run_all(
        self,
        title: str,
        noun: str,
        sizes: dict[str, int],
        compute: Callable[[str], _T],
        write: Callable[[str, _T], Any],
        needed: Mapping[str, int] | None = None,
    ) -> None:
        r"""Does several units: computes some at once, and writes them in order.

        Args:
            title (str): What the bar is called.
            noun (str): What it counts.
            sizes (dict[str, int]): By the name of each unit, how much work it is.
            compute (callable): From the name of a unit to what is written; it writes nothing.
            write (callable): Writes that, and returns values of JSON.
            needed (dict[str, int], optional): By the name of each unit, how many bytes it needs.
                One that finds no place waits for those before it. (default: :obj:`None`)
        """
        needed = dict.fromkeys(sizes, 0) if needed is None else needed
        todo = deque(name for name in sizes if name not in self.results)
        done = sum(size for name, size in sizes.items() if name in self.results)
        running: deque[tuple[str, Future[_T]]] = deque()
        with (
            tqdm(
                desc=title, total=sum(sizes.values()), initial=done, unit=noun, unit_scale=True,
                disable=not self.progress,
            ) as bar,
            ThreadPoolExecutor(self.threads) as pool,
        ):  # fmt: skip
            while todo or running:
                while todo and len(running) < self.threads:
                    held = sum(needed[name] for name, _ in running)
                    if running and held + needed[todo[0]] > self.memory:
                        break
                    name = todo.popleft()
                    running.append((name, pool.submit(compute, name)))
                name, future = running.popleft()
                self._finish(name, write(name, future.result()))
                # What was written is not held while the next is awaited.
                del future
                bar.update(sizes[name])

    def _finish(self, name: str, result: Any) -> None:
        for path in sorted(self._written):
            flush(path)
        for folder in sorted({osp.dirname(path) for path in self._written}):
            flush(folder)
        self._written.clear()
        marker = osp.join(self._markers, f'{name}.json')
        with replacing(marker) as temporary, open(temporary, 'w', encoding='utf-8') as file:
            json.dump(result, file)
            file.flush()
            os.fsync(file.fileno())
        flush(self._markers)
        self.results[name] = result

    def allocate(self, name: str, dtype: Any, shape: Sequence[int]) -> None:
        r"""Makes a file :obj:`.npy` of zeros, which take no place on the disk until they are
        written; one that is there keeps what it holds."""
        path = self.path(name)
        os.makedirs(osp.dirname(path), exist_ok=True)
        size = _HEADER + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
        with open(path, 'r+b' if osp.exists(path) else 'w+b') as file:
            file.write(_header(dtype, shape))
            file.truncate(size)
        self.wrote(path)

    def write(self, name: str, array: np.ndarray, first: int = 0) -> None:
        r"""Writes values from one place of a file on, which may be where it ends. What a killed
        unit wrote there is overwritten.

        Args:
            name (str): The file.
            array (numpy.ndarray): The values.
            first (int, optional): How many values are before them. (default: :obj:`0`)
        """
        path = self.path(name)
        with open(path, 'r+b' if osp.exists(path) else 'w+b') as file:
            file.seek(_HEADER + first * array.itemsize)
            # Not of np.save: it would copy a view of a mapped file.
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.wrote(path)

    def scatter(self, name: str, array: np.ndarray, first: int, step: int) -> None:
        r"""Writes the values of every so many places of a file."""
        mapped = np.load(self.path(name), mmap_mode='r+')
        mapped[first::step] = array
        self.wrote(self.path(name))

    def read(self, name: str) -> np.ndarray:
        r"""Maps an array that is read."""
        return np.load(self.path(name), mmap_mode='r')


def _header(dtype: Any, shape: Sequence[int]) -> bytes:
    r"""The header of format 1.0 of NumPy, always as long."""
    text = (
        f"{{'descr': {np.lib.format.dtype_to_descr(np.dtype(dtype))!r}, 'fortran_order': False, "
        f"'shape': {tuple(map(int, shape))!r}, }}"
    )
    num_bytes = _HEADER - len(_MAGIC) - 2
    return _MAGIC + num_bytes.to_bytes(2, 'little') + f'{text:<{num_bytes - 1}}\n'.encode()
