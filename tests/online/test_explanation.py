from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mag.online import Replica, Scorer, Snapshot, SnapshotRanker, SqliteStream
from mag.online.explanation import EdgeCounts, click_probability, heaviest_edges, without_blocks
from mag.schema import NEIGHBOR_TYPE

CONTEXT: dict[str, Any] = {'count_net': {'device': 'phone'}, 'macgnn': {}}
BLOCKS = {
    'count_net': (
        'user id', 'item id', 'item_category', 'device', 'user', 'item', 'user x item_cluster',
        'user x item_cluster_5', 'user_cluster x item', 'user_cluster_3 x item',
        'user_cluster x item_cluster', 'user_cluster x item_cluster_5',
        'user_cluster_3 x item_cluster', 'user_cluster_3 x item_cluster_5',
    ),
    'macgnn': (
        'user id', 'user hop 1', 'user hop 2', 'user recent',
        'item id', 'item hop 1', 'item hop 2', 'item recent',
    ),
}  # fmt: skip


class Served:
    r"""A snapshot, and the log that goes on after it."""

    def __init__(self, model: str, shop: Callable[[str], Any], later: Any, folder: Path) -> None:
        self.pipeline, self.context = shop(model), CONTEXT[model]
        self.snapshot = Snapshot.open(self.pipeline.snapshot(folder / 'snapshots'))
        self.events = np.concatenate([self.pipeline.events(), later(self.pipeline, 200)])
        self.model, self.folder, self.num_logs = self.pipeline.model, folder, 0
        self.scorer = self.scorer_of()
        self.users, self.items = (
            [*self.snapshot.id_maps[node].decode(range(self.snapshot.num_nodes[node])), *unknown]
            for node, unknown in (('user', ['nobody']), ('item', ['nothing', 'nothing else']))
        )

    def scorer_of(self, *more: tuple[int, int, int, int]) -> Scorer:
        r"""One that has read the log and further events, which are really there."""
        self.num_logs += 1
        stream = SqliteStream(self.folder / f'{self.num_logs}.db')
        stream.append(self.events, 0)
        stream.append(np.array([*more], self.events.dtype), len(self.events))
        scorer = Scorer(self.snapshot, Replica(self.snapshot, stream), self.model)
        while scorer.replica.follow() > 0:
            pass
        assert scorer.replica.position == len(self.events) + len(more)
        return scorer

    def ranker(self) -> SnapshotRanker:
        return SnapshotRanker(self.scorer_of)

    def number(self, node: str, raw: str) -> int:
        r"""The number of a raw id, and that of the next one where it is unknown."""
        found = int(self.snapshot.id_maps[node].encode([raw])[0])
        return found if found >= 0 else int(self.events[node][self.events[node] < 2**30].max()) + 1


