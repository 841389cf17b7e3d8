import asyncio
import dataclasses
import json
import logging
import os
import re
import signal
import ssl
import sys
import threading
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

grpc = pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')

from mag.datasets import IdMap  # noqa: E402
from mag.online import (  # noqa: E402
    EVENT,
    AsyncClient,
    Client,
    Explained,
    JsonFormatter,
    MacroEdges,
    Overloaded,
    Ranked,
    Server,
    SqliteStream,
    swap,
)
from mag.online.ranking_pb2 import (  # noqa: E402
    ExplainRequest,
    ExplainResponse,
    Id,
    Ids,
    Numbers,
    RankRequest,
    RankResponse,
    RecordRequest,
    Texts,
    Value,
    WhatIfRequest,
    WhatIfResponse,
)

sys.path.insert(0, str(Path(__file__).parent))
from server_thread import in_thread  # noqa: E402

NUM_CORES = len(os.sched_getaffinity(0))
RANK, EXPLAIN, WHAT_IF, RECORD = (
    f'/mag.online.v1.Ranking/{name}' for name in ('Rank', 'Explain', 'WhatIf', 'Record')
)
SWAP = '/mag.online.v1.Admin/Swap'


def expected(version: int, user: int | str, items: Sequence[int | str]) -> np.ndarray:
    r"""What the ranker below answers: another number for each version, user and item."""
    number = np.array([int(item) % 1000 for item in items], np.float64)
    return ((number * 7 + int(user) * 13 + version * 31) % 997 / 997).astype(np.float32)


@pytest.fixture(scope='module', autouse=True)
def _patient() -> Iterator[None]:
    r"""Clients that wait for a busy machine where a test does not say how long."""
    with pytest.MonkeyPatch.context() as patch:
        names = 'rank', 'explain', 'what_if', 'record'
        for call in (getattr(kind, name) for kind in (Client, AsyncClient) for name in names):
            assert call.__defaults__ is not None
            patch.setattr(call, '__defaults__', (*call.__defaults__[:-1], 60.0))
        yield


class FakeRanker:
    r"""Scores at once, or when it is told to."""

    def __init__(self, version: int = 0, error: Exception | None = None) -> None:
        self.version, self.error = version, error
        self.asked: list[tuple[Any, ...]] = []
        self.modes: set[bool] = set()
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.is_closed = False

    def rank(
        self,
        user: int | str,
        items: Sequence[int] | Sequence[str],
        time: int,
        context: Mapping[str, str | int | float],
    ) -> Ranked:
        if self.is_closed:
            raise RuntimeError('closed before the last answer')
        self.asked.append((user, items, time, context))
        self.modes.add(torch.is_inference_mode_enabled())
        self.may_answer.wait()
        if self.error is not None:
            raise self.error
        if self.is_closed:
            raise RuntimeError('closed before it answered')
        return Ranked(
            expected(self.version, user, items),
            position=1000 * self.version,
            snapshot=f'v{self.version}',
            degraded=('log unreachable',) if user == 404 else (),
            num_unknown=sum(int(item) >= 10**6 for item in items),
            lag=12,
            lag_seconds=0.25,
            snapshot_time=1000.0,
        )

    def close(self) -> None:
        assert not self.is_closed
        self.is_closed = True


BLOCKS = ('user id', 'item é')


class FakeExplainer(FakeRanker):
    r"""Tells numbers that are different for each item."""

    def explain(self, user: Any, items: Any, time: int, context: Any, num_edges: int) -> Explained:
        ranked = self.rank(user, items, time, context)
        self.asked[-1] += (num_edges,)
        without = expected(9, user, items)[:, None] / np.arange(2, 2 + len(BLOCKS))
        of_items = tuple(edges_of(int(item), num_edges) for item in items)
        return Explained(ranked, BLOCKS, without, edges_of(int(user), num_edges), of_items)

    def what_if(
        self, user: Any, items: Any, time: int, context: Any, clicked: Any
    ) -> tuple[Ranked, Ranked]:
        before = self.rank(user, items, time, context)
        self.asked[-1] += (clicked,)
        after = expected(self.version + int(clicked), user, items)
        return before, dataclasses.replace(before, probability=after)


def edges_of(node: int, num_edges: int) -> MacroEdges:
    number = np.arange(num_edges) + node
    return MacroEdges(number % 2**31, number * 2**31, number % 3)


@contextmanager
def serving(ranker: FakeRanker, **arguments: Any) -> Iterator[Server]:
    r"""A server in a thread."""
    server = Server(ranker, port=0, **arguments)
    with in_thread(server):
        yield server


@contextmanager
def asking(ranker: FakeRanker, **arguments: Any) -> Iterator[Client]:
    r"""A client of a server in a thread."""
    with serving(ranker, **arguments) as server, Client(f'127.0.0.1:{server.port}') as client:
        yield client


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def request_of(user: int = 7, items: Sequence[int] = (1, 2, 3)) -> RankRequest:
    return RankRequest(user=Id(number=user), items=Ids(numbers=Numbers(values=items)))


def status_of(address: str, method: str, packed: bytes, is_stream: bool = False) -> tuple[Any, str]:
    r"""The status and the sentence that bytes are answered with."""
    with grpc.insecure_channel(address) as channel:
        try:
            if is_stream:
                channel.stream_unary(method)(iter([packed]), timeout=60)
            else:
                channel.unary_unary(method)(packed, timeout=60)
        except grpc.RpcError as error:
            return error.code(), error.details()
    return grpc.StatusCode.OK, ''


# ---- ranking


@pytest.mark.parametrize(
    ('user', 'items', 'asked_user', 'asked_items'),
    [
        (7, [30, 10, 20], 7, [30, 10, 20]),
        ('7', ['30', '10', '20'], '7', ['30', '10', '20']),
        (np.int32(7), np.array([30, 10]), 7, [30, 10]),
        (7, torch.tensor([30, 10]), 7, [30, 10]),
        # An id is what is written, so that those of several kinds are texts.
        ('007', [30, '10'], '007', ['30', '10']),
        (2**63, [30, 2**64], str(2**63), ['30', str(2**64)]),
        (-(2**63), range(2000), -(2**63), list(range(2000))),
    ],
)
def test_scores_are_those_of_the_items_as_they_were_asked(
    user: Any, items: Any, asked_user: Any, asked_items: Any
) -> None:
    ranker = FakeRanker(version=3)
    with asking(ranker) as client:
        ranking = client.rank(user, items, time=99, context={'device': 'é', 'n': 2, 'x': 0.5})
    ((*asked, context),) = ranker.asked
    assert asked == [asked_user, asked_items, 99]
    assert context == {'device': 'é', 'n': 2, 'x': 0.5}
    assert ranker.modes == {True}
    want = expected(3, asked_user, asked_items)
    assert ranking.probability.dtype == np.float32
    np.testing.assert_array_equal(ranking.probability, want)
    np.testing.assert_array_equal(ranking.order, np.argsort(-want, kind='stable'))
    assert (ranking.position, ranking.snapshot, ranking.degraded) == (3000, 'v3', ())
    assert ranking.items is items
    assert ranker.is_closed


