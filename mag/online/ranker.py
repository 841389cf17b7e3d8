r"""What a server asks of what scores, and what it is answered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Ranked:
    r"""The scores of one request, and what they stand on.

    Args:
        probability (numpy.ndarray): How likely each item is clicked, shape :obj:`[N]`.
        position (int): The position in the log that the features are as of.
        snapshot (str): The name of the snapshot that answered.
        degraded (tuple[str, ...], optional): Why the answer is not as fresh or as good as it could
            be, in names of which there are few. (default: :obj:`()`)
        num_unknown (int, optional): How many ids of the request nothing is known of.
            (default: :obj:`0`)
        lag (int, optional): How many events of the log come after :obj:`position`, where that is
            known. (default: :obj:`None`)
        lag_seconds (float, optional): For how long the first of them has been there, in seconds,
            as far as is known. (default: :obj:`None`)
        snapshot_time (float, optional): The time of the last event that the snapshot was made of,
            in seconds since 1970. (default: :obj:`None`)
        hop_2_events (int, optional): Of a model that reads hop 2, how many events before
            :obj:`position` have moved that of items by their own clicks alone: those after the
            snapshot. (default: :obj:`None`)
        hop_2_age (float, optional): Of how many seconds these events are. (default: :obj:`None`)
        has_exact_hop_2 (bool, optional): Whether hop 2 of the user is as of :obj:`position`, or,
            as it has too many items, such as that of an item. (default: :obj:`None`)
    """

    probability: np.ndarray
    position: int
    snapshot: str
    degraded: tuple[str, ...] = ()
    num_unknown: int = 0
    lag: int | None = None
    lag_seconds: float | None = None
    snapshot_time: float | None = None
    hop_2_events: int | None = None
    hop_2_age: float | None = None
    has_exact_hop_2: bool | None = None


@dataclass(frozen=True)
class MacroEdges:
    r"""The clusters in which a node has the most clicked neighbors, heaviest first.

    Args:
        clusters (numpy.ndarray): The clusters, int64, shape :obj:`[E]`.
        stock (numpy.ndarray): How many neighbors the snapshot counted in each, int64, shape
            :obj:`[E]`.
        live (numpy.ndarray): How many events after the snapshot have added, int64, shape
            :obj:`[E]`.
    """

    clusters: np.ndarray
    stock: np.ndarray
    live: np.ndarray


@dataclass(frozen=True)
class Explained:
    r"""The scores of one request, and what moves them.

    Args:
        ranked (Ranked): The scores.
        blocks (tuple[str, ...]): The names of the parts of what the model reads.
        without (numpy.ndarray): How likely each item would be clicked if the model did not read
            each block, shape :obj:`[N, len(blocks)]`.
        user (MacroEdges): The heaviest edges of the user.
        items (tuple[MacroEdges, ...]): Those of each item.
    """

    ranked: Ranked
    blocks: tuple[str, ...]
    without: np.ndarray
    user: MacroEdges
    items: tuple[MacroEdges, ...]


@dataclass(frozen=True)
class Offers:
    r"""What a page offers to be asked.

    Args:
        users (Sequence[int or str]): Raw ids, those with the most clicks first.
        items (Sequence[int or str]): Likewise.
        contexts (Mapping[str, Sequence[int or str]]): Of each context that a request must tell,
            some of its values.
    """

    users: Sequence[int | str]
    items: Sequence[int | str]
    contexts: Mapping[str, Sequence[int | str]]


class Ranker(Protocol):
    r"""What :class:`~mag.online.Server` asks, from several threads at once."""

    def rank(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
    ) -> Ranked:
        r"""Scores items for a user.

        Args:
            user (int or str): The raw id of the user.
            items (Sequence[int] or Sequence[str]): Those of the items, at least one.
            time (int): When they are shown, in seconds.
            context (Mapping[str, str | int | float]): What else is known of the request.

        Raises:
            ValueError: If the request is a bad one, in a sentence for who asked.
        """

    def close(self) -> None:
        r"""Called once, after the last answer."""


class Explainer(Ranker, Protocol):
    r"""A ranker that tells what its scores stand on, too."""

    def explain(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
        num_edges: int,
    ) -> Explained:
        r"""Scores items for a user, with and without each block of what the model reads.

        Args and errors are those of :meth:`Ranker.rank`.

        Args:
            num_edges (int): How many macro edges of each node are told at most.
        """

    def what_if(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
        clicked: int | str,
    ) -> tuple[Ranked, Ranked]:
        r"""Scores items for a user as things are, and as they were after one more click.

        Args and errors are those of :meth:`Ranker.rank`.

        Args:
            clicked (int or str): The raw id of the item that is clicked.
        """

    def offers(self, number: int) -> Offers:
        r"""What a page offers to be asked.

        Args:
            number (int): How many values of a kind at most.
        """
