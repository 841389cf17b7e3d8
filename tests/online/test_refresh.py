import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')

from mag.command_line import main  # noqa: E402
from mag.online import Client, Server, Snapshot, SqliteIdRegister, SqliteStream  # noqa: E402
from mag.pipeline import Pipeline  # noqa: E402
from mag.pipeline.refresh import delete_older, refresh  # noqa: E402
from mag.pipeline.serving import make_server, write_served  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from server_thread import in_thread  # noqa: E402


def run(*arguments: Any, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == exit_code, result.output
    return result


@contextmanager
def serving(snapshot: str, log: Path) -> Iterator[Server]:
    r"""A server in a thread."""
    server = make_server(snapshot, str(log), port=0, admin_port=0)
    with in_thread(server):
        yield server


@contextmanager
def repeating(*calls: Callable[[int], Any]) -> Iterator[list[Any]]:
    r"""Calls each in a thread, again and again, and collects what it returns or raises."""
    ended, found = threading.Event(), []

    def repeat(call: Callable[[int], Any]) -> None:
        number = 0
        # Others need the processor, too.
        while not ended.wait(0.002):
            try:
                found.append(call(number))
            except Exception as error:
                found.append(error)
            number += 1

    threads = [threading.Thread(target=repeat, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    try:
        yield found
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def test_a_server_is_refreshed_while_it_ranks_and_records_who_is_new(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop('macgnn')
    pipeline.save(tmp_path / 'shop')
    log, snapshots = tmp_path / 'events.db', tmp_path / 'snapshots'
    first = write_served(pipeline, snapshots)
    last, end = int(pipeline.events()['time'][-1]), len(pipeline.events())
    items = ['m3', 'm5', 'i0', 'nothing']

    with serving(first, log) as server, Client(f'127.0.0.1:{server.port}') as client:
        admin = f'127.0.0.1:{server.admin_port}'

        def record(number: int) -> int:
            # Some of them for the first time.
            users, shown = [f'u{number % 7}', 'm7'], ['m3', f'i{number // 3 % 5}']
            times = [last + number // 4, last + number // 4 - number % 3]
            return client.record(users, shown, times, [True, number % 2 == 0], timeout=60.0)

        def rank(number: int) -> Any:
            return client.rank(f'u{number % 9}', items, timeout=60.0)

        command = 'refresh', tmp_path / 'shop', '--out', snapshots, '--log', log, '--admin', admin
        with repeating(record, rank) as found:
            while not any(isinstance(one, int) for one in found):
                time.sleep(0.01)
            second = run(*command, '--keep', 2).stdout.strip()
            third = run(*command, '--keep', 2).stdout.strip()
        assert not [one for one in found if isinstance(one, Exception)]
        assert len({first, second, third}) == 3
        # The server never went back to an event that it had seen, nor to a snapshot.
        positions = [one.position for one in found if not isinstance(one, int)]
        assert positions == sorted(positions)
        names = [one.snapshot for one in found if not isinstance(one, int)]
        order = [os.path.basename(path) for path in (first, second, third)]
        assert [*dict.fromkeys(names)] == order[: len(set(names))]
        left = {second, third}
        assert {str(path) for path in snapshots.iterdir()} == {
            *left, *(f'{path}.pipeline' for path in left), str(snapshots / 'latest'),
        }  # fmt: skip
        assert os.path.realpath(snapshots / 'latest') == third
        # Numbers of the events, of the register and of the snapshots are the same.
        with SqliteStream(log) as stream, SqliteIdRegister(log) as register:
            assert stream.end == end + 2 * sum(isinstance(one, int) for one in found)
            ids = register.read('user', 60)
            assert sorted(ids) == [f'u{n}' for n in range(len(ids))]
            held = stream.read(end, 1)
            assert ids[held['user'][0] - 60] == 'u0'
        newest = Snapshot.open(third)
        grown = newest.id_maps['user'].decode(range(60, newest.num_nodes['user'])).tolist()
        assert grown == ids[: len(grown)]
        # What it answers is what the pipeline of a snapshot of all events does.
        path = run(
            'snapshot', snapshots / 'latest.pipeline', '--out', snapshots, '--log', log, exit_code=1
        )
        assert 'latest.pipeline' in path.stderr
        path = run('snapshot', f'{third}.pipeline', '--out', snapshots, '--log', log).stdout.strip()
        assert run('swap', path, '--admin', admin).output == ''
        later = Pipeline.load(f'{path}.pipeline')
        for user in ('u0', 'm7', 'somebody'):
            answer = client.rank(user, items, timeout=60.0)
            assert answer.snapshot == os.path.basename(path)
            assert answer.position == len(later.events())
            scores = later.score(user, items).numpy()
            np.testing.assert_allclose(answer.probability, scores, rtol=1e-6)
        shown = run('swap', 'none', '--admin', admin, exit_code=1).stderr
        assert "'none' does not serve, and what served goes on" in shown
        assert client.rank('u0', items, timeout=60.0).snapshot == os.path.basename(path)
        # It goes back to the first, too, which has none of the ids: a copy of it, as it is deleted.
    again = write_served(pipeline, tmp_path / 'again')
    with serving(again, log) as server, Client(f'127.0.0.1:{server.port}') as client:
        assert client.rank('u0', items, timeout=60.0).position == len(later.events())


def test_servers_of_one_log_give_an_id_one_number(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = write_served(shop('macgnn'), tmp_path / 'snapshots')
    log = tmp_path / 'events.db'
    with (
        serving(snapshot, log) as one,
        serving(snapshot, log) as other,
        Client(f'127.0.0.1:{one.port}') as client,
        Client(f'127.0.0.1:{other.port}') as another,
    ):
        end = client.record(['zoe', 'm7', 'zoe'], [7, 7, 'm3'], [1, 2, 3], [1, 0, 1], timeout=60.0)
        assert another.record(['abe', 'zoe'], ['7', 8], [4, 5], [1, 1], timeout=60.0) == end + 2
        names = 'mag_new_ids_total', 'mag_unknown_ids_total', 'mag_recorded_events_total'
        for server, expected in ((one, [2, 4, 3]), (other, [2, 4, 2])):
            registry = server.metrics.registry
            assert [registry.get_sample_value(name) for name in names] == expected
        with SqliteStream(log) as stream, SqliteIdRegister(log) as register:
            m7, m3 = (
                shop('macgnn')._known().look_up(*of)[0]
                for of in (('user', ['m7']), ('item', ['m3']))
            )
            held = stream.read(end - 3)
            assert held['user'].tolist() == [60, m7, 60, 61, 60]
            assert held['item'].tolist() == [40, 40, m3, 40, 41]
            assert register.read('user', 60) == ['zoe', 'abe']
            assert register.read('item', 40) == ['7', '8']
            # What is refused is not there, nor are its ids.
            with pytest.raises(
                ValueError, match='Ids of users must have 1 to 256 bytes, but 1 of 2'
            ):
                client.record(['new', 'x' * 257], ['m3', 'm3'], [6, 6], [1, 1], timeout=60.0)
            assert register.read('user', 62) == [] and stream.end == end + 2
        assert one._register is not None

        def fail(ids: Any) -> Any:
            raise OSError('no space left on device')

        monkeypatch.setattr(one._register, 'add', fail)
        with pytest.raises(ConnectionError, match='takes no events now.*no space left on device'):
            client.record(['new'], ['m3'], [7], [1], timeout=60.0)
        # Those that the snapshot has need no register.
        assert client.record(['m7'], ['m3'], [7], [1], timeout=60.0) == end + 3


def test_where_no_server_swaps_nothing_is_deleted(
    shop: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = shop('macgnn')
    pipeline.save(tmp_path / 'shop')
    first = write_served(pipeline, tmp_path / 'snapshots')
    log = tmp_path / 'events.db'
    with SqliteStream(log) as stream, SqliteIdRegister(log) as register:
        stream.append(pipeline.events(), 0)
        register.begin(pipeline._known().maps)
        stream.append(pipeline.events()[-1:], stream.end)
    command = 'refresh', tmp_path / 'shop', '--out', tmp_path / 'snapshots', '--log', log
    shown = run(*command, '--admin', '127.0.0.1:1', '--keep', 1, exit_code=1).stderr
    assert 'The server at 127.0.0.1:1 cannot be reached' in shown
    assert os.path.isdir(first) and not os.path.lexists(tmp_path / 'snapshots' / 'latest')
    # Where it is to try again, it does.
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            raise SystemExit(0)

    monkeypatch.setattr(time, 'sleep', sleep)
    shown = run(*command, '--admin', '127.0.0.1:1', '--every', 900).stderr
    monkeypatch.undo()
    assert shown.count('Error: The server at 127.0.0.1:1 cannot be reached') == 2
    assert all(600 < seconds < 900 for seconds in waited)
    number = len(pipeline.events())
    shown = run(
        'snapshot', tmp_path / 'shop', '--out', tmp_path, '--log', log, '--at', number - 1,
        exit_code=1,
    ).stderr  # fmt: skip
    assert f"Error: 'at' must be at least {number}" in shown
    shown = run('snapshot', tmp_path / 'shop', '--out', tmp_path, '--at', 3, exit_code=2).stderr
    assert "'--at' is a position in a '--log'" in shown
    nowhere = tmp_path / 'none' / 'events.db'
    shown = run(
        'snapshot', tmp_path / 'shop', '--out', tmp_path, '--log', nowhere, exit_code=1
    ).stderr
    assert shown == f"Error: There is no folder '{nowhere.parent}' for the log.\n"
    at = run('snapshot', tmp_path / 'shop', '--out', tmp_path, '--log', log, '--at', number).stdout
    assert os.path.basename(at.strip()) == os.path.basename(first)


def test_older_snapshots_are_deleted_and_what_a_kill_left_of_them(
    shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline, log = shop('macgnn'), tmp_path / 'events.db'
    paths = [write_served(pipeline, tmp_path / 'all')]
    with SqliteStream(log) as stream, SqliteIdRegister(log) as register:
        stream.append(pipeline.events(), 0)
        register.begin(pipeline._known().maps)
        for _ in range(3):
            stream.append(pipeline.events()[-1:], stream.end)
            paths.append(write_served(pipeline, tmp_path / 'all', str(log)))
    others = [tmp_path / 'all' / 'notes', tmp_path / 'all' / f'gone{".pipeline"}']
    for path in others:
        path.mkdir()
    os.rename(paths[0], paths[0] + '.deleted')
    # The newest is not served.
    delete_older(paths[2], 2)
    left = {*paths[1:], *(f'{path}.pipeline' for path in paths[1:]), str(others[0])}
    assert {str(path) for path in (tmp_path / 'all').iterdir()} == left
    delete_older(paths[2], 1)
    assert not os.path.exists(paths[1]) and os.path.exists(paths[3])
    Snapshot.open(paths[2]).verify()
    with pytest.raises(ValueError, match='must be at least 1'):
        refresh(pipeline, tmp_path / 'all', str(log), [], 0)
