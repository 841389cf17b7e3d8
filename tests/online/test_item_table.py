import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from mag.online import EVENT, Replica, Scorer, Snapshot, SnapshotRanker, SqliteStream
from mag.online.item_table import ItemTable, SplitBatch, SplitModel
from mag.pipeline import Pipeline

Serve = Callable[..., tuple[Scorer, SqliteStream]]


@pytest.fixture
def pipeline(shop: Callable[[str], Any]) -> Pipeline:
    return cast(Pipeline, shop('macgnn'))


@pytest.fixture
def serve(pipeline: Pipeline, tmp_path: Path) -> Serve:
    def make(**options: Any) -> tuple[Scorer, SqliteStream]:
        stream = SqliteStream(tmp_path / 'events.db')
        stream.append(pipeline.events(), 0)
        snapshot = Snapshot.open(pipeline.snapshot(tmp_path / 'snapshots'))
        model = pipeline.model
        model.load_state_dict(snapshot.weights())
        # So that what is read shows in the scores.
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.mul_(3 if 'embedding' in name else 1)
        return Scorer(snapshot, Replica(snapshot, stream), model, **options), stream

    return make


def names(pipeline: Pipeline, node: str) -> list[Any]:
    return pipeline._known().raw(node).tolist()


def of_pairs(scorer: Scorer, user: Any, items: list[Any]) -> Tensor:
    r"""The oracle: the model called on all pairs."""
    with torch.inference_mode():
        return scorer.model(scorer.batch(user, items)).double().sigmoid()


def kept(scorer: Scorer) -> ItemTable:
    assert scorer.table is not None
    return scorer.table


def test_scores_are_those_of_all_pairs_whatever_was_asked_and_happened_before(
    pipeline: Pipeline, serve: Serve, later_events: Callable[..., np.ndarray]
) -> None:
    scorer, stream = serve()
    random = np.random.default_rng(0)
    users = [*names(pipeline, 'user'), 'nobody']
    items = [*names(pipeline, 'item'), 'nothing', 'nothing more']
    events = later_events(pipeline, 300)
    worst = 0.0
    for start in range(0, 300, 5):
        stream.append(events[start : start + 5], stream.end)
        scorer.replica.follow()
        for number in (0, 1, 2, 7, 60):
            user = users[random.integers(len(users))]
            asked = [items[place] for place in random.integers(0, len(items), number)]
            found = scorer.score(user, asked).probabilities['click']
            expected = of_pairs(scorer, user, asked)
            assert found.shape == (number,)
            worst = max(worst, float((found - expected).abs().max()) if number else 0.0)
    assert worst <= 1e-6


