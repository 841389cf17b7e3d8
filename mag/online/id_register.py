r"""The numbers of ids that came after the first snapshot."""

import uuid
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mag.checks import check_choice, check_integers, check_keys
from mag.id_map import IdMap
from mag.online.closing import Closing
from mag.schema import NEIGHBOR_TYPE

# Of an id in UTF-8.
_MOST_BYTES = 256
# Of nodes, as events hold them.
_BEYOND = 2**31
# Ids that are read at once.
_NUM_TOGETHER = 8192


class Registered(NamedTuple):
    r"""What ids were given.

    Attributes:
        numbers (dict[str, numpy.ndarray]): By node type, the number of each id, int64, shape
            :obj:`[N]`.
        num_new (int): How many ids had none before.
    """

    numbers: dict[str, np.ndarray]
    num_new: int


class IdRegister(Closing):
    r"""Gives users and items that came after the first snapshot of a log the numbers by which its
    events name them: those after the numbers of the snapshot, in the order in which they come.

    .. code-block:: python

        with SqliteIdRegister('events.db') as register:
            register.begin(snapshot.id_maps)
            register.add({'user': ['zoe'], 'item': []}).numbers['user']

    An id keeps its number. Several producers may ask at once: one of them gives it, and all are
    told the same. It stands beside the log, in the same file or server, and an id is there before
    the events that name it: a kill between the two leaves an id without events.

    As in an :class:`~mag.datasets.IdMap`, integers, texts and UUIDs are compared by what is
    written, so that :obj:`7` and :obj:`'7'` are one id. They have 1 to 256 bytes.

    A register is used by the thread that made it; others, and other processes, make their own of
    the same one.
    """

    _first: dict[str, int] | None = None

    def begin(self, ids: Mapping[str, IdMap]) -> None:
        r"""Has numbers follow those of a snapshot, once: a later snapshot goes on from the same
        ids.

        Args:
            ids (Mapping[str, IdMap]): The ids of its users and items, among others.

        Raises:
            ValueError: If the register has begun with other ids.
        """
        found = self._begin({node: ids[node].fingerprint for node in NEIGHBOR_TYPE})
        for node, fingerprint in found.items():
            if fingerprint not in ids[node].lineage.split():
                raise ValueError(
                    f'{self!r} goes on from the {node} ids {fingerprint}, but was given '
                    f'{ids[node].fingerprint}, which do not: use a later snapshot, or another log.'
                )

    @property
    def first(self) -> dict[str, int]:
        r"""By node type, the first number that is given here.

        Raises:
            ValueError: If the register has not begun.
        """
        # They never change, and are asked for each time that ids are read.
        if self._first is None:
            if not (found := self._begun()):
                raise ValueError(f'{self!r} has not begun: call begin with the ids of a snapshot.')
            self._first = {node: int(found[node].partition(':')[0]) for node in NEIGHBOR_TYPE}
        return self._first

    @property
    def has_begun(self) -> bool:
        r"""Whether :meth:`begin` was called, here or elsewhere."""
        return bool(self._begun())

    def add(self, ids: Mapping[str, Sequence[Any]]) -> Registered:
        r"""The numbers of ids, which get one where they have none.

        Args:
            ids (Mapping[str, Sequence]): For :obj:`"user"` and :obj:`"item"`, or one of them, raw
                ids that the first snapshot does not have, also repeatedly.

        Raises:
            TypeError: If an id is neither an integer, a text nor a UUID.
            ValueError: If one is empty, longer than 256 bytes or no Unicode, the register has not
                begun, or there are no numbers left.
        """
        check_keys(set(NEIGHBOR_TYPE).intersection(ids), ids=ids)
        raw = {node: _packed(node, ids.get(node, ())) for node in NEIGHBOR_TYPE}
        distinct = {node: list(dict.fromkeys(of_node)) for node, of_node in raw.items()}
        numbers, num_new = {}, 0
        if any(distinct.values()):
            found, num_new = self._add(distinct)
            for node, of_node in raw.items():
                by_id = dict(zip(distinct[node], found[node], strict=True))
                numbers[node] = np.fromiter(map(by_id.__getitem__, of_node), np.int64, len(of_node))
                if (numbers[node] >= _BEYOND).any():
                    raise ValueError(f'{self!r} has no number left for another {node}.')
        return Registered({node: numbers.get(node, np.empty(0, np.int64)) for node in ids}, num_new)

    def read(self, node_type: str, number: int, limit: int = _NUM_TOGETHER) -> list[str]:
        r"""The ids from a number on, as texts, in order: as many as there are up to a limit, and
        none at the end.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            number (int): The number of the first of them.
            limit (int, optional): How many at most. (default: :obj:`8192`)

        Raises:
            ValueError: If the register has not begun, or :obj:`number` is one of the first
                snapshot.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        check_integers(0, number=number)
        check_integers(1, limit=limit)
        if number < (first := self.first[node_type]):
            raise ValueError(
                f'{self!r} gives {node_type}s numbers from {first} on, but was asked for {number}: '
                f'the first snapshot has that id.'
            )
        return [raw.decode() for raw in self._read(node_type, number, limit)]

    @abstractmethod
    def _begin(self, fingerprints: dict[str, str]) -> dict[str, str]:
        r"""Keeps the fingerprints of users and items if there are none; returns those that are
        there then."""

    @abstractmethod
    def _begun(self) -> dict[str, str]:
        r"""The fingerprints that are there, or none."""

    @abstractmethod
    def _add(self, ids: dict[str, list[bytes]]) -> tuple[dict[str, list[int]], int]:
        r"""The numbers of ids, each once, and how many are new, in one transaction. One beyond what
        32 bits hold is told, but not given."""

    @abstractmethod
    def _read(self, node_type: str, number: int, limit: int) -> list[bytes]:
        r"""At most :obj:`limit` ids from a number on."""


class NewIds:
    r"""The ids of a register that a snapshot does not have, in the memory of who scores.

    Args:
        register (IdRegister): The register.
        num_nodes (Mapping[str, int]): How many users and items the snapshot has.
    """

    def __init__(self, register: IdRegister, num_nodes: Mapping[str, int]) -> None:
        self.register = register
        self._num_nodes = {node: num_nodes[node] for node in NEIGHBOR_TYPE}
        self._numbers: dict[str, dict[str, int]] = {node: {} for node in NEIGHBOR_TYPE}
        self._last = dict.fromkeys(NEIGHBOR_TYPE, '')

    def follow(self) -> None:
        r"""Reads the ids that have come since."""
        for node, numbers in self._numbers.items():
            while True:
                end, num_again = self._num_nodes[node] + len(numbers), min(len(numbers), 1)
                some = self.register.read(node, end - num_again, _NUM_TOGETHER)
                # A server that lost the last seconds gives their numbers to others.
                if num_again and some[:1] != [self._last[node]]:
                    numbers.clear()
                    continue
                numbers.update(zip(some[num_again:], range(end, end + len(some))))
                self._last[node] = some[-1] if some else ''
                if len(some) < _NUM_TOGETHER:
                    break

    def find(self, node_type: str, raw: Iterable[Any]) -> np.ndarray:
        r"""The numbers of raw ids, :obj:`-1` for those that are not there, shape :obj:`[N]`."""
        numbers = self._numbers[node_type]
        # Of others, such as None, str() would make an id that somebody has.
        texts = [str(value) if _is_id(value) else '' for value in raw]
        return np.array([numbers.get(text, -1) for text in texts], np.int64)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, np.integer, str, uuid.UUID)) and not isinstance(value, bool)


def _packed(node: str, raw: Any) -> list[bytes]:
    r"""What is written of ids, in UTF-8."""
    values = raw.tolist() if hasattr(raw, 'tolist') else list(raw)
    if others := [value for value in values if not _is_id(value)]:
        raise TypeError(f'Ids of {node}s must be integers, texts or UUIDs, but got {others[0]!r}.')
    try:
        packed = [str(value).encode() for value in values]
    except UnicodeError as error:
        raise ValueError(f'Ids of {node}s must be Unicode, but {error}.') from error
    is_long = [not 1 <= len(value) <= _MOST_BYTES for value in packed]
    if any(is_long):
        value = packed[is_long.index(True)]
        raise ValueError(
            f'Ids of {node}s must have 1 to {_MOST_BYTES} bytes, but {sum(is_long)} of '
            f'{len(packed)} have not, such as {value[:20].decode(errors="ignore")!r} with '
            f'{len(value)} bytes.'
        )
    return packed
