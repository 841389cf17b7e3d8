r"""The rows of all nodes, which one writer a shard moves and all read."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mag.checks import check_choice, check_integers
from mag.online.closing import Closing
from mag.online.node_rows import RowLayout
from mag.online.pair_runs import pack_pairs
from mag.schema import NEIGHBOR_TYPE

# Of nodes, as those of events.
_BEYOND = 2**31


class Fenced(RuntimeError):
    r"""What a writer is told that no longer holds its shard: it must not write, and who goes on
    claims the shard anew."""


class Claim(NamedTuple):
    r"""What a writer holds.

    Attributes:
        shard (int): The shard.
        epoch (str): What tells this claim from all others, also from those that a power cut has
            taken back.
        position (int): The position in the log that the rows of the shard are as of.
        checksum (int): That of the events before it, by which who goes on knows the log.
    """

    shard: int
    epoch: str
    position: int
    checksum: int = 0


class FeatureCenter(Closing):
    r"""The rows of all nodes, as of a position in the log, and the pairs that have clicked.

    Nodes are shared out among shards, and each shard has one writer. It claims the shard, which
    fences whoever held it, and then commits rows together with the position that they are as of:
    all of it is there or nothing. A crash leaves what was committed last, and who claims the shard
    next goes on from its position, so that each event counts once.

    .. code-block:: python

        with SqliteCenter('features.db', layout) as center:
            claim = center.claim(0)
            rows = center.read('user', nodes)
            ...
            claim = center.commit(claim, position, {'user': (nodes, rows)})

    A centre is used by the thread that made it; others, and other processes, make their own of the
    same rows.

    Args:
        layout (RowLayout): What rows look like. A centre keeps the first that it is made with.

    Raises:
        ValueError: If the centre was made with another layout.
    """

    def __init__(self, layout: RowLayout) -> None:
        if not isinstance(layout, RowLayout):
            raise TypeError(f"'layout' must be a RowLayout, but got {layout!r}.")
        self.layout = layout

    def agree(self, settings: Mapping[str, str]) -> None:
        r"""Keeps settings that the rows depend on, and raises if others were kept before.

        Args:
            settings (Mapping[str, str]): Texts by their names.

        Raises:
            ValueError: Names each setting that differs, with both values.
        """
        there = self._keep_settings(dict(settings))
        differences = [
            f'{name} {there[name]}, not {value}'
            for name, value in settings.items()
            if there[name] != value
        ]
        if differences:
            raise ValueError(
                f'{self!r} has rows that were counted with {"; ".join(differences)}: go on with '
                f'what they were counted with, or count the log anew in another centre.'
            )

    def claim(self, shard: int) -> Claim:
        r"""Takes a shard over. Whoever held it is fenced from then on.

        Args:
            shard (int): Its number, from 0.
        """
        check_integers(0, shard=shard)
        return self._claim(shard)

    def read(self, node_type: str, nodes: np.ndarray) -> np.ndarray:
        r"""The rows of nodes, shape :obj:`[N]`; to a node without one nothing has happened, as to
        an unknown one.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            nodes (numpy.ndarray): Integers, :obj:`-1` for an unknown node, shape :obj:`[N]`.

        Raises:
            IndexError: If a node is less than :obj:`-1`.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        _check_nodes('nodes', nodes, first=-1)
        rows = self.layout.empty(node_type, len(nodes))
        place = np.flatnonzero(nodes >= 0)
        known = nodes[place].tolist()
        found = self._read(node_type, known) if known else []
        is_there = np.array([row is not None for row in found], dtype=bool)
        packed = b''.join(row for row in found if row is not None)
        if len(packed) != int(is_there.sum()) * rows.itemsize:
            raise ValueError(
                f'{self!r} is damaged: {int(is_there.sum())} rows of {node_type}s should have '
                f'{rows.itemsize} bytes each, but have {len(packed)} together.'
            )
        rows[place[is_there]] = np.frombuffer(packed, rows.dtype)
        return rows

    def has_pairs(self, node_type: str, node: np.ndarray, neighbor: np.ndarray) -> np.ndarray:
        r"""Whether pairs were committed, boolean, shape :obj:`[P]`.

        Args:
            node_type (str): The type of the nodes that they were committed of.
            node (numpy.ndarray): The nodes, shape :obj:`[P]`.
            neighbor (numpy.ndarray): Their neighbors, shape :obj:`[P]`.

        Raises:
            IndexError: If a node is negative.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        pairs = _pack_pairs(node, neighbor)
        if len(pairs) == 0:
            return np.zeros(0, bool)
        return np.array(self._has_pairs(node_type, pairs), dtype=bool)

    def commit(
        self,
        claim: Claim,
        position: int,
        rows: Mapping[str, tuple[np.ndarray, np.ndarray]],
        pairs: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
        checksum: int = 0,
    ) -> Claim:
        r"""Writes rows, pairs and the position that they are as of, all or nothing, and returns the
        claim as of there.

        Where an answer was lost, the same may be committed again: it is then written, or
        :class:`Fenced` says that it was.

        Args:
            claim (Claim): What :meth:`claim` returned, or the commit before.
            position (int): The position, not before that of the claim.
            rows (Mapping[str, tuple[numpy.ndarray, numpy.ndarray]]): By node type, nodes and their
                rows, each node once.
            pairs (Mapping[str, tuple[numpy.ndarray, numpy.ndarray]], optional): By node type, nodes
                and the neighbors that they have a click with. (default: :obj:`None`)
            checksum (int, optional): That of the events before the position, see
                :func:`~mag.online.checksum_of`. (default: :obj:`0`, that of none)

        Raises:
            Fenced: If another has claimed the shard since, or its rows are as of another position.
            IndexError: If a node is negative.
            TypeError: If rows are of another type than those of the layout.
            ValueError: If the position is before that of the claim.
        """
        check_integers(claim.position, 2**62, position=position)
        check_integers(0, 2**32, checksum=checksum)
        packed = {}
        for node_type, (nodes, of_nodes) in rows.items():
            check_choice(NEIGHBOR_TYPE, **{'node type of rows': node_type})
            _check_nodes('nodes', nodes)
            dtype = self.layout.dtypes[node_type]
            if not isinstance(of_nodes, np.ndarray) or of_nodes.dtype != dtype:
                raise TypeError(f'Rows of {node_type}s must be an array of {dtype} of the layout.')
            if of_nodes.shape != nodes.shape:
                raise ValueError(
                    f'Rows of {node_type}s must be one a node, but got {of_nodes.shape} rows of '
                    f'{nodes.shape} nodes.'
                )
            # A list of bytes, made without a loop.
            content = np.ascontiguousarray(of_nodes).view(f'V{dtype.itemsize}').tolist()
            packed[node_type] = (nodes.tolist(), content)
        packed_pairs = {}
        for node_type, (node, neighbor) in (pairs or {}).items():
            check_choice(NEIGHBOR_TYPE, **{'node type of pairs': node_type})
            packed_pairs[node_type] = _pack_pairs(node, neighbor)
        moved = claim._replace(position=position, checksum=checksum)
        self._commit(claim, moved, packed, packed_pairs)
        return moved

    @abstractmethod
    def positions(self) -> dict[int, int]:
        r"""The position that the rows of each shard are as of that was claimed."""

    @abstractmethod
    def _keep_settings(self, settings: dict[str, str]) -> dict[str, str]:
        r"""Keeps those that are not there yet, and returns what is there."""

    @abstractmethod
    def _claim(self, shard: int) -> Claim:
        r"""Sets an epoch that there never was, and returns it, the position and the checksum, at
        once."""

    @abstractmethod
    def _read(self, node_type: str, nodes: list[int]) -> list[bytes | None]:
        r"""The packed row of each node, at once, or nothing."""

    @abstractmethod
    def _has_pairs(self, node_type: str, pairs: np.ndarray) -> Any:
        r"""Whether each pair is there, in their order."""

    @abstractmethod
    def _commit(
        self,
        claim: Claim,
        moved: Claim,
        rows: dict[str, tuple[list[int], list[bytes]]],
        pairs: dict[str, np.ndarray],
    ) -> None:
        r"""Writes all of it, with the position and the checksum of :obj:`moved`, or raises
        :class:`Fenced` and writes nothing, unless epoch and position are those of the claim until
        then."""

    def _fenced(self, claim: Claim) -> Fenced:
        return Fenced(
            f'{self!r} takes no commit of the claim of shard {claim.shard} as of position '
            f'{claim.position}: another has claimed it since, or its rows are as of another '
            f'position. Claim it anew.'
        )


def _pack_pairs(node: np.ndarray, neighbor: np.ndarray) -> np.ndarray:
    r"""One number a pair, int64."""
    _check_nodes('node', node)
    _check_nodes('neighbor', neighbor)
    if node.shape != neighbor.shape:
        raise ValueError(
            f'Pairs must have a neighbor for each node, but got {node.shape} nodes and '
            f'{neighbor.shape} neighbors.'
        )
    return pack_pairs(node, neighbor)


def _check_nodes(name: str, nodes: np.ndarray, first: int = 0) -> None:
    if not isinstance(nodes, np.ndarray) or nodes.dtype.kind not in 'iu' or nodes.ndim != 1:
        given = (
            f'{nodes.dtype} of shape {list(nodes.shape)}'
            if isinstance(nodes, np.ndarray)
            else type(nodes).__name__
        )
        raise TypeError(f"'{name}' must be an array of integers of shape [N], but got {given}.")
    if len(nodes) > 0 and (nodes.min() < first or nodes.max() >= _BEYOND):
        raise IndexError(
            f"'{name}' must lie from {first} to {_BEYOND - 1}, but are from {nodes.min()} to "
            f'{nodes.max()}.'
        )