def test_a_request_without_a_time_is_of_now_and_says_when_it_is_degraded() -> None:
    ranker = FakeRanker()
    with asking(ranker) as client:
        begun = int(time.time())
        assert client.rank(404, [1]).degraded == ('log unreachable',)
    assert begun <= ranker.asked[0][2] <= int(time.time())
    assert ranker.asked[0][3] == {}


@pytest.mark.parametrize(
    ('packed', 'sentence'),
    [
        (b'\xff', 'must be a message mag.online.v1.RankRequest'),
        (b'', "'user' must be an id, a text or a number, but none was given."),
        (
            RankRequest(user=Id(text='')).SerializeToString(),
            "'items' must be 1 to 5 ids, but got 0.",
        ),
        (
            RankRequest(user=Id(text=''), items=Ids(texts=Texts())).SerializeToString(),
            "'items' must be 1 to 5 ids, but got 0.",
        ),
        (request_of(items=range(6)).SerializeToString(), "'items' must be 1 to 5 ids, but got 6."),
        (
            RankRequest(
                user=Id(number=1), items=Ids(texts=Texts(values='a')), context={'q': Value()}
            ).SerializeToString(),
            "'context['q']' must be a text or a number, but has no value.",
        ),
    ],
)
def test_a_bad_request_is_told_what_must_be(packed: bytes, sentence: str) -> None:
    ranker = FakeRanker()
    with serving(ranker, max_items=5) as server:
        status, said = status_of(f'127.0.0.1:{server.port}', RANK, packed)
    assert (status, ranker.asked) == (grpc.StatusCode.INVALID_ARGUMENT, [])
    assert sentence in said


def test_a_sentence_of_the_scorer_arrives_however_long_it_is() -> None:
    with (
        asking(FakeRanker(error=ValueError("'time' must be later." + '\x00\n𝔐é' * 9000))) as client,
        pytest.raises(ValueError, match="'time' must be later") as caught,
    ):
        client.rank(7, [1])
    assert len(str(caught.value).encode()) <= 1500


@pytest.mark.parametrize(
    'probability', [np.zeros(2), np.zeros((3, 1)), np.array([0.1, np.nan, 0.2])]
)
def test_a_scorer_that_answers_wrongly_has_failed(
    probability: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(FakeRanker):
        def rank(self, *arguments: Any) -> Ranked:
            return Ranked(probability, 0, 'v0')

    with asking(Wrong()) as client, pytest.raises(RuntimeError, match='failed with INTERNAL'):
        client.rank(7, [1, 2, 3])
    assert 'must answer with finite numbers of shape [3]' in caplog.text


@pytest.mark.parametrize('error', [RuntimeError('secret'), KeyError('secret'), MemoryError()])
def test_what_failed_is_in_the_log_and_not_in_the_answer(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        asking(FakeRanker(error=error)) as client,
        pytest.raises(RuntimeError, match='failed to answer; its log says why') as caught,
    ):
        client.rank(7, [1])
    assert 'secret' not in str(caught.value)
    assert type(error).__name__ in caplog.text


def test_a_client_refuses_what_no_server_understands() -> None:
    with Client('127.0.0.1:1') as client:
        for items in (1.5, 'tea', [1.5], [None], [True], [b'a'], np.array([0.5])):
            with pytest.raises(TypeError, match="'items' must"):
                client.rank(7, items)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'items' must be a sequence of ids, but got a single"):
            client.rank(7, np.array(3))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="'items' must be Unicode"):
            client.rank(7, ['\ud800'])
        with pytest.raises(TypeError, match="'user' must have integers or texts as ids, but got 1"):
            client.rank(1.0, [1])
        with pytest.raises(TypeError, match=r"'context\['q'\]' must be a text or a number"):
            client.rank(7, [1], context={'q': [1]})
        with pytest.raises(ValueError, match="'time' must lie below"):
            client.rank(7, [1], time=2**63)
        with pytest.raises(ValueError, match="'timeout' must"):
            client.rank(7, [1], timeout=0)
        with pytest.raises(ConnectionError, match='127.0.0.1:1 cannot be reached'):
            client.rank(uuid.UUID(int=1), [1])


# ---- explanations


def test_what_moves_scores_arrives_as_it_was_told() -> None:
    ranker = FakeExplainer(version=3)
    items = ['30', '10', '020']
    with serving(ranker) as server:
        address = f'127.0.0.1:{server.port}'

        async def ask() -> Any:
            async with AsyncClient(address) as client:
                return (
                    await client.explain('7', items, 4, 99, {'device': 'é'}),
                    await client.what_if('7', items, '55', 99, {'device': 'é'}),
                )

        with Client(address) as client:
            here = (
                client.explain('7', items, 4, 99, {'device': 'é'}),
                client.what_if('7', items, '55', 99, {'device': 'é'}),
            )
            assert client.explain(7, [1], 0).items[0].clusters.tolist() == []
            assert client.explain(7, [1]).user.clusters.tolist() == list(range(7, 17))
        there = asyncio.run(ask())
        sample = server.metrics.registry.get_sample_value
        for method, number in (('Explain', 4), ('WhatIf', 2)):
            labels = {'method': method, 'status': 'OK'}
            assert sample('mag_requests_total', labels) == number
        for stage in ('parse', 'wait', 'score', 'serialise'):
            assert sample('mag_stage_seconds_count', {'stage': stage}) == 6
        assert sample('mag_log_position') == 3000 and sample('mag_lag_events') == 12
    asked = ('7', items, 99, {'device': 'é'})
    assert ranker.asked[:2] == [(*asked, 4), (*asked, '55')] == ranker.asked[4:]
    assert ranker.modes == {True}
    for explanation, change in (here, there):
        without = (expected(9, '7', items)[:, None] / np.array([2, 3])).astype(np.float32)
        np.testing.assert_array_equal(explanation.without, without)
        np.testing.assert_array_equal(explanation.moved, expected(3, '7', items)[:, None] - without)
        assert explanation.without.dtype == np.float32 and explanation.blocks == BLOCKS
        for node, edges in zip((7, 30, 10, 20), (explanation.user, *explanation.items)):
            for name, column in vars(edges_of(node, 4)).items():
                assert getattr(edges, name).dtype == np.int64
                np.testing.assert_array_equal(getattr(edges, name), column)
        for ranking, version in ((explanation.ranking, 3), (change[0], 3), (change[1], 58)):
            np.testing.assert_array_equal(ranking.probability, expected(version, '7', items))
            assert (ranking.items, ranking.position, ranking.snapshot) == (items, 3000, 'v3')


def test_an_answer_that_no_message_holds_is_refused_in_a_sentence() -> None:
    with asking(FakeExplainer()) as client:
        with pytest.raises(ValueError, match='2000 items would take .* ask for up to ') as caught:
            client.explain(7, range(2000), 300)
        found = re.search(
            r'ask for up to (\d+) items at once, or for fewer edges', str(caught.value)
        )
        assert found is not None
        most = int(found[1])
        assert 1000 < most < 2000
        # That many are answered, as these numbers take no more than those did.
        assert len(client.explain(7, range(most), 300).items) == most


