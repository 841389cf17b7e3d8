r"""The command :obj:`mag`: a log in, a saved pipeline out, and scores from it."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mag.online import Ranking

# Here, too, so that help waits for none of them.
MODELS = ('count_net', 'macgnn', 'gmcm', 'srjgraph', 'hyperctr', 'simcen')
_ERRORS = (IndexError, ModuleNotFoundError, OSError, TypeError, ValueError)
_PORT = click.IntRange(0, 65535)
_SERVER, _ADMIN = '127.0.0.1:50051', '127.0.0.1:50052'
_AUTHORITY = 'A file of PEM that the certificate of the server stands on.'
# Seconds that an answer may take.
_PATIENCE = 10.0
# Parts of what a model reads that are shown of each item.
_NUM_MOVES = 3


_log_option = click.option(
    '--log', required=True, envvar='MAG_LOG',
    help='The events: a file of SQLite, or redis://host:port.',
)  # fmt: skip


def _question(command: Callable[..., None]) -> Callable[..., None]:
    r"""What each question about items asks, and whom."""
    for decorate in (
        click.option('--tls-authority', type=click.Path(dir_okay=False), help=_AUTHORITY),
        click.option(
            '--context', multiple=True, metavar='NAME=VALUE', help='Such as device=phone.'
        ),
        click.option('--server', default=_SERVER, show_default=True, metavar='HOST:PORT'),
        click.argument('items', nargs=-1, required=True),
        click.argument('user'),
    ):
        command = decorate(command)
    return command


@click.group()
def main() -> None:
    r"""Graph-based click prediction: from a raw log to a model, and from raw ids to scores."""


@main.command('fit')
@click.argument('log', type=click.Path(exists=True))
@click.option('--model', type=click.Choice(MODELS), default='count_net', show_default=True)
@click.option('--out', required=True, type=click.Path(), help='The folder to save to.')
@click.option('--epochs', type=click.IntRange(1), default=20, show_default=True)
@click.option('--users', help='Clusters of users, such as 20, or an attribute, or several: 20,100.')
@click.option('--items', help='Clusters of items, such as 50, or an attribute: category,50.')
@click.option('--seed', type=click.IntRange(0), default=0, show_default=True)
@click.option('--program', is_flag=True, help='Save the model as a program of torch.export, too.')
@click.option(
    '--set', 'given', multiple=True, metavar='NAME=VALUE',
    help='An argument of the model, such as embedding_dim=8; the value is JSON, or a text.',
)  # fmt: skip
def fit(
    log: str,
    model: str,
    out: str,
    epochs: int,
    users: str | None,
    items: str | None,
    seed: int,
    program: bool,
    given: tuple[str, ...],
) -> None:
    r"""Fit a model on the LOG that a YAML or JSON file describes, or that a store, its folder, was
    built of, and save all of it."""
    if (users is None) != (items is None):
        raise click.UsageError('--users and --items are told together, or neither.')
    with _explained():
        from mag.pipeline import Pipeline
        from mag.pipeline.saved import check_free

        # Not after an hour of training.
        check_free(out)
        arguments = dict(map(_argument, given))
        if users is not None and items is not None:
            arguments['groups'] = {'user': _groups(users, model), 'item': _groups(items, model)}
        pipeline = Pipeline(model, max_epochs=epochs, seed=seed, **arguments).fit(log)
        pipeline.save(out, program)
        _show(pipeline.metrics)


@main.command('build')
@click.argument('log', type=click.Path(exists=True, dir_okay=False))
@click.option('--out', required=True, type=click.Path(), help='The folder of the store.')
@click.option(
    '--users', required=True, help='Clusters of users, such as 200, or an attribute: country,200.'
)
@click.option('--items', required=True, help='Clusters of items, likewise.')
@click.option('--num-windows', type=click.IntRange(1), default=12, show_default=True)
@click.option('--cutoffs', help='Moments to count as of, in seconds, instead: 86400,172800.')
@click.option('--num-recent', type=click.IntRange(1), default=20, show_default=True)
@click.option(
    '--behavior', type=click.Choice(('macro', 'raw')),
    help='What is clustered.  [default: macro where the others are grouped by an attribute]',
)  # fmt: skip
@click.option('--spherical', is_flag=True, help='Cosine k-means.')
@click.option('--projection-dim', type=click.IntRange(1), default=256, show_default=True)
@click.option('--counts', type=click.Choice(('exact', 'log')), default='exact', show_default=True)
@click.option('--memory-limit', default='2GiB', show_default=True)
@click.option('--threads', type=click.IntRange(1), default=2, show_default=True)
@click.option('--seed', type=click.IntRange(0), default=0, show_default=True)
def build(log: str, users: str, items: str, cutoffs: str | None, **arguments: Any) -> None:
    r"""Build a store of the LOG that a YAML or JSON file describes, however large it is. Killed at
    any moment, the same command goes on."""
    moments = None if cutoffs is None else [_moment(text) for text in cutoffs.split(',')]
    with _explained():
        from mag.store.build import build as build_store
        from mag.store.plan import BuildPlan

        groups = {'user': _groups(users), 'item': _groups(items)}
        click.echo(build_store(BuildPlan(log, groups=groups, cutoffs=moments, **arguments)))


@main.command('score')
@click.argument('folder', type=click.Path(file_okay=False))
@click.argument('requests', type=click.Path(exists=True, dir_okay=False))
@click.option('--out', type=click.Path(), help='A Parquet file to write to.  [default: CSV, shown]')
def score(folder: str, requests: str, out: str | None) -> None:
    r"""Score the users and items of REQUESTS, a CSV or Parquet file with the columns of the log."""
    with _explained():
        from mag.pipeline import Pipeline
        from mag.pipeline.request_file import score_file

        score_file(Pipeline.load(folder), requests, out or sys.stdout, progress=True)


@main.command('evaluate')
@click.argument('folder', type=click.Path(file_okay=False))
@click.argument('log', type=click.Path(exists=True, dir_okay=False))
def evaluate(folder: str, log: str) -> None:
    r"""Evaluate a pipeline on a later LOG: a YAML or JSON file, or a table with its columns."""
    with _explained():
        from mag.pipeline import Pipeline

        _show({'later': Pipeline.load(folder).evaluate(_described(log), True)})


@main.command('update')
@click.argument('folder', type=click.Path(file_okay=False))
@click.argument('events', type=click.Path(exists=True, dir_okay=False))
def update(folder: str, events: str) -> None:
    r"""Read new EVENTS, and save the pipeline with them."""
    with _explained():
        from mag.pipeline import Pipeline

        Pipeline.load(folder).update(_described(events), True).save(folder)


@main.command('inspect')
@click.argument('folder', type=click.Path(file_okay=False))
@click.option(
    '--figure', type=click.Path(), help='Draw the macro graph to this file, such as a PNG.'
)
def inspect(folder: str, figure: str | None) -> None:
    r"""Show what a pipeline holds: its log, its metrics, clusters and heaviest macro edges."""
    with _explained():
        from mag.pipeline import Pipeline
        from mag.pipeline.figure import check_format, save_figure

        if figure is not None:
            check_format(figure)
        summary = Pipeline.load(folder).summary()
        if figure is not None:
            save_figure(summary, figure)
        # Too many to read.
        summary.pop('macro edges', None)
        _show(summary)


@main.command('snapshot')
@click.argument('folder', type=click.Path(file_okay=False))
@click.option('--out', required=True, type=click.Path(file_okay=False), help='Gets the snapshot.')
@click.option('--program', is_flag=True, help='With what the model does, so that it is not needed.')
@click.option('--compile', is_flag=True, help='And its native code, for processors as this one.')
@click.option('--log', help='The events of a server: those that the pipeline lacks are read first.')
@click.option(
    '--at', type=click.IntRange(0), help='The position in the log that it is as of.  [default: end]'
)
def snapshot(
    folder: str, out: str, program: bool, compile: bool, log: str | None, at: int | None
) -> None:
    r"""Write all that a server needs of the pipeline in FOLDER to a folder in --out that is named
    by its content, and show its path, and the hash of native code."""
    if at is not None and log is None:
        raise click.UsageError("'--at' is a position in a '--log', which was not given.")
    with _explained():
        from mag.online import Snapshot
        from mag.pipeline import Pipeline
        from mag.pipeline.serving import write_served

        path = write_served(Pipeline.load(folder), out, log, at, program, compile)
        click.echo(path)
        if compile:
            facts = Snapshot.open(path).manifest['compiled']
            click.echo(f'mag serve --trust-compiled {facts["sha256"]}', err=True)


@main.command('swap')
@click.argument('snapshot')
@click.option('--admin', default=_ADMIN, show_default=True, metavar='HOST:PORT')
def swap(snapshot: str, admin: str) -> None:
    r"""Have a server answer by another SNAPSHOT, a name or a path, of the folder of its first."""
    with _explained(RuntimeError):
        from mag.online import swap as swap_to

        swap_to(admin, os.path.basename(os.path.normpath(snapshot)))


@main.command('refresh')
@click.argument('folder', type=click.Path(file_okay=False))
@click.option('--out', required=True, type=click.Path(file_okay=False), help='That of snapshots.')
@_log_option
@click.option(
    '--admin', multiple=True, default=(_ADMIN,), show_default=True, metavar='HOST:PORT',
    help='Of each server.',
)  # fmt: skip
@click.option(
    '--every', type=click.IntRange(1), help='Again each so many seconds.  [default: once]'
)
@click.option(
    '--keep', type=click.IntRange(1), default=3, show_default=True,
    help='Snapshots that stay, the one that is served among them.',
)  # fmt: skip
def refresh(
    folder: str, out: str, log: str, admin: tuple[str, ...], every: int | None, keep: int
) -> None:
    r"""Write a snapshot of the pipeline in FOLDER and a log as of now, have servers answer by it,
    and delete older ones. The link --out/latest is the one that is served."""
    import time

    with _explained(RuntimeError):
        from mag.pipeline import Pipeline
        from mag.pipeline.refresh import refresh as refresh_served

        pipeline = Pipeline.load(folder)
        while True:
            begun = time.monotonic()
            try:
                click.echo(refresh_served(pipeline, out, log, admin, keep))
                # Who started it may read from a pipe.
                sys.stdout.flush()
            except (OSError, RuntimeError) as error:
                if every is None:
                    raise
                # A server that is down now is there the next time.
                click.echo(f'Error: {error}', err=True)
            if every is None:
                return
            time.sleep(max(0.0, begun + every - time.monotonic()))


@main.command('serve')
@click.argument('snapshot', type=click.Path(file_okay=False))
@click.option(
    '--log', envvar='MAG_LOG',
    help='The events: a file of SQLite, or redis://host:port. Only a pipeline needs none.',
)  # fmt: skip
@click.option('--host', default='127.0.0.1', show_default=True)
@click.option('--port', type=_PORT, default=50051, show_default=True, help='0: one that is free.')
@click.option('--admin-port', type=_PORT, help='Where snapshots are swapped, on this machine.')
@click.option('--metrics-port', type=_PORT, help='Where Prometheus finds metrics.')
@click.option('--page-port', type=_PORT, help='Where a browser finds the page.')
@click.option(
    '--trust-compiled', multiple=True, metavar='SHA256', help='Native code that may run here.'
)
@click.option('--fall-back', is_flag=True, help='Without it where it is for other machines.')
@click.option('--tls-cert', type=click.Path(dir_okay=False), help='A file of PEM.')
@click.option('--tls-key', type=click.Path(dir_okay=False), help='Its key.')
@click.option(
    '--tls-clients', type=click.Path(dir_okay=False),
    help='A file of PEM that the certificates of clients must stand on.',
)  # fmt: skip
def serve(
    snapshot: str,
    log: str | None,
    tls_cert: str | None,
    tls_key: str | None,
    tls_clients: str | None,
    **where: Any,
) -> None:
    r"""Serve a SNAPSHOT that mag snapshot wrote, or the folder of a pipeline of any model, and
    record events, until SIGTERM. Events before it are appended to the log where it lacks them."""
    with _explained():
        import logging

        import torch

        from mag.online import JsonFormatter
        from mag.pipeline.serving import make_server

        # Requests have a thread each.
        torch.set_num_threads(1)
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logging.getLogger('mag').addHandler(handler)
        logging.getLogger('mag').setLevel(logging.INFO)
        files: dict[str, Any] = {
            'certificate': tls_cert, 'key': tls_key, 'client_authority': tls_clients,
        }  # fmt: skip
        server = make_server(snapshot, log, **files, **where)

        def show() -> None:
            host = f'[{server.host}]' if ':' in server.host else server.host
            ports = {'admin': server.admin_port, 'metrics': server.metrics_port}
            others = [
                f', {name} at port {port}' for name, port in ports.items() if port is not None
            ]
            if server.page_port is not None:
                scheme = 'http' if tls_cert is None else 'https'
                others.append(f', page at {scheme}://{host}:{server.page_port}')
            click.echo(f'Serves {snapshot} at {host}:{server.port}{"".join(others)}')
            # Who started it may read from a pipe.
            sys.stdout.flush()

        server.run(started=show)


@main.command('consume')
@click.argument('snapshot', type=click.Path(file_okay=False))
@_log_option
@click.option(
    '--center', required=True, envvar='MAG_CENTER', help='The rows: a file, or redis://host:port.'
)
@click.option('--shard', type=click.IntRange(0), default=0, show_default=True)
@click.option('--num-shards', type=click.IntRange(1), default=1, show_default=True)
def consume(snapshot: str, log: str, center: str, shard: int, num_shards: int) -> None:
    r"""Count the events of a log, as they come, in rows that others read, by the clusters of a
    SNAPSHOT, until SIGTERM. Of several consumers, each has a shard of its own."""
    with _explained(RuntimeError):
        import signal
        import threading

        from mag.pipeline.serving import consume as count

        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())

        def show(position: int) -> None:
            click.echo(f'Counts from position {position} on')
            sys.stdout.flush()

        position = count(snapshot, log, center, shard, num_shards, show, ended.is_set)
        click.echo(f'Counted up to position {position}')


@main.command('rank')
@_question
@click.option('--what-if', metavar='ITEM', help='Show what a click on this one would change, too.')
def rank(
    user: str,
    items: tuple[str, ...],
    server: str,
    context: tuple[str, ...],
    tls_authority: str | None,
    what_if: str | None,
) -> None:
    r"""Rank ITEMS for a USER, by raw ids, the likeliest click first."""
    told = dict(_pair('--context', text) for text in context)
    with _explained(RuntimeError):
        from mag.online import Client

        with Client(server, tls_authority) as client:
            if what_if is None:
                ranking = client.rank(user, items, context=told, timeout=_PATIENCE)
                rankings: tuple[Ranking, ...] = (ranking,)
            else:
                rankings = client.what_if(user, items, what_if, context=told, timeout=_PATIENCE)
        columns = {name: _digits(of) for name, of in zip(('click', 'after'), rankings)}
        _show_ranking(rankings[0], columns)


@main.command('explain')
@_question
def explain(
    user: str,
    items: tuple[str, ...],
    server: str,
    context: tuple[str, ...],
    tls_authority: str | None,
) -> None:
    r"""Rank ITEMS for a USER, and show which parts of what the model reads move each probability
    most, and by how much."""
    told = dict(_pair('--context', text) for text in context)
    with _explained(RuntimeError):
        import numpy as np

        from mag.online import Client

        with Client(server, tls_authority) as client:
            found = client.explain(user, items, 0, context=told, timeout=_PATIENCE)
        moves = []
        for moved in found.moved:
            most = np.argsort(-np.abs(moved), kind='stable')[:_NUM_MOVES]
            moves.append(', '.join(f'{found.blocks[place]} {moved[place]:+.4f}' for place in most))
        _show_ranking(found.ranking, {'click': _digits(found.ranking), 'moved by': moves})


@main.command('record')
@click.argument('file', type=click.Path(exists=True, dir_okay=False))
@click.option('--server', default=_SERVER, show_default=True, metavar='HOST:PORT')
@click.option(
    '--columns', metavar='NAME=COLUMN,...',
    help='Columns of other names: user=uid,item=sku,time=ts,clicked=label.',
)  # fmt: skip
@click.option(
    '--position', type=click.IntRange(0),
    help='That of the first event: what is there already is passed over.  [default: the end]',
)  # fmt: skip
@click.option('--tls-authority', type=click.Path(dir_okay=False), help=_AUTHORITY)
def record(
    file: str, server: str, columns: str | None, position: int | None, tls_authority: str | None
) -> None:
    r"""Append the events of FILE, a CSV or Parquet file with the columns user, item, time, in
    seconds, and clicked, in the order of its rows, and show the position of the next one."""
    names = {name: name for name in ('user', 'item', 'time', 'clicked')}
    given = dict(_pair('--columns', text) for text in columns.split(',')) if columns else {}
    if others := sorted(set(given) - set(names)):
        raise click.UsageError(f"'--columns' takes {', '.join(names)}, but got {others[0]!r}.")
    with _explained(RuntimeError):
        from mag.online import Client
        from mag.pipeline.event_file import read_events

        with Client(server, tls_authority) as client:
            end = client.record([], [], [], [])
            at = end if position is None else position
            for events in read_events(file, names | given):
                user, item, time, clicked = (events[name] for name in names)
                end = client.record(user, item, time, clicked, position=at, timeout=60.0)  # type: ignore[arg-type]
                at += len(time)
        click.echo(end)


def _described(path: str) -> Any:
    r"""A log by the file that describes it, or by its own path."""
    if not path.endswith(('.yaml', '.yml', '.json')):
        return path
    from mag.datasets import LogSchema

    return LogSchema.load(path)


def _digits(ranking: 'Ranking') -> list[str]:
    import numpy as np

    return [np.format_float_positional(probability) for probability in ranking.probability]


def _show_ranking(ranking: 'Ranking', columns: Mapping[str, list[str]]) -> None:
    r"""The items of a ranking, the likeliest first, and what is told of each."""
    table = {'item': ranking.items, **columns}
    widths = [max(map(len, (name, *column))) for name, column in table.items()]
    rows = ([column[place] for column in table.values()] for place in ranking.order)
    for row in ([*table], *rows):
        cells = (f'{cell:{width}}' for cell, width in zip(row, widths))
        click.echo('  '.join(cells).rstrip())
    reasons = ''.join(f', {reason}' for reason in ranking.degraded)
    click.echo(f'as of position {ranking.position}, by {ranking.snapshot}{reasons}', err=True)


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, value = text.partition('=')
    if not equals:
        raise click.UsageError(f"'{option}' takes NAME=VALUE, but got {text!r}.")
    return name, value


def _argument(text: str) -> tuple[str, Any]:
    name, value = _pair('--set', text)
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _moment(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise click.UsageError(f"'--cutoffs' takes whole seconds, but got {text!r}.") from error


def _groups(text: str, model: str = '') -> Any:
    found: list[Any] = [int(name) if name.isdecimal() else name for name in text.split(',')]
    # MacGNN reads one resolution.
    return found[0] if model == 'macgnn' and len(found) == 1 else found


def _show(values: Mapping[str, Any]) -> None:
    click.echo(json.dumps(_without_nan(values), indent=1, default=os.fspath, ensure_ascii=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(of) for name, of in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


@contextmanager
def _explained(*others: type[Exception]) -> Iterator[None]:
    r"""Tells what is wrong in a sentence, without a traceback."""
    try:
        yield
    except _ERRORS + others as error:
        raise click.ClickException(str(error)) from error
