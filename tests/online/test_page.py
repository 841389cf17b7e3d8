import asyncio
import http.client
import json
import os
import re
import shutil
import socket
import ssl
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')
pytest.importorskip('fastapi', reason='FastAPI is not installed: make test installs it')
pytest.importorskip('uvicorn', reason='uvicorn is not installed: make test installs it')

from mag.online import Client, Overloaded, Ranked, Server, SqliteStream, swap  # noqa: E402
from mag.online.ranker import Explained, MacroEdges, Offers  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from server_thread import in_thread  # noqa: E402

NUM_USERS, NUM_ITEMS, NUM_CLUSTERS = 6, 12, 5
BLOCKS = ('user', 'item', 'user x item')


def node_of(raw: Any, number: int) -> int:
    text = str(raw)[1:]
    return int(text) if text.isdecimal() and int(text) < number else -1


def nodes(node_type: str, raw: Sequence[Any]) -> np.ndarray:
    return np.array(
        [node_of(value, {'user': NUM_USERS, 'item': NUM_ITEMS}[node_type]) for value in raw]
    )


class CountingRanker:
    r"""Ranks by what a log counts: a user clicks an item the likelier, the more items of its
    cluster the user has clicked. A block is left out by leaving out its part of a sum."""

    def __init__(self, path: Path, name: str = 'v0') -> None:
        self.path, self.name = path, name
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.num_asked = 0
        self.is_closed = False

    def stock(self, user: int) -> np.ndarray:
        return (user * 7 + np.arange(NUM_CLUSTERS) * 3) % 11

    def live(self, user: int) -> tuple[np.ndarray, int]:
        with SqliteStream(self.path) as stream:
            events = stream.read(0, 10_000)
        own = events[(events['user'] == user) & (events['clicked'] == 1)]
        return np.bincount(own['item'] % NUM_CLUSTERS, minlength=NUM_CLUSTERS), len(events)

    def parts(self, user: Any, items: Any, more: Any = None) -> tuple[np.ndarray, int]:
        if str(user) == 'refused':
            raise ValueError("'user' must be another one.")
        node = node_of(user, NUM_USERS)
        live, position = self.live(node)
        row = self.stock(node) + live
        if more is not None:
            row[node_of(more, NUM_ITEMS) % NUM_CLUSTERS] += 1
        item = np.array([node_of(of, NUM_ITEMS) for of in items])
        parts = [np.full(len(item), 0.01 * node), 0.003 * item, 0.02 * row[item % NUM_CLUSTERS]]
        return np.stack(parts, axis=1), position

    def ranked(self, parts: np.ndarray, position: int) -> Ranked:
        degraded = ('log unreachable',) if self.name == 'worse' else ()
        return Ranked(
            0.1 + parts.sum(axis=1), position, self.name, degraded, lag=3, lag_seconds=0.25
        )

    def rank(self, user: Any, items: Any, time: int, context: Any) -> Ranked:
        self.num_asked += 1
        self.may_answer.wait()
        return self.ranked(*self.parts(user, items))

    def explain(self, user: Any, items: Any, time: int, context: Any, num_edges: int) -> Explained:
        self.num_asked += 1
        self.may_answer.wait()
        parts, position = self.parts(user, items)
        ranked = self.ranked(parts, position)
        stock = self.stock(node_of(user, NUM_USERS))
        live, _ = self.live(node_of(user, NUM_USERS))
        most = np.argsort(-(stock + live), kind='stable')[:num_edges]
        one = np.ones(1, np.int64)
        return Explained(
            ranked,
            BLOCKS,
            ranked.probability[:, None] - parts,
            MacroEdges(most, stock[most], live[most]),
            tuple(
                MacroEdges(place * one, (place + 1) * one, 0 * one) for place in range(len(items))
            ),
        )

    def what_if(
        self, user: Any, items: Any, time: int, context: Any, clicked: Any
    ) -> tuple[Ranked, Ranked]:
        before, after = self.parts(user, items), self.parts(user, items, clicked)
        return self.ranked(*before), self.ranked(*after)

    def offers(self, number: int) -> Offers:
        return Offers(
            [f'u{user}' for user in range(NUM_USERS)],
            [f'i{item}' for item in range(NUM_ITEMS)],
            {'device': ['phone', 'tablet']},
        )

    def close(self) -> None:
        self.is_closed = True