@pytest.mark.parametrize(
    ('method', 'packed', 'sentence'),
    [
        (EXPLAIN, b'\xff', 'must be a message mag.online.v1.ExplainRequest'),
        (EXPLAIN, b'', "'user' must be an id, a text or a number, but none was given."),
        (
            EXPLAIN,
            ExplainRequest(request=request_of(items=[])).SerializeToString(),
            "'items' must be 1 to 5 ids, but got 0.",
        ),
        (
            EXPLAIN,
            ExplainRequest(request=request_of(), num_edges=-1).SerializeToString(),
            "'num_edges' must be at least 0, but got -1.",
        ),
        (WHAT_IF, b'\xff', 'must be a message mag.online.v1.WhatIfRequest'),
        (
            WHAT_IF,
            WhatIfRequest(request=request_of()).SerializeToString(),
            "'clicked' must be an id, a text or a number, but none was given.",
        ),
        (
            WHAT_IF,
            WhatIfRequest(
                request=request_of(items=range(6)), clicked=Id(number=1)
            ).SerializeToString(),
            "'items' must be 1 to 5 ids, but got 6.",
        ),
    ],
)
def test_a_bad_question_is_told_what_must_be(method: str, packed: bytes, sentence: str) -> None:
    ranker = FakeExplainer()
    with serving(ranker, max_items=5) as server:
        status, said = status_of(f'127.0.0.1:{server.port}', method, packed)
    assert (status, ranker.asked) == (grpc.StatusCode.INVALID_ARGUMENT, [])
    assert sentence in said


def test_what_only_ranks_says_so() -> None:
    with asking(FakeRanker()) as client:
        with pytest.raises(NotImplementedError, match='answers Rank, but no Explain'):
            client.explain(7, [1])
        with pytest.raises(NotImplementedError, match='answers Rank, but no WhatIf'):
            client.what_if(7, [1], 2)
        assert len(client.rank(7, [1]).probability) == 1


def test_a_client_refuses_questions_that_no_server_understands() -> None:
    with Client('127.0.0.1:1') as client:
        with pytest.raises(ValueError, match="'num_edges' must be at least 0, but got -1"):
            client.explain(7, [1], -1)
        with pytest.raises(TypeError, match="'clicked' must have integers or texts as ids"):
            client.what_if(7, [1], None)
        for call in (client.explain, client.what_if):
            with pytest.raises(ValueError, match="'timeout' must"):
                call(7, [1], 2, timeout=0)
            with pytest.raises(ConnectionError, match='127.0.0.1:1 cannot be reached'):
                call(7, [1], 2)


@pytest.mark.parametrize('wrong', ['without', 'items', 'ranked'])
def test_an_explainer_that_answers_wrongly_has_failed(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Wrong(FakeExplainer):
        def explain(self, *arguments: Any) -> Explained:
            explained = super().explain(*arguments)
            others: dict[str, Any] = {
                'without': explained.without * np.nan,
                'items': explained.items[1:],
                'ranked': dataclasses.replace(explained.ranked, probability=np.zeros(2)),
            }
            return dataclasses.replace(explained, **{wrong: others[wrong]})

    with asking(Wrong()) as client, pytest.raises(RuntimeError, match='failed with INTERNAL'):
        client.explain(7, [1, 2, 3])
    assert 'A ranker must' in caplog.text


def test_all_questions_share_one_limit_and_late_ones_are_not_scored() -> None:
    ranker = FakeExplainer()
    ranker.may_answer.clear()
    with (
        serving(ranker, max_in_flight=NUM_CORES + 2) as server,
        Client(f'127.0.0.1:{server.port}') as client,
        ThreadPoolExecutor(NUM_CORES + 2) as threads,
    ):
        first = [threads.submit(client.explain, 7, [1]) for _ in range(NUM_CORES)]
        wait_until(lambda: len(ranker.asked) == NUM_CORES)
        late = [
            threads.submit(client.explain, 8, [1], timeout=2),
            threads.submit(client.what_if, 8, [1], 2, timeout=2),
        ]
        wait_until(lambda: server._num_in_flight == NUM_CORES + 2)
        for call in (lambda: client.explain(9, [1]), lambda: client.what_if(9, [1], 2)):
            with pytest.raises(Overloaded, match='requests are in flight, as many as this'):
                call()
        for answer in late:
            with pytest.raises(TimeoutError):
                answer.result()
        wait_until(lambda: server._num_in_flight == NUM_CORES)
        ranker.may_answer.set()
        for answer in first:
            assert answer.result().blocks == BLOCKS
        wait_until(lambda: server._num_in_flight == 0)
        assert server.metrics.registry.get_sample_value('mag_shed_total') == 2
    assert {user for user, *_ in ranker.asked} == {7}


# ---- whatever is sent

MESSAGES = st.builds(
    RankRequest,
    user=st.builds(Id, number=st.integers(-(2**63), 2**63 - 1)) | st.builds(Id, text=st.text()),
    items=st.builds(
        Ids, numbers=st.builds(Numbers, values=st.lists(st.integers(0, 10**6), max_size=9))
    )
    | st.builds(Ids, texts=st.builds(Texts, values=st.lists(st.text(), max_size=9))),
    time=st.none() | st.integers(-(2**63), 2**63 - 1),
    context=st.dictionaries(
        st.text(),
        st.builds(Value, text=st.text())
        | st.builds(Value, real=st.floats())
        | st.builds(Value, integer=st.integers(-(2**63), 2**63 - 1)),
        max_size=3,
    ),
)
EXPLAINS = st.builds(
    ExplainRequest, request=MESSAGES, num_edges=st.integers(-1, 9) | st.integers(-(2**31), 10**4)
)
WHAT_IFS = st.builds(
    WhatIfRequest,
    request=MESSAGES,
    clicked=st.builds(Id, number=st.integers(0, 9)) | st.builds(Id, text=st.text()),
)
RECORDS = st.builds(
    RecordRequest,
    position=st.none() | st.integers(-(2**63), 2**63 - 1),
    users=st.builds(Ids, numbers=st.builds(Numbers, values=st.lists(st.integers(-9, 9)))),
    items=st.builds(Ids, numbers=st.builds(Numbers, values=st.lists(st.integers(-9, 9)))),
    times=st.lists(st.integers(-(2**63), 2**63 - 1)),
    clicked=st.lists(st.booleans()),
)


def mutated(message: Any, cuts: list[tuple[int, int, bytes]]) -> bytes:
    packed = message.SerializeToString()
    for start, length, instead in cuts:
        start = start % (len(packed) + 1)
        packed = packed[:start] + instead + packed[start + length :]
    return packed


CUTS = st.lists(
    st.tuples(st.integers(0, 200), st.integers(0, 9), st.binary(max_size=6)), max_size=3
)


class Wordless(FakeExplainer):
    def rank(self, user: Any, items: Any, time: int, context: Any) -> Ranked:
        return Ranked(np.zeros(len(items)), 0, 'v0')

    def explain(self, user: Any, items: Any, time: int, context: Any, num_edges: int) -> Explained:
        edges, ranked = edges_of(0, num_edges), self.rank(user, items, time, context)
        return Explained(ranked, BLOCKS, np.zeros((len(items), 2)), edges, (edges,) * len(items))

    def what_if(self, *asked: Any) -> tuple[Ranked, Ranked]:
        return (self.rank(*asked[:-1]),) * 2


@pytest.fixture(scope='module')
def channel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp('events') / 'events.db'
    arguments: dict[str, Any] = {'open_stream': lambda: SqliteStream(path, 'second')}
    arguments |= {'nodes': lambda node_type, raw: np.array([as_node(text) for text in raw])}
    with (
        serving(Wordless(), **arguments) as server,
        grpc.insecure_channel(f'127.0.0.1:{server.port}') as channel,
    ):
        yield channel


def as_node(raw: int | str) -> int:
    return int(raw) if re.fullmatch(r'\d{1,9}', str(raw), re.ASCII) else -1


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200) | st.builds(mutated, MESSAGES, CUTS))
def test_whatever_is_sent_to_rank_is_answered_or_refused(channel: Any, packed: bytes) -> None:
    try:
        response = RankResponse.FromString(channel.unary_unary(RANK)(packed, timeout=60))
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert error.details().endswith('.'), error.details()
    else:
        request = RankRequest.FromString(packed)
        values = getattr(request.items, request.items.WhichOneof('kind')).values
        assert len(response.probabilities) == len(values) > 0


