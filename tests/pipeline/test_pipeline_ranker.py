import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')

from mag.command_line import main  # noqa: E402
from mag.datasets import LogSchema  # noqa: E402
from mag.online import EVENT, AsyncClient, Client, SqliteStream, swap  # noqa: E402
from mag.pipeline import Pipeline  # noqa: E402
from mag.pipeline.pipeline_ranker import PipelineLoader, PipelineRanker, is_pipeline  # noqa: E402
from mag.pipeline.serving import make_server  # noqa: E402
from mag.transforms import TemporalSplit  # noqa: E402

COLUMNS = {
    'user': 'uid', 'item': 'sku', 'time': 'ts', 'label': 'clicked', 'category': 'kind',
    'conversion': 'bought', 'behaviors': ['in_cart', 'wished'], 'query': 'search',
    'contexts': ['device'], 'features': ['price'], 'separators': {'query': '+'},
}  # fmt: skip
ITEMS = {'id': 'sku', 'modalities': ['image'], 'separators': {'image': ' '}}
ARGUMENTS: dict[str, dict[str, Any]] = {
    'count_net': {'groups': {'user': [4], 'item': ['category', 5]}, 'embedding_dim': 4},
    'macgnn': {'groups': {'user': 4, 'item': 5}, 'embedding_dim': 4},
    'gmcm': {'tower_channels': [16, 8]},
    'srjgraph': {'widths': {'user': [3, 1], 'item': [1, 3]}, 'id_dim': 4},
    'hyperctr': {'granularity': 150, 'embedding_dim': 8},
    'simcen': {'hidden_channels': [24, 24], 'num_buckets': 4},
}
# A query comes as a text, a number as one, or, from a command, as a text.
CONTEXT = {'device': 'phone', 'query': 'green tea+hot', 'price': 0.5}
NUM_EVENTS = 600


def write(path: Path, start: int, stop: int, prefix: str = 'm') -> Path:
    r"""Events of users and items, the first of which have names that begin otherwise."""
    random = np.random.default_rng(start)
    lines = ['uid,sku,ts,clicked,kind,device,price,search,bought,in_cart,wished']
    for second in range(start, stop):
        user, item = random.integers(0, 20, 2)
        name = f'{prefix if user < 5 else "m"}{user}'
        clicked = int(random.random() < (0.7 if (user + item) % 3 == 0 else 0.2))
        behaviors = ','.join(str(clicked * int(random.random() < 0.5)) for _ in range(3))
        device, search = ('phone', 'tablet')[second % 2], ('green tea+hot', 'rice', '')[second % 3]
        lines.append(
            f'{name},m{item},{second},{clicked},k{item % 4},{device},{random.random():.3f},'
            f'{search},{behaviors}'
        )
    path.write_text('\n'.join(lines) + '\n')
    return path


@pytest.fixture(scope='module')
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    r"""The folder of a pipeline of a model, which is fitted once."""
    folder = tmp_path_factory.mktemp('pipelines')
    old = write(folder / 'old.csv', 0, NUM_EVENTS)
    write(folder / 'new.csv', NUM_EVENTS, NUM_EVENTS + 60, 'new')
    image = np.random.default_rng(1).normal(size=(20, 3)).round(3)
    lines = [f'm{item},{" ".join(map(str, row))}' for item, row in enumerate(image)]
    (folder / 'items.csv').write_text('\n'.join(['sku,image', *lines]) + '\n')
    schema = LogSchema(
        str(old), COLUMNS, items={'path': str(folder / 'items.csv'), 'columns': ITEMS}
    )

    def fit(name: str) -> Path:
        if not (folder / name).exists():
            windows = 3 if name in ('count_net', 'macgnn') else 1
            split = TemporalSplit(0.3, 0.7, 0.85, num_windows=windows, keep_cold=windows == 1)
            options = {'batch_size': 256, 'max_epochs': 1, **ARGUMENTS[name]}
            Pipeline(name, split, **options).fit(schema, progress=False).save(folder / name)
        return folder / name

    return fit


@pytest.fixture(params=ARGUMENTS)
def folder(request: Any, fitted: Callable[[str], Path]) -> Path:
    return fitted(request.param)


def questions(pipeline: Pipeline) -> Iterator[tuple[Any, Any, dict[str, Any]]]:
    items = [*pipeline._known().raw('item').tolist(), 'nothing']
    for user in ('m7', 'm11', 'nobody'):
        for query in ('green tea+hot', 'never+rice', ''):
            yield user, items, CONTEXT | {'query': query}