@pytest.fixture(scope='module', params=BLOCKS)
def served(
    request: pytest.FixtureRequest,
    shop: Callable[[str], Any],
    later_events: Callable[..., np.ndarray],
    tmp_path_factory: pytest.TempPathFactory,
) -> Served:
    return Served(request.param, shop, later_events, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def ranker(served: Served) -> Iterator[SnapshotRanker]:
    ranker = served.ranker()
    yield ranker
    ranker.close()


def probability(model: Any, batch: Any) -> np.ndarray:
    with torch.inference_mode():
        return model(batch).double().sigmoid().numpy()


def by_hand(scorer: Scorer, batch: Any, block: str) -> Any:
    r"""A batch that lacks a block, written out."""
    size = len(batch.item)
    if scorer.snapshot.model == 'macgnn':
        node, what = block.split(' ', 1)
        if what == 'id':
            return batch._replace(**{node: torch.tensor([-1] * size)})
        if what == 'recent':
            return batch._replace(**{f'{node}_recent': torch.tensor([[-1] * 20] * size)})
        hops = list(getattr(batch, f'{node}_hops'))
        for row in (copied := hops[int(what[-1]) - 1].clone()):
            row *= 0
        hops[int(what[-1]) - 1] = copied
        return batch._replace(**{f'{node}_hops': tuple(hops)})
    sparse, counts = batch.sparse.clone(), batch.counts.clone()
    fields = 'user id', 'item id', 'item_category', 'device'
    for row in range(size):
        if block in fields:
            sparse[row, fields.index(block)] = -1
        else:
            counts[row, BLOCKS['count_net'].index(block) - len(fields)] = torch.zeros(2)
    return batch._replace(sparse=sparse, counts=counts)


def test_without_a_block_a_score_is_that_of_a_batch_without_it(
    served: Served, ranker: SnapshotRanker
) -> None:
    for user in (*served.users[:8], 'nobody'):
        explained = ranker.explain(user, served.items, 0, served.context, 0)
        assert explained.blocks == BLOCKS[served.snapshot.model]
        batch = served.scorer.batch(user, served.items, served.context)
        np.testing.assert_array_equal(
            explained.ranked.probability, probability(served.model, batch)
        )
        assert explained.ranked == _but_probability(
            explained.ranked, ranker.rank(user, served.items, 0, served.context)
        )
        assert explained.without.shape == (len(served.items), len(explained.blocks))
        for column, block in enumerate(explained.blocks):
            want = probability(served.model, by_hand(served.scorer, batch, block))
            np.testing.assert_allclose(explained.without[:, column], want, rtol=1e-5)
            if user == served.users[7]:
                assert np.abs(want - explained.ranked.probability).max() > 1e-6, block


def test_a_question_about_no_items_has_an_empty_answer(
    served: Served, ranker: SnapshotRanker
) -> None:
    assert ranker.rank('m7', [], 0, served.context).probability.shape == (0,)
    explained = ranker.explain('m7', [], 0, served.context, 3)
    assert explained.without.shape == (0, len(explained.blocks)) and explained.items == ()
    before, after = ranker.what_if('m7', [], 0, served.context, 'm1')
    assert before.probability.shape == after.probability.shape == (0,)


def _but_probability(ranked: Any, other: Any) -> Any:
    r"""Another ranking with the array of the first, as arrays are not compared by one word. Where
    states of items are kept, what is ranked is rounded otherwise."""
    np.testing.assert_allclose(other.probability, ranked.probability, rtol=1e-6)
    return type(ranked)(**{**vars(other), 'probability': ranked.probability})


def test_blocks_are_read_together_as_far_as_rows_allow() -> None:
    class Model(torch.nn.Module):
        sizes: list[int] = []

        def forward(self, batch: Any) -> torch.Tensor:
            self.sizes.append(len(batch.item))
            return batch.item.float()

    from mag.loader import ExposureBatch

    def blanked(number: int, size: int) -> Iterator[tuple[str, ExposureBatch]]:
        for place in range(number):
            column = torch.arange(size) + 3 * place
            yield f'b{place}', ExposureBatch(column, column, column[:, None], column[:, None])

    model = Model()
    names, without = without_blocks(model, blanked(5, 2000), 2000)
    assert names == ('b0', 'b1', 'b2', 'b3', 'b4') and model.sizes == [4000, 4000, 2000]
    want = torch.sigmoid((torch.arange(2000)[:, None] + 3 * torch.arange(5)).double())
    np.testing.assert_array_equal(without, want.numpy())
    model.sizes.clear()
    without_blocks(model, blanked(3, 5000), 5000)
    without_blocks(model, blanked(30, 10), 10)
    assert model.sizes == [5000, 5000, 5000, 300]


def test_the_heaviest_edges_are_those_of_the_rows(served: Served, ranker: SnapshotRanker) -> None:
    r"""Of stock and of events since, most neighbors first, by a loop over all clusters."""
    snapshot, replica = served.snapshot, served.scorer.replica

    def edges(node: str, raw: str, num_edges: int) -> list[tuple[int, int, int]]:
        at, found = int(snapshot.id_maps[node].encode([raw])[0]), []
        if at < 0:
            return []
        now = replica.rows(node, np.array([at]))[0]
        for cluster in range(snapshot.layout.num_clusters[NEIGHBOR_TYPE[node]][0]):
            before = int(snapshot.rows[node][at]['pairs'][cluster])
            found.append((cluster, before, int(now['pairs'][cluster]) - before))
        found = [edge for edge in found if edge[1] + edge[2] > 0]
        return sorted(found, key=lambda edge: (-edge[1] - edge[2], edge[0]))[:num_edges]

    num_live = 0
    for user in (*served.users[:4], 'nobody'):
        for num_edges in (0, 1, 3, 100):
            explained = ranker.explain(user, served.items, 0, served.context, num_edges)
            for node, raw, told in (
                ('user', user, explained.user),
                *(('item', *of) for of in zip(served.items, explained.items, strict=True)),
            ):
                columns = told.clusters, told.stock, told.live
                assert all(column.dtype == np.int64 for column in columns)
                found = list(zip(*(column.tolist() for column in columns), strict=True))
                assert found == edges(node, raw, num_edges)
                num_live += int(told.live.sum())
    assert num_live > 100
    with pytest.raises(ValueError, match="'num_edges' must be at least 0, but got -1"):
        ranker.explain('m7', served.items, 0, served.context, -1)


def test_equally_heavy_edges_are_in_the_order_of_clusters() -> None:
    random = np.random.default_rng(0)
    total = random.integers(0, 4, (300, 17))
    total[0], total[1, 5] = 0, 2**32 - 1
    stock = random.integers(0, total + 1)
    for num_edges in (0, 1, 5, 16, 17, 10**9):
        for row, edges in enumerate(heaviest_edges(EdgeCounts(stock, total), num_edges)):
            order = sorted(range(17), key=lambda cluster: (-total[row, cluster], cluster))
            order = [cluster for cluster in order if total[row, cluster] > 0][:num_edges]
            assert edges.clusters.tolist() == order
            np.testing.assert_array_equal(edges.stock, stock[row, order])
            np.testing.assert_array_equal(edges.live, (total - stock)[row, order])


def state(replica: Replica) -> list[bytes]:
    r"""All that a replica holds."""
    nodes = {name: np.append(np.arange(number + 5), 2**31 - 1)
             for name, number in replica.snapshot.num_nodes.items()}  # fmt: skip
    held = [replica.rows(name, of).tobytes() for name, of in nodes.items()]
    if replica.snapshot.hop_2:
        held += [replica.hop_2(name, of).tobytes() for name, of in nodes.items()]
    held += [table.tobytes() for table in replica.cells.values()]
    return [
        *held,
        repr(
            (replica.position, replica.time, [run.tolist() for run in replica._pairs._runs])
        ).encode(),
    ]


def test_what_if_answers_what_is_answered_after_the_click_was_recorded(
    served: Served, ranker: SnapshotRanker
) -> None:
    r"""To the last bit: of clicks on what was clicked before, before and after the snapshot, and on
    what was not, by known and unknown users, on known and unknown items."""
    clicks = served.events[served.events['clicked'] == 1]
    known = clicks[
        (clicks['user'] < served.snapshot.num_nodes['user'])
        & (clicks['item'] < served.snapshot.num_nodes['item'])
    ]
    again = [(served.users[click['user']], served.items[click['item']]) for click in known]
    random = np.random.default_rng(1)
    cases = {
        # Before the snapshot, and after it.
        *again[:3], *again[-3:],
        *(('nobody', item) for item in (*served.items[:2], 'nothing')),
        *((user, 'nothing') for user in served.users[:3]),
        *((served.users[u], served.items[i]) for u, i in random.integers(0, 40, (12, 2))),
    }  # fmt: skip
    is_there = {(user, item) in again for user, item in cases}
    assert is_there == {True, False}
    before = state(ranker.scorer.replica)
    num_moved = 0
    for user, clicked in sorted(cases):
        event = (served.number('user', user), served.number('item', clicked), 2**40, 1)
        recorded = served.scorer_of(event)
        # What is clicked is one of the items, and is none.
        for items in (served.items, [item for item in served.items[::3] if item != clicked]):
            earlier, later = ranker.what_if(user, items, 0, served.context, clicked)
            for found, scorer in ((earlier, served.scorer), (later, recorded)):
                batch = scorer.batch(user, items, served.context)
                np.testing.assert_array_equal(
                    found.probability, click_probability(scorer.model, batch)
                )
                # Where states of items are kept, up to rounding.
                want = scorer.score(user, items, served.context).probabilities['click'].numpy()
                np.testing.assert_allclose(found.probability, want, rtol=1e-6)
            assert (earlier.position, earlier.snapshot) == (later.position, later.snapshot)
            assert earlier.position == len(served.events)
            num_moved += int((earlier.probability != later.probability).sum())
        # All of a batch, which the model may not tell apart.
        after = ranker.scorer.after_click(user, clicked)
        for asked in (user, served.users[11], 'nobody'):
            one, other = (
                scorer.batch(asked, served.items, served.context) for scorer in (after, recorded)
            )
            for name, value in one._asdict().items():
                pair = _tensors(value), _tensors(getattr(other, name))
                assert all(torch.equal(*both) for both in zip(*pair, strict=True)), name
    assert num_moved > 500
    assert state(ranker.scorer.replica) == before


def _tensors(value: Any) -> list[torch.Tensor]:
    if value is None:
        return []
    return [value] if isinstance(value, torch.Tensor) else list(value)


def test_bad_questions_are_refused(served: Served, ranker: SnapshotRanker) -> None:
    with pytest.raises(ValueError, match='IdMap of texts|text'):
        ranker.what_if('m7', ['m1'], 0, served.context, b'm1')  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'item' must be the id of one item, but got"):
        ranker.what_if('m7', ['m1'], 0, served.context, ['m1', 'm2'])  # type: ignore[arg-type]
    for ask in (
        lambda: ranker.explain('m7', ['m1'], 0, {'weather': 'wet'}, 3),
        lambda: ranker.what_if('m7', ['m1'], 0, {'weather': 'wet'}, 'm1'),
    ):
        with pytest.raises(ValueError, match="'context' must tell"):
            ask()
    ranker.close()
    with pytest.raises(RuntimeError, match='is closed'):
        ranker.what_if('m7', ['m1'], 0, served.context, 'm1')