@settings(deadline=None, max_examples=150)
@given(
    st.tuples(st.just(EXPLAIN), st.builds(mutated, EXPLAINS, CUTS))
    | st.tuples(st.just(WHAT_IF), st.builds(mutated, WHAT_IFS, CUTS))
)
def test_whatever_else_is_asked_is_answered_or_refused(
    channel: Any, question: tuple[str, bytes]
) -> None:
    method, packed = question
    try:
        answer = channel.unary_unary(method)(packed, timeout=60)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert error.details().endswith('.'), error.details()
        return
    if method == EXPLAIN:
        request, response = ExplainRequest.FromString(packed), ExplainResponse.FromString(answer)
        number = len(response.ranking.probabilities)
        assert len(response.without) == 2 * number and len(response.items) == number
        for edges in (response.user, *response.items):
            assert len(edges.clusters) == len(edges.stock) == len(edges.live) == request.num_edges
    else:
        request, changed = WhatIfRequest.FromString(packed), WhatIfResponse.FromString(answer)
        number = len(changed.before.probabilities)
        assert len(changed.after.probabilities) == number
    items = request.request.items
    assert len(getattr(items, items.WhichOneof('kind')).values) == number > 0


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(max_size=200) | st.builds(mutated, RECORDS, CUTS), max_size=3))
def test_whatever_is_sent_to_record_is_appended_or_refused(
    channel: Any, packed: list[bytes]
) -> None:
    record = channel.stream_unary(RECORD)
    before = record(iter(()), timeout=60)
    try:
        record(iter(packed), timeout=60)
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        assert error.details().endswith('.'), error.details()
    else:
        assert (record(iter(()), timeout=60) == before) or packed


def test_a_message_that_is_too_large_is_refused_before_it_is_read() -> None:
    ranker = FakeRanker()
    with serving(ranker) as server:
        address = f'127.0.0.1:{server.port}'
        status, _ = status_of(address, RANK, b'x' * (4 * 2**20 + 1))
        assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
        with Client(address) as client:
            with pytest.raises(ValueError, match='takes messages of up to 4 MiB'):
                client.rank(7, ['x' * 2**20] * 5)
            assert len(client.rank(7, [1]).probability) == 1
    assert len(ranker.asked) == 1


# ---- too much, too late


def test_what_is_beyond_the_limit_is_told_so_at_once() -> None:
    ranker = FakeRanker()
    ranker.may_answer.clear()
    with (
        serving(ranker, max_in_flight=3) as server,
        Client(f'127.0.0.1:{server.port}') as client,
        ThreadPoolExecutor(3) as threads,
    ):
        taken = [threads.submit(client.rank, 7, [n], timeout=60) for n in range(3)]
        wait_until(lambda: server._num_in_flight == 3)
        begun = time.monotonic()
        for _ in range(5):
            with pytest.raises(Overloaded, match='3 requests are in flight, as many as this'):
                client.rank(7, [4], timeout=60)
        # Those before them are not waited for, which takes until they are late.
        assert time.monotonic() - begun < 20
        ranker.may_answer.set()
        for n, answer in enumerate(taken):
            np.testing.assert_array_equal(answer.result().probability, expected(0, 7, [n]))
        wait_until(lambda: server._num_in_flight == 0)
        client.rank(7, [4])
        assert server.metrics.registry.get_sample_value('mag_shed_total') == 5
    assert len(ranker.asked) == 4


def test_what_is_late_before_it_is_scored_is_not_scored() -> None:
    ranker = FakeRanker()
    ranker.may_answer.clear()
    num_asked = NUM_CORES + 3
    with (
        serving(ranker, max_in_flight=num_asked) as server,
        Client(f'127.0.0.1:{server.port}') as client,
        ThreadPoolExecutor(num_asked) as threads,
    ):
        first = [threads.submit(client.rank, 1, [1], timeout=60) for _ in range(NUM_CORES)]
        wait_until(lambda: len(ranker.asked) == NUM_CORES)
        late = [threads.submit(client.rank, 2, [2], timeout=0.2) for _ in range(3)]
        for answer in late:
            with pytest.raises(TimeoutError, match='gave no answer within 0.2 seconds'):
                answer.result()
        # Nobody waits for them, and their places are free.
        wait_until(lambda: server._num_in_flight == NUM_CORES)
        ranker.may_answer.set()
        for answer in first:
            answer.result()
        wait_until(lambda: server._num_in_flight == 0)
        statuses = server.metrics.registry.get_sample_value
        assert statuses('mag_requests_total', {'method': 'Rank', 'status': 'OK'}) == NUM_CORES
    assert [user for user, *_ in ranker.asked] == [1] * NUM_CORES


def test_a_request_that_nobody_waits_for_keeps_its_place_while_it_is_scored() -> None:
    ranker = FakeRanker()
    with (
        serving(ranker, max_in_flight=1) as server,
        Client(f'127.0.0.1:{server.port}') as client,
    ):
        # Once they are connected the next one comes in time.
        client.rank(7, [1])
        wait_until(lambda: server._num_in_flight == 0)
        ranker.may_answer.clear()
        with pytest.raises(TimeoutError):
            client.rank(7, [1], timeout=2)
        with pytest.raises(Overloaded):
            client.rank(7, [1])
        ranker.may_answer.set()
        wait_until(lambda: server._num_in_flight == 0)
        client.rank(7, [1])
        # Whose clock is ahead says whether it is late or was given up.
        for names, number in (
            (('OK',), 2),
            (('DEADLINE_EXCEEDED', 'CANCELLED'), 1),
            (('RESOURCE_EXHAUSTED',), 1),
        ):
            sample = server.metrics.registry.get_sample_value
            labels = [{'method': 'Rank', 'status': name} for name in names]
            assert sum(sample('mag_requests_total', of) or 0 for of in labels) == number