@contextmanager
def serving(ranker: CountingRanker, records: bool = True, **arguments: Any) -> Iterator[Server]:
    r"""A server with a page, in a thread."""
    if records:
        arguments |= {'open_stream': lambda: SqliteStream(ranker.path), 'nodes': nodes}
    server = Server(ranker, port=0, page_port=0, **arguments)
    with in_thread(server):
        yield server


@pytest.fixture
def ranker(tmp_path: Path) -> CountingRanker:
    return CountingRanker(tmp_path / 'events.db')


def ask(
    server: Server, path: str, body: Any = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    r"""The status and the JSON that a path answers with."""
    connection = http.client.HTTPConnection('127.0.0.1', server.page_port, timeout=60)
    try:
        if body is None:
            connection.request('GET', path, headers=dict(headers or {}))
        else:
            packed = body if isinstance(body, bytes) else json.dumps(body).encode()
            sent = {'Content-Type': 'application/json', **(headers or {})}
            connection.request('POST', path, packed, sent)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


ITEMS = [f'i{item}' for item in range(NUM_ITEMS)]


# ---- what the page asks


def test_what_moves_a_ranking_is_told(ranker: CountingRanker) -> None:
    with serving(ranker) as server:
        question = {'user': 'u1', 'items': ['i3', 'i1'], 'context': {'device': 'phone'}}
        status, found = ask(server, '/api/explain', {**question, 'num_edges': 2})
    assert status == 200
    # Of u1 the stock is 7, 10, 2, 5, 8; i3 is in cluster 3, i1 in cluster 1.
    np.testing.assert_allclose(found.pop('probabilities'), [0.219, 0.313], rtol=1e-6)
    without = [[0.209, 0.21, 0.119], [0.303, 0.31, 0.113]]
    np.testing.assert_allclose(found.pop('without'), without, rtol=1e-6)
    assert found == {
        'position': 0,
        'snapshot': 'v0',
        'degraded': [],
        'blocks': ['user', 'item', 'user x item'],
        'user': {'clusters': [1, 4], 'stock': [10, 8], 'live': [0, 0]},
        'items': [
            {'clusters': [0], 'stock': [1], 'live': [0]},
            {'clusters': [1], 'stock': [2], 'live': [0]},
        ],
    }


def test_what_would_be_is_recorded_nowhere_and_what_is_recorded_is_seen(
    ranker: CountingRanker,
) -> None:
    question = {'user': 'u1', 'items': ['i3', 'i1']}
    with serving(ranker) as server:
        status, found = ask(server, '/api/what_if', {**question, 'clicked': 'i8'})
        assert status == 200
        np.testing.assert_allclose(found['before']['probabilities'], [0.219, 0.313], rtol=1e-6)
        np.testing.assert_allclose(found['after']['probabilities'], [0.239, 0.313], rtol=1e-6)
        assert found['before']['position'] == found['after']['position'] == 0
        assert ask(server, '/api/explain', question)[1]['position'] == 0
        begun = int(time.time())
        assert ask(server, '/api/record', {'user': 'u1', 'item': 'i8'}) == (200, {'end': 1})
        one = {'user': 'u2', 'item': 'i4', 'time': 9, 'clicked': False}
        assert ask(server, '/api/record', one) == (200, {'end': 2})
        _, seen = ask(server, '/api/explain', question)
        np.testing.assert_allclose(seen['probabilities'], [0.239, 0.313], rtol=1e-6)
        assert seen['position'] == 2
        edges = dict(zip(seen['user']['clusters'], seen['user']['live']))
        assert edges == {0: 0, 1: 0, 2: 0, 3: 1, 4: 0}
    with SqliteStream(ranker.path) as stream:
        first, second = stream.read(0, 9).tolist()
    assert first[:2] == (1, 8) and begun <= first[2] <= time.time() and first[3] == 1
    assert second == (2, 4, 9, 0)


def test_the_state_is_that_of_the_last_answer_to_anyone(ranker: CountingRanker) -> None:
    with serving(ranker, max_in_flight=7) as server:
        status, state = ask(server, '/api/state')
        assert status == 200
        nothing = dict.fromkeys(('snapshot', 'position', 'lag', 'lag_seconds', 'p50', 'p99'))
        always = {'in_flight': 0, 'max_in_flight': 7, 'records': True, 'degraded': []}
        assert state == {**nothing, **always}
        with Client(f'127.0.0.1:{server.port}') as client:
            client.record(['u1'], ['i1'], [5], [True], timeout=60)
            client.rank('u1', ['i1'], timeout=60)
        _, state = ask(server, '/api/state')
        assert 0 < state.pop('p50') <= state.pop('p99') < 60
        facts = {'snapshot': 'v0', 'position': 1, 'lag': 3, 'lag_seconds': 0.25}
        assert state == {**facts, **always}
    with serving(CountingRanker(ranker.path, 'worse'), records=False) as server:
        ask(server, '/api/explain', {'user': 'u1', 'items': ['i1']})
        _, state = ask(server, '/api/state')
        assert (state['degraded'], state['records']) == (['log unreachable'], False)


def test_ids_and_contexts_are_offered(ranker: CountingRanker) -> None:
    with serving(ranker) as server:
        status, offers = ask(server, '/api/offers')
    assert status == 200
    assert offers == {
        'users': [f'u{user}' for user in range(NUM_USERS)],
        'items': ITEMS,
        'contexts': {'device': ['phone', 'tablet']},
    }


def test_a_snapshot_offers_what_has_the_most_clicks(shop: Any, tmp_path: Path) -> None:
    from mag.online import Snapshot
    from mag.pipeline.serving import make_server, write_served

    pipeline = shop('count_net')
    path = write_served(pipeline, tmp_path)
    server = make_server(path, str(tmp_path / 'events.db'))
    offers = server._serving.ranker.offers(3)
    assert server._serving.ranker.offers(3) is offers
    server._serving.ranker.close()
    events = pipeline.events()
    clicks = events[events['clicked'] == 1]
    maps = Snapshot.open(path).id_maps
    for node, found in (('user', offers.users), ('item', offers.items)):
        number = Counter(maps[node].decode(clicks[node]).tolist())
        assert [number[raw] for raw in found] == [n for _, n in number.most_common(3)]
    assert offers.contexts == {'device': ['phone', 'tablet']}


# ---- limits


@pytest.fixture(scope='module')
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp('strict') / 'events.db'
    with serving(CountingRanker(path), max_items=5) as server:
        yield server


@pytest.mark.parametrize(
    ('path', 'body', 'sentence'),
    [
        ('explain', {'items': ['i1']}, "'user' must be an id, a text or a number, but none was"),
        ('explain', {'user': 'u1'}, "'items' must be 1 to 5 ids, but got 0."),
        ('explain', {'user': 'u1', 'items': ITEMS}, "'items' must be 1 to 5 ids, but got 12."),
        ('explain', {'user': [], 'items': [1]}, "'user' must have integers or texts as ids, but"),
        ('explain', {'user': 1, 'items': 'i1'}, "'items' must be a sequence of ids, but got str."),
        ('explain', {'user': 1, 'items': [1], 'context': [1]}, "'context' must be an object"),
        ('explain', {'user': 1, 'items': [1], 'context': {'a': {}}}, "must be a text or a number"),
        ('explain', {'user': 1, 'items': [1], 'time': 2**63}, "'time' must lie below 9223372036"),
        ('explain', {'user': 1, 'items': [1], 'time': 'x'}, "'time' must be an integer, but got"),
        ('explain', {'user': 1, 'items': [1], 'num_edges': 0.5}, "'num_edges' must be"),
        ('explain', {'user': 'refused', 'items': [1]}, "'user' must be another one."),
        ('what_if', {'user': 'u1', 'items': ['i1']}, "'clicked' must be an id, a text or a number"),
        ('record', {'user': 'u1'}, "'items' must be 1 to 65536 ids, but got 0."),
        ('record', {'user': 'u1', 'item': 'i99'}, "'items' must be known, but 1 of 1 are not"),
        ('record', {'user': 'u1', 'item': 'i1', 'clicked': 'no'}, "'clicked' must be True or"),
        ('record', {'user': 'u1', 'item': 'i1', 'time': None}, "'time' must be an integer, but"),
        ('record', [], 'A request must be an object of JSON, but got list.'),
        ('explain', b'{"user": ', 'A request must be JSON, but is not'),
        ('explain', b'[' * 100_000, 'A request must be JSON, but is not'),
        ('explain', b'\xff', 'A request must be JSON, but is not'),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_what_must_be(
    strict: Server, path: str, body: Any, sentence: str
) -> None:
    status, found = ask(strict, f'/api/{path}', body)
    assert (status, list(found)) == (400, ['detail'])
    assert sentence in found['detail']
    assert ask(strict, '/api/explain', {'user': 'u1', 'items': ['i1']})[1]['position'] == 0


def test_what_is_too_large_is_refused_before_it_is_read(strict: Server) -> None:
    body = b'"' + b'x' * 4 * 2**20 + b'"'
    status, found = ask(strict, '/api/explain', body)
    assert (status, found) == (413, {'detail': 'A request has 4194304 bytes at most.'})


@pytest.mark.parametrize(
    ('headers', 'body', 'status', 'sentence'),
    [
        ({'Host': 'rebound.example'}, None, 400, "'Host' must be that of this server, but got 're"),
        ({'Host': 'localhost.example:1'}, {}, 400, "'Host' must be that of this server"),
        ({'Host': '[::1'}, None, 400, "'Host' must be that of this server"),
        ({'Host': ''}, None, 400, "'Host' must be that of this server, but got ''."),
        ({'Host': 'localhost'}, None, 200, ''),
        ({'Host': '[::1]:80'}, None, 200, ''),
        ({'Origin': 'http://elsewhere.example'}, {}, 403, "'Origin' must be that of this server"),
        ({'Origin': 'null'}, {}, 403, "'Origin' must be that of this server, but got 'null'."),
        ({'Origin': 'http://localhost:1', 'Host': 'localhost:2'}, {}, 403, "'Origin' must be"),
        ({'Origin': 'http://localhost:2', 'Host': 'localhost:2'}, {}, 400, "'user' must be an id"),
        ({'Content-Type': 'text/plain'}, {}, 415, "'Content-Type' must be 'application/json', but"),
        ({'Content-Type': ''}, {}, 415, "'Content-Type' must be 'application/json', but got ''."),
    ],
)  # fmt: skip
def test_what_another_page_sends_is_refused(
    strict: Server, headers: dict[str, str], body: Any, status: int, sentence: str
) -> None:
    path = '/api/state' if body is None else '/api/explain'
    found_status, found = ask(strict, path, body, headers)
    assert found_status == status
    assert found.get('detail', '').startswith(sentence)


def test_the_page_may_load_nothing_from_elsewhere(strict: Server) -> None:
    address = f'http://127.0.0.1:{strict.page_port}/'
    with urllib.request.urlopen(address, timeout=60) as response:
        headers, text = response.headers, response.read().decode()
        policy = headers['Content-Security-Policy']
    (nonce,) = set(re.findall(r"'nonce-([^']+)'", policy))
    assert re.findall(r'<(?:script|style)\b[^>]*>', text) == [
        f'<style nonce="{nonce}">', f'<script nonce="{nonce}">',
    ]  # fmt: skip
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert headers['X-Content-Type-Options'] == 'nosniff'
    assert 'http' not in text
    with urllib.request.urlopen(address, timeout=60) as response:
        assert response.headers['Content-Security-Policy'] != policy
    for path in ('/docs', '/openapi.json'):
        assert ask(strict, path)[0] == 404


def test_the_page_is_shed_as_others_are_and_counted_with_them(ranker: CountingRanker) -> None:
    question = {'user': 'u1', 'items': ['i1']}
    ranker.may_answer.clear()
    with (
        serving(ranker, max_in_flight=2) as server,
        Client(f'127.0.0.1:{server.port}') as client,
        ThreadPoolExecutor(2) as threads,
    ):
        first = threads.submit(client.rank, 'u1', ['i1'], timeout=60)
        second = threads.submit(ask, server, '/api/explain', question)
        wait_until(lambda: server._num_in_flight == 2)
        status, found = ask(server, '/api/explain', question)
        assert (status, found['detail'][:26]) == (429, '2 requests are in flight, ')
        with pytest.raises(Overloaded):
            client.rank('u1', ['i1'], timeout=60)
        assert ask(server, '/api/state')[1]['in_flight'] == 2
        ranker.may_answer.set()
        assert first.result().position == 0
        assert second.result()[0] == 200
        wait_until(lambda: server._num_in_flight == 0)
        sample = server.metrics.registry.get_sample_value
        assert sample('mag_shed_total') == 2
        for method in ('Rank', 'Explain'):
            for name in ('OK', 'RESOURCE_EXHAUSTED'):
                labels = {'method': method, 'status': name}
                assert sample('mag_requests_total', labels) == 1


def test_what_is_late_is_not_scored(
    ranker: CountingRanker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr('mag.online.page._PATIENCE', 0.0)
    with serving(ranker) as server:
        assert ask(server, '/api/explain', {'user': 'u1', 'items': ['i1']})[0] == 504
    assert ranker.num_asked == 0


def test_a_server_that_records_nothing_says_so(ranker: CountingRanker) -> None:
    with serving(ranker, records=False) as server:
        status, found = ask(server, '/api/record', {'user': 'u1', 'item': 'i1'})
    assert (status, found) == (501, {'detail': 'This server records no events.'})


def test_a_request_is_scored_by_the_snapshot_that_served_when_it_came(tmp_path: Path) -> None:
    old, new = (CountingRanker(tmp_path / 'events.db', name) for name in ('old', 'new'))
    question = {'user': 'u1', 'items': ['i1']}
    with serving(old, admin_port=0, load=lambda name: new) as server:
        old.may_answer.clear()
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(ask, server, '/api/explain', question)
            wait_until(lambda: old.num_asked == 1)
            swap(f'127.0.0.1:{server.admin_port}', 'new')
            assert ask(server, '/api/explain', question)[1]['snapshot'] == 'new'
            assert not old.is_closed
            old.may_answer.set()
            assert answer.result()[1]['snapshot'] == 'old'
        wait_until(lambda: old.is_closed)


def test_a_server_that_ends_answers_what_is_in_flight(ranker: CountingRanker) -> None:
    ranker.may_answer.clear()
    with ThreadPoolExecutor(1) as threads:
        with serving(ranker) as server:
            answer = threads.submit(ask, server, '/api/explain', {'user': 'u1', 'items': ['i1']})
            wait_until(lambda: ranker.num_asked == 1)
            threading.Timer(0.3, ranker.may_answer.set).start()
        assert answer.result()[0] == 200
        with pytest.raises(ConnectionError):
            ask(server, '/api/state')


def test_a_port_that_is_taken_is_told(ranker: CountingRanker) -> None:
    with socket.create_server(('127.0.0.1', 0)) as taken:
        port = taken.getsockname()[1]
        server = Server(ranker, port=0, page_port=port)
        with pytest.raises(OSError, match=f'(?i)address already in use.*{port}'):
            asyncio.run(server.start())
    assert ranker.is_closed
    with pytest.raises(ValueError, match="'page_port' must lie below 65536"):
        Server(ranker, page_port=2**16)


def test_with_tls_it_has_the_certificate_of_the_server_and_asks_for_that_of_the_client(
    ranker: CountingRanker, certificates: list[tuple[str, str]]
) -> None:
    (certificate, key), other = certificates
    with serving(ranker, certificate=certificate, key=key, client_authority=certificate) as server:
        address = f'https://localhost:{server.page_port}/api/state'

        def state(own: tuple[str, str] | None, authority: str = certificate) -> Any:
            context = ssl.create_default_context(cafile=authority)
            if own is not None:
                context.load_cert_chain(*own)
            with urllib.request.urlopen(address, timeout=60, context=context) as response:
                return json.loads(response.read())

        assert state((certificate, key))['max_in_flight'] == server.max_in_flight
        for own, authority in ((None, certificate), (other, certificate), (None, other[0])):
            # What is refused in the end of a handshake may come as a connection that breaks.
            with pytest.raises(OSError):
                state(own, authority)
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(server, '/api/state')


def test_what_scores_and_offers_nothing_offers_nothing(
    ranker: CountingRanker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(CountingRanker, 'offers')
    monkeypatch.delattr(CountingRanker, 'explain')
    with serving(ranker) as server:
        assert ask(server, '/api/offers') == (200, {'users': [], 'items': [], 'contexts': {}})
        status, found = ask(server, '/api/explain', {'user': 'u1', 'items': ['i1']})
    assert status == 501
    assert 'no Explain' in found['detail']


def test_without_what_serves_the_page_the_extra_is_named(
    ranker: CountingRanker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'fastapi', None)
    monkeypatch.delitem(sys.modules, 'mag.online.page', raising=False)
    want = r"needs fastapi, which is not installed: pip install 'pyg-mag\[page\]'"
    with pytest.raises(ModuleNotFoundError, match=want):
        Server(ranker, page_port=0)


# ---- in a browser

# A browser of Debian without a user, a screen or a network.
CHROMIUM_ARGUMENTS = [
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run',
    '--disable-background-networking', '--disable-component-update', '--disable-sync',
]  # fmt: skip


def chromium() -> str:
    r"""A Chromium that is installed, of the system or of Playwright."""
    playwright = pytest.importorskip(
        'playwright.sync_api', reason='Playwright is not installed: make test installs it'
    )
    names = ('chromium', 'chromium-browser', 'google-chrome')
    found = [os.environ.get('CHROMIUM'), *map(shutil.which, names)]
    with playwright.sync_playwright() as driver:
        found.append(driver.chromium.executable_path)
    for path in filter(None, found):
        if os.path.exists(path):
            return path
    pytest.skip(
        'there is no Chromium: apt-get install chromium, playwright install chromium, or name one '
        'by CHROMIUM=path'
    )


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
        yield launched
        launched.close()


@contextmanager
def looking(browser: Any, server: Server, but: str = 'nothing') -> Iterator[Any]:
    r"""The page once it shows a ranking; nothing may go wrong in it but what is expected."""
    page = browser.new_page(reduced_motion='reduce')
    page.set_default_timeout(60_000)
    wrong: list[str] = []
    page.on('pageerror', lambda error: wrong.append(str(error)))
    page.on('console', lambda message: wrong.append(message.text))
    try:
        page.goto(f'http://127.0.0.1:{server.page_port}/')
        page.wait_for_selector('#rows tr[data-item]')
        yield page
        assert not [sentence for sentence in wrong if but not in sentence]
    finally:
        page.close()


def shown(page: Any) -> tuple[list[str], dict[str, dict[str, float]]]:
    r"""The items in their order, and what is told of each."""
    rows = page.eval_on_selector_all(
        '#rows tr[data-item]',
        """rows => rows.map(row => [row.dataset.item, {
            rank: Number(row.dataset.rank), moved: Number(row.dataset.moved),
            probability: Number(row.dataset.probability),
            effects: [...row.querySelectorAll('.effect')].map(cell => Number(cell.dataset.effect)),
            signed: [...row.querySelectorAll('.signed i')].map(
                bar => bar.getBoundingClientRect().width * (bar.className === 'down' ? -1 : 1)),
        }])""",
    )
    return [item for item, _ in rows], dict(rows)


def bars(page: Any) -> dict[int, dict[str, float]]:
    r"""The numbers and heights of the bars of the user, by cluster."""
    columns = page.eval_on_selector_all(
        '#edges li',
        """columns => columns.map(column => [Number(column.dataset.cluster), {
            stock: Number(column.dataset.stock), live: Number(column.dataset.live),
            added: Number(column.dataset.added),
            of_stock: column.querySelector('.stock').getBoundingClientRect().height,
            of_live: column.querySelector('.live').getBoundingClientRect().height,
        }])""",
    )
    return dict(columns)


def check_shown(page: Any, answer: dict[str, Any]) -> None:
    r"""What is shown is what the API tells."""
    order, told = shown(page)
    probability = np.array(answer['probabilities'])
    ranks = np.argsort(-probability, kind='stable')
    assert order == [ITEMS[place] for place in ranks]
    effects = probability[:, None] - np.array(answer['without'])
    widest = np.abs(effects).max()
    for rank, place in enumerate(ranks):
        of_item = told[ITEMS[place]]
        assert (of_item['rank'], of_item['probability']) == (rank + 1, probability[place])
        np.testing.assert_allclose(of_item['effects'], effects[place], atol=1e-12)
    width = max(max(map(abs, of_item['signed'])) for of_item in told.values())
    found = np.array([told[item]['signed'] for item in ITEMS])
    np.testing.assert_allclose(found / width, effects / widest, atol=0.05)
    edges = answer['user']
    found_bars = bars(page)
    assert sorted(found_bars) == sorted(edges['clusters'])
    most = max(stock + live for stock, live in zip(edges['stock'], edges['live']))
    height = max(of['of_stock'] + of['of_live'] for of in found_bars.values())
    for cluster, stock, live in zip(edges['clusters'], edges['stock'], edges['live']):
        of = found_bars[cluster]
        assert (of['stock'], of['live']) == (stock, live)
        np.testing.assert_allclose(of['of_stock'], height * stock / most, atol=0.5)
        np.testing.assert_allclose(of['of_live'], height * live / most, atol=0.5)


def test_a_click_moves_ranks_and_bars_and_what_if_records_nothing(
    browser: Any, ranker: CountingRanker
) -> None:
    from playwright.sync_api import expect

    with serving(ranker) as server, looking(browser, server) as page:

        def answer(user: str) -> dict[str, Any]:
            question = {'user': user, 'items': ITEMS, 'context': {'device': 'phone'}}
            return ask(server, '/api/explain', question)[1]

        def says(sentence: str) -> None:
            expect(page.locator('#sentence')).to_have_text(sentence)

        # It begins with what is offered first.
        check_shown(page, answer('u0'))
        assert page.locator('#users option').count() == NUM_USERS
        page.get_by_label('User', exact=True).fill('u2')
        page.get_by_label('User', exact=True).press('Enter')
        expect(page.locator('#of-user')).to_have_text('Clicks of user u2 by cluster')
        check_shown(page, before := answer('u2'))
        first, _ = shown(page)

        # i6 is in cluster 1, of which u2 has 6, and i4 in cluster 4, of which it has 4.
        page.get_by_role('button', name='What if i4 were clicked?').click()
        says('What if u2 clicked i4? Nothing is recorded.')
        order, told = shown(page)
        what_if = {'user': 'u2', 'items': ITEMS, 'clicked': 'i4'}
        after = np.array(ask(server, '/api/what_if', what_if)[1]['after']['probabilities'])
        assert order == [ITEMS[place] for place in np.argsort(-after, kind='stable')]
        assert order != first
        for item, of_item in told.items():
            assert of_item['moved'] == first.index(item) - order.index(item)
        page.keyboard.press('Escape')
        check_shown(page, before)
        assert answer('u2')['position'] == 0
        assert not ranker.path.exists() or len(SqliteStream(ranker.path).read(0)) == 0

        page.get_by_role('button', name='Record a click on i4').click()
        says('Recorded: u2 clicked i4, at position 0.')
        check_shown(page, answer('u2'))
        now, told = shown(page)
        assert now == order
        for item, of_item in told.items():
            assert of_item['moved'] == first.index(item) - now.index(item)
        added = {cluster: of['added'] for cluster, of in bars(page).items()}
        assert added == {0: 0, 1: 0, 2: 0, 3: 0, 4: 1}
        expect(page.locator('#position')).to_have_text('1')
        expect(page.locator('#lag')).to_have_text('3 events, 0.25 s')
        expect(page.locator('#snapshot')).to_have_text('v0')
        expect(page.locator('#degraded')).to_have_text('fresh')
        assert re.fullmatch(r'[\d.,]+ ms', page.locator('#p99').inner_text())

        # What others record is seen without a word.
        with Client(f'127.0.0.1:{server.port}') as client:
            client.record(['u2'] * 2, ['i9'] * 2, [9, 9], [True, True], timeout=60)
        expect(page.locator('#position')).to_have_text('3')
        expect(page.locator('#edges li[data-cluster="4"]')).to_have_attribute('data-live', '3')
        check_shown(page, answer('u2'))
        with SqliteStream(ranker.path) as stream:
            events = stream.read(0)
            assert events['item'].tolist() == [4, 9, 9]


def test_the_page_needs_no_mouse_and_tells_what_is_wrong(
    browser: Any, ranker: CountingRanker
) -> None:
    from playwright.sync_api import expect

    refused = 'the server responded with a status of 400'
    with serving(ranker, records=False) as server, looking(browser, server, refused) as page:
        # A server that records nothing offers no click.
        assert page.get_by_role('button', name=re.compile('Record')).count() == 0
        opens = page.get_by_role('button', name='i3', exact=True)
        opens.focus()
        page.keyboard.press('Enter')
        expect(opens).to_have_attribute('aria-expanded', 'true')
        detail = page.get_by_role('list', name='Who has clicked i3, by cluster')
        expect(detail.get_by_role('listitem')).to_have_count(1)
        label = detail.get_by_role('listitem').get_attribute('aria-label')
        assert label == 'Cluster 3: 4 in the snapshot, 0 since'
        # It is refreshed without taking the focus.
        asked = ranker.num_asked
        wait_until(lambda: ranker.num_asked > asked)
        assert page.evaluate('document.activeElement.getAttribute("aria-label")') == 'i3'
        unlabelled = page.eval_on_selector_all(
            'input, textarea, button',
            """found => found.filter(
                one => !one.labels?.length && !(one.getAttribute('aria-label') || one.textContent)
            ).length""",
        )
        assert unlabelled == 0

        page.get_by_label('User', exact=True).fill('refused')
        page.get_by_label('User', exact=True).press('Enter')
        status = page.get_by_role('status')
        expect(status).to_contain_text("'user' must be another one.")


def test_the_page_tells_in_both_schemes_with_enough_contrast(
    browser: Any, ranker: CountingRanker
) -> None:
    r"""By the formula of WCAG, 4.5 for texts."""

    def luminance(color: str) -> float:
        value = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
        linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    with serving(ranker) as server, looking(browser, server) as page:
        for scheme in ('light', 'dark'):
            page.emulate_media(color_scheme=scheme)
            style = """name => getComputedStyle(document.documentElement).getPropertyValue(name)"""
            color = {
                name: luminance(page.evaluate(style, f'--{name}').strip())
                for name in ('ground', 'card', 'ink', 'soft', 'up', 'down', 'stock', 'live')
            }
            for name, least in (
                ('ink', 7), ('soft', 4.5), ('up', 4.5), ('down', 4.5), ('stock', 3), ('live', 3),
            ):  # fmt: skip
                low, high = sorted((color[name], color['card']))
                assert (high + 0.05) / (low + 0.05) >= least, (scheme, name)