def test_a_server_answers_what_a_pipeline_scores(folder: Path) -> None:
    r"""By the wire, with ids and terms that are unknown, also to several who ask at once."""
    pipeline = Pipeline.load(folder)
    later = NUM_EVENTS + 1000
    asked = [(*question, when) for question in questions(pipeline) for when in (None, later)]
    want = [
        pipeline.score(user, items, when, context).numpy() for user, items, context, when in asked
    ]

    async def ask() -> None:
        server = make_server(folder, port=0, admin_port=0, max_in_flight=len(asked))
        await server.start()
        try:
            async with AsyncClient(f'127.0.0.1:{server.port}') as client:
                answers = await asyncio.gather(
                    *(
                        # A time that is past is that of the second after the last event.
                        client.rank(user, items, when or -1, context=context, timeout=60)
                        for user, items, context, when in asked
                    )
                )
                for answer, scores in zip(answers, want, strict=True):
                    np.testing.assert_allclose(answer.probability, scores, rtol=0, atol=1e-6)
                    assert answer.position == NUM_EVENTS and answer.degraded == ()
                    assert answer.snapshot.startswith(f'{folder.name}:')
                now = int(time.time())
                answer = await client.rank('m7', ['m3'], context=CONTEXT, timeout=60)
                scores = pipeline.score('m7', ['m3'], now, CONTEXT).numpy()
                np.testing.assert_allclose(answer.probability, scores, rtol=0, atol=1e-6)
                with pytest.raises(ValueError) as told:
                    pipeline.score('m7', ['m3'], context={'weather': 'wet'})
                with pytest.raises(ValueError) as answered:
                    await client.rank('m7', ['m3'], context={'weather': 'wet'}, timeout=60)
                assert str(answered.value) == str(told.value)
                sample = server.metrics.registry.get_sample_value
                num_unknown = sum(1 + (user == 'nobody') for user, *_ in asked)
                assert sample('mag_unknown_ids_total') == num_unknown
        finally:
            await server.stop()

    asyncio.run(ask())


# By counts at the target, and by paths that are drawn.
@pytest.mark.parametrize('folder', ['count_net', 'srjgraph'], indirect=True)
def test_threads_that_ask_together_are_told_what_one_is(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    ranker = PipelineRanker(pipeline, 'shop')
    asked = [*questions(pipeline)]
    want = [pipeline.score(user, items, context=context).numpy() for user, items, context in asked]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                pool.submit(ranker.rank, user, items, 0, context)
                for _ in range(4)
                for user, items, context in asked
            ]
            for job, scores in zip(jobs, want * 4, strict=True):
                np.testing.assert_array_equal(job.result().probability, scores)
    finally:
        sys.setswitchinterval(interval)
        ranker.close()