# ---- swaps


def test_swaps_under_load_fail_no_request() -> None:
    r"""Of thirty swaps under load each answer is that of the snapshot it names."""
    versions = [FakeRanker(version) for version in range(31)]
    seen: list[tuple[str, int]] = []

    async def ask(client: AsyncClient, done: asyncio.Event, user: int) -> None:
        numbers = np.random.default_rng(user)
        while not done.is_set():
            items = numbers.integers(0, 10**5, numbers.integers(1, 60))
            ranking = await client.rank(user, items, timeout=60)
            version = int(ranking.snapshot[1:])
            assert ranking.position == 1000 * version
            np.testing.assert_array_equal(ranking.probability, expected(version, user, items))
            seen.append((ranking.snapshot, user))

    async def main() -> None:
        server = Server(
            versions[0],
            port=0,
            max_in_flight=6,
            admin_port=0,
            load=lambda name: versions[int(name)],
        )
        await server.start()
        done = asyncio.Event()
        async with AsyncClient(f'127.0.0.1:{server.port}') as client:
            asked = [asyncio.ensure_future(ask(client, done, user)) for user in range(6)]
            for version in range(1, 31):
                # So that each serves.
                answers = len(seen)
                while len(seen) < answers + 6:
                    await asyncio.sleep(0.001)
                    assert not any(task.done() for task in asked), [t for t in asked if t.done()]
                await asyncio.to_thread(swap, f'127.0.0.1:{server.admin_port}', str(version))
            answers = len(seen)
            while len(seen) < answers + 20:
                await asyncio.sleep(0.001)
            done.set()
            await asyncio.gather(*asked)
        # Those that were swapped are closed while the last one serves.
        deadline = time.monotonic() + 60
        while not all(ranker.is_closed for ranker in versions[:-1]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.001)
        assert [ranker.is_closed for ranker in versions] == [True] * 30 + [False]
        await server.stop()
        # Once is enough.
        await server.stop()
        assert versions[-1].is_closed

    asyncio.run(main())
    assert {snapshot for snapshot, _ in seen} == {f'v{version}' for version in range(31)}
    assert all(ranker.modes == {True} for ranker in versions)
    for user in range(6):
        named = [int(snapshot[1:]) for snapshot, other in seen if other == user]
        assert named == sorted(named)


def test_a_request_is_scored_by_the_snapshot_that_served_when_it_came() -> None:
    old, new = FakeRanker(1), FakeRanker(2)
    with serving(old, admin_port=0, load=lambda name: new) as server:
        with Client(f'127.0.0.1:{server.port}') as client, ThreadPoolExecutor(1) as threads:
            client.rank(7, [1])
            old.may_answer.clear()
            answer = threads.submit(client.rank, 7, [1], timeout=60)
            wait_until(lambda: len(old.asked) == 2)
            swap(f'127.0.0.1:{server.admin_port}', 'new')
            assert client.rank(7, [1]).snapshot == 'v2'
            assert not old.is_closed
            old.may_answer.set()
            assert answer.result().snapshot == 'v1'
        wait_until(lambda: old.is_closed)
        # It was warm: it had answered what the old one was asked.
        assert new.asked[0] == old.asked[0]
        assert len(new.asked) == 2


def test_a_snapshot_that_cannot_serve_does_not() -> None:
    old, bad = FakeRanker(1), FakeRanker(2, error=ValueError("'context' must have 'device'"))

    def load(name: str) -> FakeRanker:
        if name == 'bad':
            return bad
        raise FileNotFoundError(f'There is no snapshot {name!r}.')

    with serving(old, admin_port=0, load=load) as server:
        admin = f'127.0.0.1:{server.admin_port}'
        with Client(f'127.0.0.1:{server.port}') as client:
            client.rank(7, [1])
            with pytest.raises(RuntimeError, match="'gone' does not serve.*There is no snapshot"):
                swap(admin, 'gone')
            with pytest.raises(RuntimeError, match="'bad' does not serve.*must have 'device'"):
                swap(admin, 'bad')
            with pytest.raises(ValueError, match="'snapshot' must be the name of one"):
                swap(admin, '')
            assert bad.is_closed
            assert client.rank(7, [1]).snapshot == 'v1'
        # Who ranks cannot swap.
        assert status_of(f'127.0.0.1:{server.port}', SWAP, b'')[0] == grpc.StatusCode.UNIMPLEMENTED
        assert status_of(admin, RANK, b'')[0] == grpc.StatusCode.UNIMPLEMENTED
        assert status_of(admin, SWAP, b'\xff')[0] == grpc.StatusCode.INVALID_ARGUMENT


# ---- events


def columns(events: np.ndarray) -> tuple[Any, ...]:
    return (
        events['user'].tolist(),
        [f'item {item}' for item in events['item']],
        events['time'],
        events['clicked'] == 1,
    )


def nodes(node_type: str, raw: Sequence[Any]) -> np.ndarray:
    texts = [str(value).removeprefix('item ') for value in raw]
    return np.array([int(text) if text.isdecimal() else -1 for text in texts])


@contextmanager
def recording(path: Path) -> Iterator[Client]:
    with asking(
        FakeRanker(), open_stream=lambda: SqliteStream(path, 'second'), nodes=nodes
    ) as client:
        yield client


def test_events_are_appended_in_their_order_with_their_positions(
    tmp_path: Path, events_between: Callable[[int, int], np.ndarray]
) -> None:
    path = tmp_path / 'events.db'
    with recording(path) as client:
        assert client.record([], [], [], []) == 0
        # Several messages.
        assert client.record(*columns(events_between(0, 20_000)), position=0) == 20_000
        # Again, as after an answer that was lost.
        assert client.record(*columns(events_between(9_000, 25_000)), position=9_000) == 25_000
        assert client.record(*columns(events_between(25_000, 25_001))) == 25_001
        with pytest.raises(ValueError, match='ends at position 25001, but got events from positi'):
            client.record(*columns(events_between(25_002, 25_003)), position=25_002)
        with pytest.raises(ValueError, match='has the event .* at position 3, but was given'):
            client.record(*columns(events_between(4, 5)), position=3)
        users, _, times, clicked = columns(events_between(25_001, 25_003))
        with pytest.raises(ValueError, match="'items' must be known, but 1 of 2 are not, .*'salt'"):
            client.record(users, ['item 1', 'salt'], times, clicked)
        assert client.record([], [], [], []) == 25_001
    with SqliteStream(path) as stream:
        held = stream.read(0, 30_000)
    np.testing.assert_array_equal(held, events_between(0, 25_001))


