import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')
pytest.importorskip('fastapi', reason='FastAPI is not installed: make test installs it')

from mag.command_line import main  # noqa: E402
from mag.online import (  # noqa: E402
    Client,
    Snapshot,
    SqliteCenter,
    SqliteIdRegister,
    SqliteStream,
)
from mag.pipeline import Pipeline  # noqa: E402
from mag.pipeline.event_file import read_events  # noqa: E402
from mag.pipeline.followed_log import num_shared  # noqa: E402
from mag.pipeline.pipeline_ranker import PipelineLoader  # noqa: E402
from mag.pipeline.serving import SnapshotLoader, write_served  # noqa: E402

MAG = [sys.executable, '-c', 'from mag.command_line import main; main(prog_name="mag")']
COLUMNS = 'user=uid,item=sku,time=ts,clicked=clicked'


def run(*arguments: Any, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == exit_code, result.output
    return result


def ranked(result: Result) -> dict[str, np.float32]:
    r"""The items of a table and their probabilities, in its order."""
    header, *lines = result.stdout.splitlines()
    assert header.split() == ['item', 'click']
    return {item: np.float32(click) for item, click in map(str.split, lines)}


@pytest.fixture(scope='module')
def written(
    shop: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Pipeline, Path]:
    r"""A pipeline, and the snapshot that a command has written of it."""
    folder = tmp_path_factory.mktemp('served')
    pipeline = shop('count_net')
    pipeline.save(folder / 'shop')
    shown = run('snapshot', folder / 'shop', '--out', folder / 'snapshots').stdout
    return pipeline, Path(shown.removesuffix('\n'))


@pytest.fixture(scope='module')
def served(written: tuple[Pipeline, Path]) -> Iterator[tuple[subprocess.Popen[str], str, Path]]:
    r"""A process that serves it, its address and its log."""
    _, path = written
    log = path.parent / 'events.db'
    process = subprocess.Popen(
        [*MAG, 'serve', str(path), '--log', str(log), '--port', '0', '--page-port', '0'],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    serves, _, page = line.removesuffix('\n').partition(', page at ')
    start, _, address = serves.rpartition(' ')
    assert start == f'Serves {path} at'
    with urllib.request.urlopen(page, timeout=60) as response:
        assert b'<title>mag online</title>' in response.read()
    yield process, address, log
    process.kill()
    process.wait()
    process.stdout.close()


def test_what_is_served_is_what_a_pipeline_scores_and_sees_what_is_recorded(
    written: tuple[Pipeline, Path], served: tuple[subprocess.Popen[str], str, Path], tmp_path: Path
) -> None:
    (_, path), (process, address, log) = written, served
    # It learns of what is recorded.
    pipeline = Pipeline.load(f'{path}.pipeline')
    items = [*map(str, pipeline._known().raw('item')[:12]), 'nothing']

    def check(end: int) -> None:
        shown = run('rank', 'm7', *items, '--context', 'device=phone', '--server', address)
        assert shown.stderr == f'as of position {end}, by {path.name}\n'
        found = ranked(shown)
        scores = pipeline.score('m7', items, context={'device': 'phone'}).numpy()
        np.testing.assert_allclose([found[item] for item in items], scores, rtol=1e-6)
        assert [*found] == [items[place] for place in np.argsort(-scores, kind='stable')]

    end = len(pipeline.events())
    with SqliteStream(log) as stream:
        np.testing.assert_array_equal(stream.read(0, end + 1), pipeline.events())
    check(end)
    # Of items that have clusters: others get theirs when a pipeline is updated.
    time = int(pipeline.events()['time'][-1]) + 1
    lines = [f'm7,{item},{time + n},{n % 2},k0,phone' for n, item in enumerate(items[5:10])]
    later = tmp_path / 'later.csv'
    later.write_text('\n'.join(['uid,sku,ts,clicked,kind,device', *lines]) + '\n')
    command = 'record', later, '--server', address, '--columns', COLUMNS
    assert run(*command).stdout == f'{end + 5}\n'
    # Twice is once, where positions are told.
    assert run(*command, '--position', end).stdout == f'{end + 5}\n'
    pipeline.update(later)
    check(end + 5)
    shown = run(*command, '--position', end - 5, exit_code=1)
    assert shown.stderr.startswith('Error: ') and 'two producers append' in shown.stderr
    check_explanations(pipeline, items, address)
    # Who is new is counted at once.
    later.write_text(f'user,item,time,clicked\nnobody,m3,{time + 9},1\n')
    assert run('record', later, '--server', address).stdout == f'{end + 6}\n'
    with SqliteStream(log) as stream, SqliteIdRegister(log) as register:
        assert register.read('user', 60) == ['nobody'] and register.read('item', 40) == []
        assert stream.read(end + 5)['user'].tolist() == [60]
    asked = 'rank', 'nobody', 'm3', 'm5', '--context', 'device=phone', '--server', address
    other = 'rank', 'somebody', *asked[2:]
    assert ranked(run(*asked)) != ranked(run(*other))
    shown = run('rank', 'm7', 'm3', '--server', address, exit_code=1)
    assert shown.stderr == "Error: 'context' must tell ['device'], but told nothing.\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    shown = run('rank', 'm7', 'm3', '--server', address, exit_code=1)
    assert f'The server at {address} cannot be reached' in shown.stderr


def check_explanations(pipeline: Pipeline, items: list[str], address: str) -> None:
    r"""What commands show is what a client is told."""
    context = {'device': 'phone'}
    asked = 'm7', *items, '--context', 'device=phone', '--server', address
    with Client(address) as client:
        told = client.explain('m7', items, context=context, timeout=60)
        rankings = client.what_if('m7', items, 'm5', context=context, timeout=60)
    scores = pipeline.score('m7', items, context=context).numpy()
    np.testing.assert_allclose(told.ranking.probability, scores, rtol=1e-6)
    moved_of_item = dict(zip(items, told.moved.tolist()))
    header, *lines = run('explain', *asked).stdout.splitlines()
    assert header.split() == ['item', 'click', 'moved', 'by'] and len(lines) == len(items)
    for line, place in zip(lines, told.ranking.order):
        item, click, moves = line.split(maxsplit=2)
        assert (item, np.float32(click)) == (items[place], told.ranking.probability[place])
        moved = moved_of_item[item]
        heaviest = sorted(range(len(moved)), key=lambda block: -abs(moved[block]))[:3]
        want = [f'{told.blocks[block]} {moved[block]:+.4f}' for block in heaviest]
        assert moves.split(', ') == want
    header, *lines = run('rank', *asked, '--what-if', 'm5').stdout.splitlines()
    assert header.split() == ['item', 'click', 'after']
    found = {item: tuple(map(np.float32, numbers)) for item, *numbers in map(str.split, lines)}
    assert [*found] == [items[place] for place in rankings[0].order]
    assert [found[item] for item in items] == list(zip(*(of.probability for of in rankings)))


def test_what_cannot_be_served_is_told_in_a_sentence(
    written: tuple[Pipeline, Path], tmp_path: Path
) -> None:
    pipeline, path = written
    log = tmp_path / 'events.db'

    def refused(*arguments: Any) -> str:
        return run('serve', *arguments, exit_code=1).stderr.removeprefix('Error: ')

    nowhere = tmp_path / 'nowhere'
    assert refused(nowhere, '--log', log) == f'There is no folder {str(nowhere)!r}.\n'
    assert 'is no snapshot' in refused(tmp_path, '--log', log)
    alone = tmp_path / path.name
    shutil.copytree(path, alone)
    assert f"'{alone}.pipeline' with the pipeline" in refused(alone, '--log', log)
    assert "'host' must be of this machine alone" in refused(path, '--log', log, '--host', '::')
    shown = refused(path, '--log', tmp_path / 'none' / 'events.db')
    assert shown == f"There is no folder '{tmp_path / 'none'}' for the log.\n"
    assert "Redis at '127.0.0.1:1' cannot be" in refused(path, '--log', 'redis://x@127.0.0.1:1')
    assert (
        'is no saved pipeline' in run('snapshot', tmp_path, '--out', tmp_path, exit_code=1).stderr
    )
    events = pipeline.events()
    events['item'][0] += 1
    with SqliteStream(tmp_path / 'others.db') as stream:
        stream.append(events, 0)
    shown = refused(path, '--log', tmp_path / 'others.db')
    assert 'does not have the events that' in shown and 'open the log of the snapshot' in shown
    # Those that it has are compared before those that it lacks are appended.
    with SqliteStream(tmp_path / 'fewer.db') as stream:
        stream.append(events[:9], 0)
        shown = refused(path, '--log', tmp_path / 'fewer.db')
        assert 'must begin with the events before' in shown and 'at position 0' in shown
        assert stream.end == 9
    load = SnapshotLoader(str(path.parent), str(tmp_path / 'short.db'))
    with pytest.raises(ValueError, match=f'ends at position 0, but .*position={len(events)}'):
        load(path.name)
    with pytest.raises(ValueError, match='is named as its folder in'):
        load(f'../{path.parent.name}/{path.name}')
    assert not os.path.exists(nowhere)


def test_a_snapshot_is_loaded_by_its_name_after_the_log_went_on(
    written: tuple[Pipeline, Path], tmp_path: Path
) -> None:
    pipeline, path = written
    end = Snapshot.open(path).position
    log = str(tmp_path / 'events.db')
    load = SnapshotLoader(str(path.parent), log)
    load(path.name, fill=True).close()
    with SqliteStream(log) as stream:
        event = stream.read(end - 1)
        assert stream.append(event, end) == end + 1
    ranker = load(path.name)
    try:
        assert ranker.rank('m7', ['m3'], 0, {'device': 'phone'}).position == end + 1
    finally:
        ranker.close()
    assert load.maps['user'].encode(['m7', 'nobody'])[1] == -1


def test_a_log_whose_times_went_back_is_filled_by_a_snapshot_of_the_pipeline_alone(
    written: tuple[Pipeline, Path], tmp_path: Path
) -> None:
    _, path = written
    root, lost = tmp_path / 'snapshots', str(tmp_path / 'lost.db')
    pipeline = Pipeline.load(f'{path}.pipeline')
    with SqliteStream(lost) as stream, SqliteIdRegister(lost) as register:
        end = stream.append(pipeline.events(), 0)
        register.begin(pipeline._known().maps)
        events = stream.read(end - 4)
        events['time'] += [9, 4, 12, 12]
        assert stream.append(events, end) == end + 4
    later = Path(write_served(pipeline, root, lost))
    # The log begins with the events of that pipeline, as it was read.
    served = PipelineLoader(str(root), lambda: SqliteStream(lost))(f'{later.name}.pipeline')
    try:
        assert served.rank('m7', ['m3'], 0, {'device': 'phone'}).lag == 0
    finally:
        served.close()
    load = SnapshotLoader(str(root), str(tmp_path / 'new.db'))
    with SqliteStream(tmp_path / 'new.db') as stream:
        with pytest.raises(ValueError, match='from position 0 on whose times went back, .* alone'):
            load(later.name, fill=True)
        assert stream.end == 0
        # What the log still has as it was, is.
        stream.append(pipeline.events()[:end], 0)
        stream.append(events[:3], end)
        load(later.name, fill=True).close()
        assert stream.end == end + 4
    alone = Path(write_served(Pipeline.load(f'{later}.pipeline'), root))
    load = SnapshotLoader(str(root), str(tmp_path / 'another.db'))
    load(alone.name, fill=True).close()
    with SqliteStream(tmp_path / 'another.db') as stream:
        assert stream.read(end)['time'].tolist() == np.maximum.accumulate(events['time']).tolist()


def test_servers_that_start_at_once_fill_a_log_together(
    written: tuple[Pipeline, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, path = written
    events, log = pipeline.events(), tmp_path / 'events.db'

    def shared(stream: SqliteStream, known: np.ndarray) -> int:
        with SqliteStream(log) as other:
            other.append(events[:700], 0)
        found = num_shared(stream, known)
        with SqliteStream(log) as other:
            other.append(events[700:900], 700)
        return found

    monkeypatch.setattr('mag.pipeline.serving.num_shared', shared)
    SnapshotLoader(str(path.parent), str(log))(path.name, fill=True).close()
    with SqliteStream(log) as stream:
        np.testing.assert_array_equal(stream.read(0, len(events) + 1), events)


def test_a_log_that_was_trimmed_after_a_snapshot_is_told(
    written: tuple[Pipeline, Path], tmp_path: Path
) -> None:
    pipeline, path = written
    log, end = tmp_path / 'events.db', Snapshot.open(path).position
    with SqliteStream(log) as stream:
        stream.append(pipeline.events(), 0)
        stream.append(pipeline.events()[-3:], end)
        stream.append(pipeline.events()[-5:], end + 3)
        stream.trim(end)
        load = SnapshotLoader(str(path.parent), str(log))
        load(path.name, fill=True).close()
        stream.trim(end + 3)
        with pytest.raises(ValueError, match=f'starts at position {end + 3}, but .* trimmed'):
            load(path.name, fill=True)


@pytest.mark.parametrize('name', ['events.csv', 'events.parquet'])
def test_events_of_a_file_are_read_in_its_order(name: str, tmp_path: Path) -> None:
    import duckdb

    path = str(tmp_path / name)
    number = 70_000
    query = f'SELECT i % 7 AS "uid", \'x\' || i AS item, {number} - i AS time, i % 2 AS clicked'
    kind = 'csv, HEADER' if name.endswith('csv') else 'parquet'
    duckdb.sql(f"COPY ({query} FROM range({number}) of(i)) TO '{path}' (FORMAT {kind})")
    columns = {'user': 'uid', 'item': 'item', 'time': 'time', 'clicked': 'clicked'}
    chunks = list(read_events(path, columns))
    assert len(chunks) == 2
    found = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in columns}
    rows = np.arange(number)
    np.testing.assert_array_equal(found['user'], (rows % 7).astype(str))
    np.testing.assert_array_equal(found['item'], np.char.add('x', rows.astype(str)))
    np.testing.assert_array_equal(found['time'], number - rows)
    np.testing.assert_array_equal(found['clicked'], rows % 2)
    with pytest.raises(ValueError, match='when'):
        next(read_events(path, {**columns, 'time': 'when'}))
    duckdb.sql(f"COPY (SELECT 1 AS uid, NULL AS item, 3 AS time, 1 AS clicked) TO '{path}' "
               f'(FORMAT {kind})')  # fmt: skip
    with pytest.raises(ValueError, match='item'):
        next(read_events(path, columns))


def test_without_grpc_the_extra_is_named(
    written: tuple[Pipeline, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'grpc', None)
    for module in ('client', 'server'):
        monkeypatch.delitem(sys.modules, f'mag.online.{module}', raising=False)
    want = "needs grpc, which is not installed: pip install 'pyg-mag[online]'.\n"
    _, path = written
    for command in (
        ('rank', 'm7', 'm3'),
        ('explain', 'm7', 'm3'),
        ('record', path / 'manifest.json'),
        ('serve', path, '--log', path.parent / 'none.db'),
    ):
        assert run(*command, exit_code=1).stderr.endswith(want)


# The process that compose starts, and its end; what it counts is what a loop over the log counts.
def test_events_are_counted_as_they_come_until_the_process_is_told_to_end(
    written: tuple[Pipeline, Path], tmp_path: Path
) -> None:
    pipeline, path = written
    log, rows, events = tmp_path / 'events.db', tmp_path / 'rows.db', pipeline.events()
    command = [*MAG, 'consume', str(path), '--center', str(rows)]
    environment = {**os.environ, 'MAG_LOG': str(log)}
    with SqliteStream(log) as stream:
        stream.append(events[:100], 0)
        layout = Snapshot.open(path).layout
        for start in (0, len(events)):
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, text=True, env=environment
            ) as process:
                assert process.stdout is not None
                assert process.stdout.readline() == f'Counts from position {start} on\n'
                stream.append(events, 0)
                with SqliteCenter(rows, layout) as center:
                    while center.positions()[0] < len(events):
                        assert process.poll() is None
                process.send_signal(signal.SIGTERM)
                assert process.stdout.read() == f'Counted up to position {len(events)}\n'
            assert process.returncode == 0
        with SqliteCenter(rows, layout) as center:
            for node in ('user', 'item'):
                nodes = np.arange(events[node].max() + 1)
                found = center.read(node, nodes)
                assert found['seen'].tolist() == np.bincount(events[node]).tolist()
    shown = run('consume', path, '--log', log, '--center', tmp_path / 'no' / 'rows.db', exit_code=1)
    assert 'There is no folder' in shown.stderr and 'for the centre' in shown.stderr