def test_only_what_moved_is_computed_again(
    pipeline: Pipeline, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    r"""An event moves the state of its item, in the very next answer, and of no other."""
    scorer, stream = serve()
    asked: list[list[int]] = []
    item_state = scorer.model.item_state

    def counted(item: Tensor, *rows: Any) -> Tensor:
        asked.append(item.tolist())
        return cast(Callable[..., Tensor], item_state)(item, *rows)

    monkeypatch.setattr(scorer.model, 'item_state', counted)
    items = [*names(pipeline, 'item')[2:30], 'nothing']
    first = scorer.score('nobody', items).probabilities['click']
    assert asked == [[-1, *range(2, 30)]]
    assert torch.equal(scorer.score('nobody', items).probabilities['click'], first)
    assert len(asked) == 1
    last = int(pipeline.events()['time'][-1])
    # Two items that are asked for, and one that is not, and who is asked about has clicked none.
    clicks = np.array([(20, item, last + 1, 1) for item in (5, 33, 9)], EVENT)
    stream.append(clicks, stream.end)
    scorer.replica.follow()
    second = scorer.score('nobody', items).probabilities['click']
    assert asked[1:] == [[5, 9]]
    is_same = (second == first).tolist()
    assert [item for item, same in zip(range(2, 31), is_same, strict=True) if not same] == [5, 9]
    assert (second - of_pairs(scorer, 'nobody', items)).abs().max() <= 1e-6
    # A state that was not computed anew is seen as one.
    assert (second - first).abs().max() > 1e-5
    scorer.score('m8', [*items, names(pipeline, 'item')[33]])
    assert asked[2:] == [[33]]


def test_what_was_read_stays_as_it_was_while_other_threads_go_on(
    pipeline: Pipeline, serve: Serve, later_events: Callable[..., np.ndarray]
) -> None:
    scorer, stream = serve()
    items = names(pipeline, 'item')
    read = scorer.read('m7', items)
    assert isinstance(read, SplitBatch)
    expected = of_pairs(scorer, 'm7', items)
    stream.append(later_events(pipeline, 200), stream.end)
    scorer.replica.follow()
    after = scorer.score('m7', items).probabilities['click']
    found: list[Tensor] = []

    def finish() -> None:
        with torch.inference_mode():
            found.append(scorer.logits(read).click.double().sigmoid())

    thread = threading.Thread(target=finish)
    thread.start()
    thread.join()
    assert (found[0] - expected).abs().max() <= 1e-6
    assert (after - expected).abs().max() > 1e-5


def test_threads_that_ask_while_events_come_are_answered_as_of_one_position(
    pipeline: Pipeline, serve: Serve, later_events: Callable[..., np.ndarray]
) -> None:
    scorer, stream = serve()
    start = stream.end
    users, items = names(pipeline, 'user'), names(pipeline, 'item')
    path, snapshot = stream.path, scorer.snapshot
    made = SnapshotRanker(
        lambda: Scorer(snapshot, Replica(snapshot, SqliteStream(path)), scorer.model)
    )
    events = later_events(pipeline, 120)
    answers: list[tuple[str, int, np.ndarray]] = []

    def ask(user: str) -> None:
        for _ in range(25):
            ranked = made.rank(user, items, 0, {})
            answers.append((user, ranked.position, ranked.probability))

    interval = sys.getswitchinterval()
    try:
        sys.setswitchinterval(1e-5)
        threads = [threading.Thread(target=ask, args=(user,)) for user in users[:4]]
        for thread in threads:
            thread.start()
        for place in range(0, 120, 3):
            stream.append(events[place : place + 3], start + place)
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
        made.close()
    assert len(answers) == 100
    # One event at a time, so that every position is met.
    for position in range(start, start + 121):
        for user, _, found in (of for of in answers if of[1] == position):
            assert np.abs(found - of_pairs(scorer, user, items).numpy()).max() <= 1e-6
        scorer.replica.follow(1)


def test_a_table_that_takes_more_than_it_may_is_not_kept(pipeline: Pipeline, serve: Serve) -> None:
    scorer, _ = serve()
    numbers = scorer.snapshot.layout.num_clusters
    # Embedding, second hop, weights, and 20 recent users with their masks.
    size = 4 + 8 + numbers['user'][0] + 20 * (4 + 1)
    num_bytes = (4 * size + 8) * (scorer.snapshot.num_nodes['item'] + 1)
    assert kept(scorer).num_bytes == num_bytes
    exact = Scorer(scorer.snapshot, scorer.replica, scorer.model, max_bytes=num_bytes)
    assert exact.table is not None
    less = Scorer(scorer.snapshot, scorer.replica, scorer.model, max_bytes=num_bytes - 1)
    assert less.table is None
    items = [*names(pipeline, 'item'), 'nothing']
    plain = less.score('m7', items).probabilities['click']
    assert torch.equal(plain, of_pairs(scorer, 'm7', items))
    assert (scorer.score('m7', items).probabilities['click'] - plain).abs().max() <= 1e-6
    for wrong, error in ((-1, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match="'max_bytes' must be"):
            Scorer(scorer.snapshot, scorer.replica, scorer.model, max_bytes=cast(int, wrong))


def test_who_scores_in_two_steps(shop: Callable[[str], Any]) -> None:
    assert isinstance(shop('macgnn').model, SplitModel)
    assert not isinstance(shop('count_net').model, SplitModel)