def test_events_of_several_producers_are_all_there_each_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / 'events.db'
    with recording(path) as client, ThreadPoolExecutor(4) as threads:

        def produce(user: int) -> None:
            for start in range(0, 300, 10):
                client.record([user] * 10, range(10), range(start, start + 10), [0] * 10)

        list(threads.map(produce, range(4)))
    with SqliteStream(path) as stream:
        held = stream.read(0)
    for user in range(4):
        own = np.flatnonzero(held['user'] == user)
        np.testing.assert_array_equal(held['time'][own], np.arange(300))
        # What came together stays together.
        np.testing.assert_array_equal(own.reshape(30, 10) - own[::10, None], [range(10)] * 30)


def test_what_was_sent_before_a_bad_message_is_there(tmp_path: Path) -> None:
    def message(user: int, position: int | None = None) -> bytes:
        ids = Ids(numbers=Numbers(values=[user]))
        return RecordRequest(
            position=position, users=ids, items=ids, times=[5], clicked=[True]
        ).SerializeToString()

    lacking = RecordRequest(users=Ids(numbers=Numbers(values=[1]))).SerializeToString()
    path = tmp_path / 'events.db'
    arguments = {'open_stream': lambda: SqliteStream(path), 'nodes': nodes}
    with (
        serving(FakeRanker(), **arguments) as server,
        grpc.insecure_channel(f'127.0.0.1:{server.port}') as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.stream_unary(RECORD)(
            iter([message(1, 0), message(2), lacking, message(3)]), timeout=60
        )
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "'items' must be 1 to 65536 ids, but got 0" in caught.value.details()
    with SqliteStream(path) as stream:
        assert stream.read(0)['user'].tolist() == [1, 2]


def test_servers_that_record_to_one_log_lose_nothing_of_each_other(tmp_path: Path) -> None:
    r"""Nor of what both are told in the same words."""

    def record(client: Client) -> None:
        for second in range(40):
            client.record([1, 2], [3, 3], [second, second], [True, False], timeout=60)

    path = tmp_path / 'events.db'
    arguments = {'open_stream': lambda: SqliteStream(path, 'second'), 'nodes': nodes}
    with (
        asking(FakeRanker(), **arguments) as one,
        asking(FakeRanker(), **arguments) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        list(threads.map(record, (one, other)))
    with SqliteStream(path) as stream:
        events = stream.read(0, 1000)
    found = Counter(map(tuple, events[['user', 'time']].tolist()))
    assert found == {(user, second): 2 for user in (1, 2) for second in range(40)}


def test_a_log_that_takes_nothing_is_no_fault_of_who_sent() -> None:
    class Full:
        end = 0

        def append(self, events: np.ndarray, position: int | None = None) -> int:
            raise OSError('no space left on device')

        def close(self) -> None:
            pass

    with (
        asking(FakeRanker(), open_stream=Full, nodes=nodes) as client,
        pytest.raises(ConnectionError, match='takes no events now.*no space left on device'),
    ):
        client.record([1], [1], [1], [1])


def test_a_log_that_does_not_tell_its_end_is_no_fault_of_the_server() -> None:
    class Lost:
        @property
        def end(self) -> int:
            raise OSError('the disk is gone')

        def close(self) -> None:
            pass

    with (
        asking(FakeRanker(), open_stream=Lost, nodes=nodes) as client,
        pytest.raises(ConnectionError, match='does not tell its end now. the disk is gone'),
    ):
        client.record([], [], [], [])


def test_ids_of_a_kind_that_the_map_does_not_have_are_refused(tmp_path: Path) -> None:
    ids = IdMap([b'ann', b'bob'])
    with (
        asking(
            FakeRanker(),
            open_stream=lambda: SqliteStream(tmp_path / 'events.db'),
            nodes=lambda node_type, raw: ids.encode(raw),
        ) as client,
        pytest.raises(ValueError, match="'users' cannot be looked up: An IdMap of ids of the kind"),
    ):
        client.record(['ann'], ['bob'], [1], [1])


def test_a_log_that_fails_when_it_is_closed_leaves_nothing_open() -> None:
    class Failing:
        end = 0

        def close(self) -> None:
            raise OSError('the disk has failed')

    before = set(threading.enumerate())
    with (
        pytest.raises(OSError, match='the disk has failed'),
        serving(FakeRanker(), open_stream=Failing, nodes=nodes, metrics_port=0),
    ):
        pass
    # grpcio keeps threads of its own, for all servers of the process.
    names = {thread.name for thread in set(threading.enumerate()) - before}
    assert not [name for name in names if name.startswith('mag-')]
    assert not [name for name in names if 'serve_forever' in name]


def test_a_client_refuses_events_that_do_not_match() -> None:
    with Client('127.0.0.1:1') as client:
        with pytest.raises(ValueError, match="must be of one length, but got .*'items': 2"):
            client.record([1], [1, 2], [1], [1])
        with pytest.raises(ValueError, match="'clicked' must be 0 or 1"):
            client.record([1], [1], [1], [2])
        with pytest.raises(TypeError, match="'times' must be integers"):
            client.record([1], [1], [0.5], [1])
        with pytest.raises(ValueError, match="'position' must be at least 0"):
            client.record([1], [1], [1], [1], position=-1)


def test_a_server_that_never_started_gives_back_what_it_has(tmp_path: Path) -> None:
    ranker = FakeRanker()
    arguments = {'open_stream': lambda: SqliteStream(tmp_path / 'a.db'), 'nodes': nodes}

    async def main() -> None:
        server = Server(ranker, port=0, **arguments)
        await server.stop()
        assert ranker.is_closed
        await server.stop()
        with pytest.raises(RuntimeError, match='was started or stopped before: make another one'):
            await server.start()

    asyncio.run(main())


def test_a_server_without_a_log_records_nothing() -> None:
    with asking(FakeRanker()) as client, pytest.raises(RuntimeError, match='records no events'):
        client.record([1], [1], [1], [1])


# ---- start and end

PROCESS = """
import json, logging, sys, time
import numpy as np
from mag.online import Ranked, JsonFormatter, Server, SqliteStream

class Slow:
    def rank(self, user, items, time_, context):
        print('asked', flush=True)
        time.sleep(context.get('seconds', 0))
        return Ranked(np.full(len(items), 0.5), 0, 'v0')

    def close(self):
        print('closed', flush=True)

handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(JsonFormatter())
logging.basicConfig(level=logging.INFO, handlers=[handler])
Server(
    Slow(), port=0, admin_port=0, load=lambda name: Slow(),
    open_stream=lambda: SqliteStream(sys.argv[1]), nodes=lambda node_type, raw: np.array(raw),
).run(60)
"""


@contextmanager
def process_of(fork: Callable[..., Any], path: Path) -> Iterator[tuple[Any, str]]:
    r"""A process that serves, and its address."""
    forked = fork(PROCESS, str(path))
    try:
        serves = json.loads(forked.stdout.readline())
        assert (serves['message'], serves['level']) == ('serves', 'INFO')
        yield forked, f'127.0.0.1:{serves["port"]}'
    finally:
        forked.process.kill()
        forked.process.join()


def test_events_are_there_once_though_the_server_is_killed(
    tmp_path: Path, events_between: Callable[[int, int], np.ndarray], fork: Callable[..., Any]
) -> None:
    path, num_events, num_kills = tmp_path / 'events.db', 120_000, 2
    random = np.random.default_rng(8)
    for kill in range(num_kills + 1):
        with process_of(fork, path) as (forked, address), Client(address) as client:
            # What was acknowledged, or was there and nobody was told.
            end = client.record([], [], [], [], timeout=60)
            killing = threading.Timer(0.05 + random.random() * 0.2, forked.process.kill)
            if kill < num_kills:
                killing.start()
            acknowledged = end
            try:
                while acknowledged < num_events or kill < num_kills:
                    events = events_between(acknowledged, acknowledged + 1000)
                    events['user'] %= 100
                    users, items, times, clicked = (events[name] for name in EVENT.names)
                    acknowledged = client.record(
                        users, items, times, clicked == 1, position=acknowledged, timeout=60
                    )
            except ConnectionError:
                assert kill < num_kills
            killing.cancel()
        with SqliteStream(path) as stream:
            assert stream.end >= acknowledged
            held = stream.read(0, 10**6)
        want = events_between(0, len(held))
        want['user'] %= 100
        np.testing.assert_array_equal(held, want)
    assert len(held) >= num_events


def test_a_process_that_is_told_to_end_answers_first(
    tmp_path: Path, fork: Callable[..., Any]
) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with process_of(fork, tmp_path / 'events.db') as (forked, address):
        idle = threading.Event()

        def endless() -> Iterator[bytes]:
            ids = Ids(numbers=Numbers(values=[1]))
            yield RecordRequest(users=ids, items=ids, times=[5], clicked=[True]).SerializeToString()
            idle.wait()

        with (
            Client(address) as client,
            ThreadPoolExecutor(2) as threads,
            grpc.insecure_channel(address) as channel,
        ):
            health = health_pb2_grpc.HealthStub(channel)
            for service in ('', 'mag.online.v1.Ranking'):
                answer = health.Check(health_pb2.HealthCheckRequest(service=service))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            watch = health.Watch(health_pb2.HealthCheckRequest(service=''))
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            producer = channel.stream_unary(RECORD).future(endless())
            in_flight = threads.submit(client.rank, 7, [1, 2], context={'seconds': 1.5}, timeout=60)
            assert forked.stdout.readline() == 'asked\n'
            with pytest.raises(grpc.RpcError) as caught:
                health.Check(health_pb2.HealthCheckRequest(service='other'))
            assert caught.value.code() == grpc.StatusCode.NOT_FOUND
            left = health.Watch(health_pb2.HealthCheckRequest(service='other'))
            assert next(left).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            left.cancel()
            os.kill(forked.pid, signal.SIGTERM)
            begun = time.monotonic()
            assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
            # It ends, and so takes nothing new.
            with pytest.raises(ConnectionError), Client(address) as late:
                for _ in range(100):
                    late.rank(7, [1])
            np.testing.assert_array_equal(in_flight.result().probability, [0.5, 0.5])
            # A producer that never ends its stream does not hold it up.
            assert producer.exception().code() == grpc.StatusCode.UNAVAILABLE
            assert list(watch) == []
            idle.set()
        done = forked.finish()
        assert (done.returncode, done.stderr) == (0, '')
        # Not what it may take.
        assert time.monotonic() - begun < 50
        *_, drains, closed, ended = [line for line in done.stdout.splitlines() if line != 'asked']
        assert [json.loads(line)['message'] for line in (drains, ended)] == ['drains', 'ended']
        assert closed == 'closed'
    with SqliteStream(tmp_path / 'events.db') as stream:
        assert stream.end == 1


def test_a_port_that_is_taken_is_named_and_nothing_stays_open() -> None:
    ranker, other = FakeRanker(), FakeRanker()
    with serving(ranker) as server:
        second = Server(other, port=server.port)
        with pytest.raises(OSError, match=f'cannot listen at 127.0.0.1:{server.port}'):
            asyncio.run(second.start())
    assert other.is_closed


def test_services_are_told_to_who_asks_where_that_is_wanted() -> None:
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
        ProtoReflectionDescriptorDatabase,
    )

    for is_told in (False, True):
        with (
            serving(FakeRanker(), reflection=is_told) as server,
            grpc.insecure_channel(f'127.0.0.1:{server.port}') as channel,
        ):
            database = ProtoReflectionDescriptorDatabase(channel)
            if is_told:
                assert 'mag.online.v1.Ranking' in database.get_services()
                assert 'mag.online.v1.Admin' not in database.get_services()
            else:
                with pytest.raises(grpc.RpcError) as caught:
                    database.get_services()
                assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# ---- who can read along


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '192.0.2.7', 'scores.example', ''])
def test_others_can_connect_by_tls_only(host: str) -> None:
    with pytest.raises(ValueError, match="'host' must be of this machine alone.*'certificate'"):
        Server(FakeRanker(), host=host)