# One is grown by an update, the other is updated in place.
@pytest.mark.parametrize('folder', ['gmcm', 'macgnn'], indirect=True)
def test_an_updated_pipeline_is_swapped_in_and_the_log_that_runs_ahead_is_told(
    folder: Path, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(folder)
    pipeline.save(tmp_path / 'shop')
    log = tmp_path / 'events.db'
    server = make_server(tmp_path / 'shop', str(log), port=0, admin_port=0)
    new = folder.parent / 'new.csv'
    with SqliteStream(log) as stream:
        np.testing.assert_array_equal(stream.read(0), pipeline.events())

    def ask(client: Client, user: str) -> Any:
        return client.rank(user, ['m3', 'm4', 'nothing'], time=0, context=CONTEXT, timeout=60)

    def check(client: Client, user: str, end: int) -> Any:
        answer = ask(client, user)
        scores = pipeline.score(user, ['m3', 'm4', 'nothing'], context=CONTEXT).numpy()
        np.testing.assert_allclose(answer.probability, scores, rtol=0, atol=1e-6)
        assert answer.position == end
        return answer

    def drive() -> None:
        admin = f'127.0.0.1:{server.admin_port}'
        with Client(f'127.0.0.1:{server.port}') as client:
            assert (before := check(client, 'm7', NUM_EVENTS)).degraded == ()
            with pytest.raises(ValueError, match="'users' must be known"):
                client.record(['new3'], ['m3'], [NUM_EVENTS], [True], timeout=60)
            result = CliRunner().invoke(main, ['update', str(tmp_path / 'shop'), str(new)])
            assert result.exit_code == 0, result.output
            pipeline.update(new)
            # What is recorded comes first in what the update has read, and is of known ones.
            events = pipeline.events()[NUM_EVENTS:]
            known = pipeline._known()
            names = [known.maps[node].decode(events[node][:1])[0] for node in ('user', 'item')]
            client.record(
                names[:1], names[1:], events['time'][:1], events['clicked'][:1] == 1, timeout=60
            )
            sees_by = time.monotonic() + 30
            while (late := ask(client, 'm7')).degraded == () and time.monotonic() < sees_by:
                time.sleep(0.01)
            assert late.degraded == ('as of the snapshot',) and late.position == NUM_EVENTS
            np.testing.assert_array_equal(late.probability, before.probability)
            sample = server.metrics.registry.get_sample_value
            assert sample('mag_lag_events') == 1
            swap(admin, 'shop', timeout=60)
            for user in ('m7', 'new3'):
                after = check(client, user, NUM_EVENTS + 60)
                assert after.degraded == () and after.snapshot.startswith('shop:')
                assert after.snapshot != before.snapshot
            assert sample('mag_lag_events') == 0
            end = client.record(['new3'], ['m3'], [NUM_EVENTS + 60], [True], timeout=60)
            assert end == NUM_EVENTS + 61
            for name, told in (('../shop', 'is named as its folder in'), ('none', 'no folder')):
                with pytest.raises(RuntimeError, match=told):
                    swap(admin, name, timeout=60)
            Pipeline.load(folder).update(write(tmp_path / 'others.csv', 700, 705)).save(
                tmp_path / 'others'
            )
            with pytest.raises(
                RuntimeError, match="begin with the events of the pipeline 'others'"
            ):
                swap(admin, 'others', timeout=60)
            check(client, 'new3', NUM_EVENTS + 60)

    async def run() -> None:
        await server.start()
        try:
            await asyncio.to_thread(drive)
        finally:
            await server.stop()

    asyncio.run(run())


def test_a_log_that_is_lost_is_told_and_found_again(
    fitted: Callable[[str], Path], tmp_path: Path
) -> None:
    class Breaking(SqliteStream):
        is_lost = False

        def _bounds(self) -> tuple[int, int, int]:
            if type(self).is_lost:
                raise ConnectionError('the log is elsewhere')
            return super()._bounds()

    folder = fitted('macgnn')
    load = PipelineLoader(str(folder.parent), lambda: Breaking(tmp_path / 'events.db'))
    ranker = load('macgnn')
    question = 'm7', ['m3'], 0, {}
    try:
        found = ranker.rank(*question)
        assert (found.degraded, found.lag, found.lag_seconds) == ((), 0, 0.0)
        assert found.snapshot_time == NUM_EVENTS - 1
        for is_lost in (True, False):
            Breaking.is_lost = is_lost
            reasons, deadline = ('log unreachable',) if is_lost else (), time.monotonic() + 30
            while (now := ranker.rank(*question)).degraded != reasons:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert now.lag == (None if is_lost else 0)
            np.testing.assert_array_equal(now.probability, found.probability)
    finally:
        ranker.close()
    with SqliteStream(tmp_path / 'others.db') as stream:
        stream.append(np.zeros(1, EVENT), 0)
    with pytest.raises(ValueError, match="events of the pipeline 'macgnn', but does not: .*"):
        make_server(folder, str(tmp_path / 'others.db'), port=0)


def test_requests_are_refused_in_the_sentences_of_a_pipeline(
    fitted: Callable[[str], Path],
) -> None:
    pipeline = Pipeline.load(fitted('gmcm'))
    ranker = PipelineRanker(pipeline, 'shop')
    for context in ({}, CONTEXT | {'price': 'much'}, CONTEXT | {'price': float('nan')}):
        with pytest.raises((TypeError, ValueError)) as told:
            pipeline.score('m7', ['m3'], context=context)
        with pytest.raises(ValueError) as answered:
            ranker.rank('m7', ['m3'], 0, context)
        assert str(answered.value) == str(told.value)
    # Texts, as a command tells them, and terms.
    terms = pipeline.score('m7', ['m3'], context=CONTEXT | {'query': [['green tea', 'hot']]})
    texts = ranker.rank('m7', ['m3'], 0, CONTEXT | {'price': '0.5'}).probability
    np.testing.assert_array_equal(texts, terms.numpy())
    other = ranker.rank('m7', ['m3'], 0, CONTEXT | {'query': 'rice'}).probability
    assert not np.array_equal(texts, other)


def test_a_folder_that_is_a_pipeline_is_told_from_others(
    fitted: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = fitted('macgnn')
    assert is_pipeline(folder) and not is_pipeline(tmp_path) and not is_pipeline(folder / 'none')
    with pytest.raises(ValueError, match="'log' must tell where .* is no saved pipeline"):
        make_server(tmp_path)
    shown = CliRunner().invoke(main, ['serve', str(folder), '--host', '::'])
    assert shown.exit_code == 1 and "'host' must be of this machine alone" in shown.stderr
