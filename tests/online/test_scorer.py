import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from mag.online import EVENT, Replica, Scorer, Snapshot, SqliteStream
from mag.pipeline import Pipeline

CONTEXT = {'count_net': {'device': 'phone'}, 'macgnn': None}
MODELS = tuple(CONTEXT)


def serve(pipeline: Pipeline, folder: Path) -> tuple[Scorer, SqliteStream]:
    r"""A scorer of a new snapshot, and the log that it follows, which holds the history."""
    stream = SqliteStream(folder / 'events.db')
    stream.append(pipeline.events(), 0)
    snapshot = Snapshot.open(pipeline.snapshot(folder / 'snapshots'))
    model = pipeline.model
    model.load_state_dict(snapshot.weights())
    return Scorer(snapshot, Replica(snapshot, stream), model), stream


def follow(scorer: Scorer) -> None:
    while scorer.replica.follow(100) > 0:
        pass


def ids(pipeline: Pipeline, node: str) -> list[Any]:
    return pipeline._known().raw(node).tolist()


@pytest.mark.parametrize('model', MODELS)
def test_right_after_the_snapshot_batches_and_scores_are_those_of_the_pipeline(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    scorer, _ = serve(pipeline, tmp_path)
    items = [*ids(pipeline, 'item'), 'nothing']
    for user in [*ids(pipeline, 'user'), 'nobody']:
        expected = pipeline.batch(user, items, context=CONTEXT[model])
        batch = scorer.batch(user, items, CONTEXT[model])
        assert type(batch) is type(expected)
        for name, value in expected._asdict().items():
            for one, other in zip(_tensors(value), _tensors(getattr(batch, name)), strict=True):
                assert one.dtype == other.dtype and torch.equal(one, other), name
        answer = scorer.score(user, items, CONTEXT[model])
        scores = pipeline.score(user, items, context=CONTEXT[model])
        # What is kept of items was computed in batches of other sizes.
        tolerance = 1e-6 if model == 'macgnn' else 0
        assert (answer.probabilities['click'] - scores).abs().max() <= tolerance
        assert answer.position == len(pipeline.events()) and answer.degraded is None
    # A context for each item.
    if model == 'count_net':
        for each in (['phone', 'tablet', 'watch', None] * 10, np.array(['phone', 'tablet'] * 20)):
            found = scorer.score('m7', items[:40], {'device': each}).probabilities['click']
            scores = pipeline.score('m7', items[:40], context={'device': each})
            assert torch.equal(found, scores)


def _tensors(value: Any) -> list[torch.Tensor]:
    if value is None:
        return []
    return [value] if isinstance(value, torch.Tensor) else list(value)


def events_of_known(pipeline: Pipeline, num: int) -> np.ndarray:
    r"""Later events of which no node gets a cluster that had none."""
    random = np.random.default_rng(5)
    summary, events = pipeline.summary(), np.empty(num, EVENT)
    events['time'] = int(pipeline.events()['time'][-1]) + np.arange(num) // 3
    events['clicked'] = random.random(num) < 0.5
    history = pipeline.events()
    for node in ('user', 'item'):
        events[node] = random.integers(0, summary[f'{node}s'], num)
        was_clicked = np.unique(history[node][history['clicked'] == 1])
        events['clicked'] &= np.isin(events[node], was_clicked)
    return events


def update(pipeline: Pipeline, events: np.ndarray, folder: Path) -> Pipeline:
    r"""A pipeline that has read events from a file."""
    names = {node: pipeline._known().raw(node) for node in ('user', 'item')}
    lines = ['uid,sku,ts,clicked,kind,device']
    for user, item, time, clicked in events.tolist():
        sku = names['item'][item]
        kind = int(sku[1:]) % 4
        lines.append(f'{names["user"][user]},{sku},{time},{clicked},k{kind},phone')
    (folder / 'new.csv').write_text('\n'.join(lines))
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', ".* repeat another row's user")
        return pipeline.update(str(folder / 'new.csv'))


def test_after_further_events_scores_are_those_of_an_updated_pipeline(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('count_net')
    scorer, stream = serve(pipeline, tmp_path)
    before = scorer.score('m7', ids(pipeline, 'item'), CONTEXT['count_net'])
    events = events_of_known(pipeline, 400)
    assert 20 < events['clicked'].sum() < 380
    end = stream.append(events, stream.end)
    follow(scorer)
    update(pipeline, events, tmp_path)
    items = [*ids(pipeline, 'item'), 'nothing']
    for user in [*ids(pipeline, 'user'), 'nobody']:
        answer = scorer.score(user, items, CONTEXT['count_net'])
        scores = pipeline.score(user, items, context=CONTEXT['count_net'])
        assert torch.equal(answer.probabilities['click'], scores)
        assert answer.position == end
    after = scorer.score('m7', items[:-1], CONTEXT['count_net'])
    assert not torch.equal(before.probabilities['click'], after.probabilities['click'])


def test_after_further_events_a_pair_batch_has_the_rows_of_an_updated_pipeline(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    r"""All but hop 2 of items, which moves by what an item gets itself."""
    pipeline = shop('macgnn')
    scorer, stream = serve(pipeline, tmp_path)
    events = events_of_known(pipeline, 400)
    stream.append(events, stream.end)
    follow(scorer)
    update(pipeline, events, tmp_path)
    items = ids(pipeline, 'item')
    for user in ids(pipeline, 'user'):
        batch, expected = scorer.batch(user, items), pipeline.batch(user, items)
        for name in ('user', 'item', 'user_recent', 'item_recent'):
            assert torch.equal(getattr(batch, name), getattr(expected, name))
        for one, other in zip(batch.user_hops, expected.user_hops, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(batch.item_hops[0], expected.item_hops[0])
        # Nothing is counted that has not happened.
        assert bool((batch.item_hops[1] <= expected.item_hops[1]).all())
    assert not torch.equal(batch.item_hops[1], expected.item_hops[1])


@pytest.mark.parametrize('model', MODELS)
def test_the_next_snapshot_has_the_rows_that_the_replica_of_the_former_has(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    scorer, stream = serve(pipeline, tmp_path)
    events = events_of_known(pipeline, 400)
    end = stream.append(events, stream.end)
    follow(scorer)
    update(pipeline, events, tmp_path)
    following = Snapshot.open(pipeline.snapshot(tmp_path / 'snapshots'))
    assert following.position == end and following.path != scorer.snapshot.path
    assert following.time == scorer.replica.time == events['time'][-1]
    for node, rows in following.rows.items():
        assert scorer.replica.rows(node, np.arange(len(rows))).tobytes() == rows.tobytes()
    for place, table in following.cells.items():
        np.testing.assert_array_equal(scorer.replica.cells[place], table)


@pytest.mark.parametrize('model', MODELS)
def test_events_of_new_users_and_items_are_served(
    model: str,
    shop: Callable[[str], Any],
    later_events: Callable[..., np.ndarray],
    tmp_path: Path,
) -> None:
    pipeline = shop(model)
    scorer, stream = serve(pipeline, tmp_path)
    stream.append(later_events(pipeline, 500), stream.end)
    follow(scorer)
    items = [*ids(pipeline, 'item'), 'nothing']
    for user in [*ids(pipeline, 'user'), 'nobody']:
        found = scorer.score(user, items, CONTEXT[model]).probabilities['click']
        assert bool(((found > 0) & (found < 1)).all())


@pytest.mark.parametrize('model', MODELS)
def test_an_exported_program_is_served(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    scorer, _ = serve(pipeline, tmp_path)
    pipeline.export(tmp_path / 'model.pt2')
    program = torch.export.load(tmp_path / 'model.pt2').module(check_guards=False)
    exported = Scorer(scorer.snapshot, scorer.replica, program)
    items = [*ids(pipeline, 'item'), 'nothing']
    torch.testing.assert_close(
        exported.score('m7', items, CONTEXT[model]).probabilities,
        scorer.score('m7', items, CONTEXT[model]).probabilities,
    )


SERVE = """
import sys
import torch
from mag.online import Replica, Scorer, Snapshot, SqliteStream

folder, stream, program, out = sys.argv[1:]
snapshot = Snapshot.open(folder).verify()
model = torch.export.load(program).module(check_guards=False)
scorer = Scorer(snapshot, Replica(snapshot, SqliteStream(stream)), model)
while scorer.replica.follow() > 0:
    pass
answer = scorer.score('m7', snapshot.id_maps['item'].decode(range(20)), {'device': 'phone'})
torch.save(answer._asdict(), out)
print(*sorted({'mag.models', 'mag.pipeline', 'mag.training', 'lightning'} & set(sys.modules)))
"""


def test_another_process_serves_without_the_models_of_mag(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('count_net')
    scorer, stream = serve(pipeline, tmp_path)
    pipeline.export(tmp_path / 'model.pt2')
    stream.append(events_of_known(pipeline, 50), stream.end)
    names = scorer.snapshot.path, stream.path, tmp_path / 'model.pt2', tmp_path / 'answer.pt'
    # A new interpreter, which has imported nothing.
    command = [sys.executable, '-c', SERVE, *map(str, names)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == '\n'
    follow(scorer)
    answer = torch.load(tmp_path / 'answer.pt', weights_only=True)
    expected = scorer.score('m7', ids(pipeline, 'item')[:20], CONTEXT['count_net'])
    assert answer['position'] == expected.position == stream.end
    torch.testing.assert_close(answer['probabilities'], expected.probabilities)


class Gone(SqliteStream):
    r"""A log whose file is on a disk that has failed."""

    is_gone = False

    def read(self, position: int, limit: int = 8192, checksum: int | None = None) -> np.ndarray:
        if self.is_gone:
            raise OSError('the disk is gone')
        return super().read(position, limit, checksum)


@pytest.mark.parametrize('model', MODELS)
def test_without_the_log_answers_say_so(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    events = events_of_known(pipeline, 30)
    stream = Gone(tmp_path / 'events.db')
    position = stream.append(pipeline.events(), 0)
    snapshot = Snapshot.open(pipeline.snapshot(tmp_path))
    scorer = Scorer(snapshot, Replica(snapshot, stream), pipeline.model)
    stream.append(events[:10], position)
    follow(scorer)
    fresh = scorer.score('m7', ['m3', 'm4'], CONTEXT[model])
    stream.append(events[10:], position + 10)
    stream.is_gone = True
    assert scorer.replica.follow() == 0
    answer = scorer.score('m7', ['m3', 'm4'], CONTEXT[model])
    assert answer.degraded == f'OSError at position {position + 10}: the disk is gone'
    assert answer.position == fresh.position == position + 10 and fresh.degraded is None
    assert torch.equal(answer.probabilities['click'], fresh.probabilities['click'])
    stream.is_gone = False
    assert scorer.replica.follow() == 20
    assert scorer.score('m7', ['m3'], CONTEXT[model])[1:] == (position + 30, None)


def test_a_log_that_was_trimmed_or_lost_events_degrades_a_replica(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('macgnn')
    snapshot = Snapshot.open(pipeline.snapshot(tmp_path))
    with SqliteStream(tmp_path / 'other.db') as stream:
        stream.append(pipeline.events()[:10], 0)
        replica = Replica(snapshot, stream)
        assert replica.follow() == 0 and replica.position == snapshot.position
        assert replica.degraded is not None
        assert 'ends at position 10, but was read from position' in replica.degraded


@pytest.mark.parametrize(
    ('call', 'error', 'message'),
    [
        (lambda s: s.score('m1', ['m1'] * 2001, {'device': 'phone'}), ValueError, 'at most 2000'),
        (lambda s: s.score(['m1', 'm2'], ['m1'], {'device': 'phone'}), ValueError, 'one user'),
        (lambda s: s.score('m1', ['m1']), ValueError, "must tell ['device'], but told nothing"),
        (lambda s: s.score('m1', ['m1'], {'device': ['a', 'b']}), ValueError, 'but got 2'),
        (lambda s: s.score('m1', ['m1'], 'phone'), TypeError, "dictionary of names, but got 'ph"),
        (
            lambda s: Scorer(s.snapshot, s.replica, torch.nn.Linear(1, 1)),
            ValueError,
            'Linear is in training mode: call model.eval()',
        ),
        (lambda s: Scorer(s.snapshot, s.replica, cast(Any, 3)), TypeError, 'but got int'),
        (lambda s: s.replica.rows('shop', np.array([1])), ValueError, "got 'shop'"),
        (lambda s: s.replica.rows('user', np.array([-2])), IndexError, 'user ids'),
        (lambda s: s.replica.rows('user', [1]), TypeError, 'must be an array of int64'),
        (lambda s: s.replica.hop_2('user', np.array([1])), ValueError, 'holds no hop 2'),
    ],
)
def test_bad_requests_are_refused(
    call: Callable[[Scorer], Any],
    error: type[Exception],
    message: str,
    shop: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    scorer, _ = serve(shop('count_net'), tmp_path)
    with pytest.raises(error, match=re.escape(message)):
        call(scorer)