@pytest.mark.parametrize('host', ['127.0.0.1', '::1', 'localhost', '127.8.9.1'])
def test_this_machine_connects_without_tls(host: str) -> None:
    Server(FakeRanker(), host=host)


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        ({'certificate': 'a.pem'}, "'certificate' must come with 'key'"),
        ({'key': 'a.pem'}, "'key' must come with 'certificate'"),
        ({'load': FakeRanker}, "'load' must come with 'admin_port'"),
        ({'nodes': nodes}, "'nodes' must come with 'open_stream'"),
        ({'port': 2**16}, "'port' must lie below 65536"),
        ({'max_items': 0}, "'max_items' must be at least 1"),
        ({'max_in_flight': 0}, "'max_in_flight' must be at least 1"),
    ],
)
def test_arguments_that_make_no_server_are_refused(
    arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        Server(FakeRanker(), **arguments)


def test_tls_lets_in_who_knows_the_certificate(certificates: list[tuple[str, str]]) -> None:
    (certificate, key), (other, other_key) = certificates
    arguments = {'certificate': certificate, 'key': key, 'metrics_port': 0}
    with serving(FakeRanker(), host='0.0.0.0', **arguments) as server:
        address = f'localhost:{server.port}'
        with Client(address, certificate) as client:
            np.testing.assert_array_equal(client.rank(7, [1]).probability, expected(0, 7, [1]))

        async def ask() -> np.ndarray:
            async with AsyncClient(address, certificate) as client:
                return (await client.rank(7, [1])).probability

        np.testing.assert_array_equal(asyncio.run(ask()), expected(0, 7, [1]))
        for wrong in (None, other):
            with Client(address, wrong) as client, pytest.raises(ConnectionError):
                client.rank(7, [1])
        with pytest.raises(OSError, match='CERTIFICATE_VERIFY_FAILED'):
            urllib.request.urlopen(f'https://localhost:{server.metrics_port}/metrics', timeout=60)
    with pytest.raises(ValueError, match='must be files of PEM that belong together'):
        Server(FakeRanker(), certificate=certificate, key=other_key)
    with pytest.raises(FileNotFoundError):
        Server(FakeRanker(), certificate='none.pem', key=key)


def test_a_server_may_let_in_only_whom_it_knows(certificates: list[tuple[str, str]]) -> None:
    known, other = certificates
    arguments: dict[str, Any] = {'certificate': known[0], 'key': known[1]}
    arguments |= {'metrics_port': 0, 'host': '0.0.0.0'}
    with serving(FakeRanker(), client_authority=known[0], **arguments) as server:
        address = f'localhost:{server.port}'
        with Client(address, known[0], *known) as client:
            assert len(client.rank(7, [1]).probability) == 1
        for own in ((), other):
            with Client(address, known[0], *own) as client, pytest.raises(ConnectionError):
                client.rank(7, [1])
        url = f'https://localhost:{server.metrics_port}/metrics'
        context = ssl.create_default_context(cafile=known[0])
        with pytest.raises(OSError):
            urllib.request.urlopen(url, timeout=60, context=context)
        context.load_cert_chain(*known)
        assert b'mag_shed' in urllib.request.urlopen(url, timeout=60, context=context).read()
    with pytest.raises(ValueError, match="'client_authority' must come with 'certificate'"):
        Server(FakeRanker(), client_authority=known[0])
    with pytest.raises(ValueError, match="'client_authority' must be a file of PEM"):
        Server(FakeRanker(), client_authority=__file__, **arguments)
    for wrong in ((None, *known), (known[0], known[0], None)):
        with pytest.raises(ValueError, match="'certificate' must come with 'key'"):
            Client(address, *wrong)


# ---- both clients, metrics, logs


def test_both_clients_say_the_same(tmp_path: Path) -> None:
    async def main() -> None:
        server = Server(
            FakeRanker(), port=0, open_stream=lambda: SqliteStream(tmp_path / 'a.db'), nodes=nodes
        )
        await server.start()
        address = f'127.0.0.1:{server.port}'
        async with AsyncClient(address) as client:
            with Client(address) as waiting:
                here = await client.rank(404, [3, 1, 2], context={'a': 1})
                there = await asyncio.to_thread(waiting.rank, 404, [3, 1, 2], context={'a': 1})
            np.testing.assert_array_equal(here.probability, there.probability)
            assert (here.position, here.snapshot, here.degraded, here.items) == (
                there.position, there.snapshot, there.degraded, there.items,
            )  # fmt: skip
            assert await client.record([1, 2], [3, 4], [5, 6], [0, 1], position=0) == 2
            assert await client.record([], [], [], []) == 2
            with pytest.raises(ValueError, match='1 to 2000 ids, but got 0'):
                await client.rank(7, [])
            with pytest.raises(ValueError, match='ends at position 2'):
                await client.record([1], [1], [1], [1], position=3)
            await server.stop()
            with pytest.raises(ConnectionError):
                await client.rank(7, [1])
        async with AsyncClient('127.0.0.1:1') as client:
            with pytest.raises((ConnectionError, TimeoutError)):
                await client.rank(7, [1])

    asyncio.run(main())


def test_metrics_say_what_happened(tmp_path: Path) -> None:
    arguments = {'open_stream': lambda: SqliteStream(tmp_path / 'a.db'), 'nodes': nodes}
    ranker = FakeRanker(version=2)
    with (
        serving(ranker, metrics_port=0, **arguments) as server,
        Client(f'127.0.0.1:{server.port}') as client,
    ):

        def sample(name: str, **labels: str) -> float | None:
            return samples.get(name + (str(sorted(labels.items())) if labels else ''))

        def scraped() -> dict[str, float]:
            from prometheus_client.parser import text_string_to_metric_families

            url = f'http://127.0.0.1:{server.metrics_port}/metrics'
            text = urllib.request.urlopen(url, timeout=60).read().decode()
            return {
                found.name
                + (str(sorted(found.labels.items())) if found.labels else ''): found.value
                for family in text_string_to_metric_families(text)
                for found in family.samples
            }

        samples = scraped()
        assert np.isnan(samples['mag_lag_events']) and np.isnan(samples['mag_snapshot_age_seconds'])
        client.rank(404, [1, 10**6, 10**7])
        client.rank(7, [1])
        with pytest.raises(ValueError, match='1 to 2000'):
            client.rank(7, [])
        client.record([1, 1], [2, 3], [4, 4], [1, 0])
        # One is there, and two come; then those between are missing.
        client.record([1, 1, 1], [3, 4, 5], [4, 5, 6], [0, 0, 0], position=1)
        with pytest.raises(ValueError, match='append those from position 4 first'):
            client.record([1], [3], [4], [0], position=6)
        samples = scraped()
    assert sample('mag_requests_total', method='Rank', status='OK') == 2
    assert sample('mag_requests_total', method='Rank', status='INVALID_ARGUMENT') == 1
    assert sample('mag_requests_total', method='Record', status='OK') == 2
    for stage in ('parse', 'wait', 'score', 'serialise'):
        assert sample('mag_stage_seconds_count', stage=stage) == 2
        assert 0 < sample('mag_stage_seconds_sum', stage=stage) < 5  # type: ignore[operator]
    assert sample('mag_degraded_total', reason='log unreachable') == 1
    assert samples['mag_unknown_ids_total'] == 2
    assert samples['mag_recorded_events_total'] == 4
    assert samples['mag_duplicate_events_total'] == 1
    assert samples['mag_gaps_total'] == 1
    assert samples['mag_log_position'] == 2000
    assert (samples['mag_lag_events'], samples['mag_lag_seconds']) == (12, 0.25)
    assert samples['mag_snapshot_age_seconds'] == pytest.approx(time.time() - 1000, abs=60)
    assert samples['mag_in_flight'] == 0


def test_a_request_is_a_line_of_json_where_all_are_asked_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with asking(FakeRanker()) as client:
        client.rank(7, [1])
        assert [record for record in caplog.records if record.message == 'answered'] == []
        with caplog.at_level(logging.DEBUG, 'mag.online.server'):
            client.rank(7, [1])
            with pytest.raises(ValueError, match='1 to 2000'):
                client.rank(7, [])
    lines = [
        JsonFormatter().format(record) for record in caplog.records if record.message == 'answered'
    ]
    facts = [json.loads(line) for line in lines]
    assert [(fact['method'], fact['status']) for fact in facts] == [
        ('Rank', 'OK'), ('Rank', 'INVALID_ARGUMENT'),
    ]  # fmt: skip
    assert all(0 < fact['seconds'] < 5 and '\n' not in line for fact, line in zip(facts, lines))


def test_a_line_of_json_has_the_traceback_of_an_error() -> None:
    try:
        raise RuntimeError('a "reason"\nof two lines')
    except RuntimeError:
        record = logging.LogRecord(
            'mag', logging.ERROR, __file__, 1, 'failed %s', ('é',), sys.exc_info()
        )
    line = JsonFormatter().format(record)
    assert '\n' not in line
    fact = json.loads(line)
    assert fact['message'] == 'failed é'
    assert 'RuntimeError: a "reason"\nof two lines' in fact['exception']
