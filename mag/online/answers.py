r"""What a ranker answers, as messages."""

from typing import Any

import numpy as np

from mag.online import ranking_pb2
from mag.online.messages import MAX_MESSAGE
from mag.online.ranker import Explained, MacroEdges, Ranked


def rank_response(ranked: Ranked, num_items: int) -> ranking_pb2.RankResponse:
    r"""The message of scores.

    Args:
        ranked (Ranked): The scores.
        num_items (int): How many items were asked.

    Raises:
        RuntimeError: If there is not one finite score for each.
    """
    return ranking_pb2.RankResponse(
        probabilities=_finite(ranked.probability, num_items),
        position=ranked.position,
        snapshot=ranked.snapshot,
        degraded=ranked.degraded,
    )


def explain_response(explained: Explained, num_items: int) -> ranking_pb2.ExplainResponse:
    r"""The message of scores and what moves them.

    Args:
        explained (Explained): Both.
        num_items (int): How many items were asked.

    Raises:
        RuntimeError: If an item lacks a finite score, with or without a block, or its edges.
        ValueError: If the message would be longer than one may be.
    """
    if len(explained.items) != num_items:
        raise RuntimeError(
            f'A ranker must tell the edges of {num_items} items, but did of {len(explained.items)}.'
        )
    response = ranking_pb2.ExplainResponse(
        ranking=rank_response(explained.ranked, num_items),
        blocks=explained.blocks,
        without=_finite(explained.without, num_items, len(explained.blocks)),
        user=_edges(explained.user),
        items=map(_edges, explained.items),
    )
    if (size := response.ByteSize()) > MAX_MESSAGE:
        raise ValueError(
            f'What moves the scores of {num_items} items would take {size} bytes, of '
            f'{MAX_MESSAGE} that an answer may take: ask for up to '
            f'{max(1, num_items * MAX_MESSAGE // size)} items at once, or for fewer edges.'
        )
    return response


def what_if_response(ranked: tuple[Ranked, Ranked], num_items: int) -> ranking_pb2.WhatIfResponse:
    r"""The message of scores as things are, and after a click.

    Args:
        ranked (tuple[Ranked, Ranked]): Both.
        num_items (int): How many items were asked.

    Raises:
        RuntimeError: If there is not one finite score for each.
    """
    before, after = (rank_response(of, num_items) for of in ranked)
    return ranking_pb2.WhatIfResponse(before=before, after=after)


def _finite(values: Any, *shape: int) -> list[float]:
    found = np.asarray(values, np.float32)
    if found.shape != shape or not np.isfinite(found).all():
        raise RuntimeError(
            f'A ranker must answer with finite numbers of shape {list(shape)}, but answered with '
            f'{values}.'
        )
    return found.reshape(-1).tolist()


def _edges(edges: MacroEdges) -> ranking_pb2.MacroEdges:
    return ranking_pb2.MacroEdges(
        clusters=edges.clusters.tolist(), stock=edges.stock.tolist(), live=edges.live.tolist()
    )
