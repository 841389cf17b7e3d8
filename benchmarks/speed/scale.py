r"""What it takes to count a log that does not fit in memory: a store, from a million exposures to a
billion, in seconds, memory and disk.

Parts, each run in processes of its own:

  sizes    exposures of which 30 % are clicks, 200 clusters of users and 300 of items learned from
           raw rows of clicks, one window
  windows  the same as of 6 and 12 moments
  clicks   clicks alone, 20 clusters of users and items by category, in a store and in memory
  engines  the store's kernels, DuckDB and transforms in memory, given the same clusters
  spark    Spark on two threads of this machine, likewise, where it is installed

Runs that a file of results has are not run again. The times mean something only on a machine that
does nothing else; processor time tells more than seconds where it does.

  python benchmarks speed.scale --json benchmarks/speed/scale.json \
      --markdown benchmarks/speed/scale.md --figure docs/scale.png
"""

import argparse
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from records import Record, Results, made_by, make_parser, processor, publish, stamp, table
from tqdm import tqdm

from speed.coarsening import Measurement, measure
from speed.power_law_log import SECONDS_BETWEEN_CLICKS, write_power_law_log
from speed.scale_ways import GIVEN, NUM_GIVEN, give_clusters

PARTS = ('sizes', 'windows', 'clicks', 'engines', 'spark')
PACKAGES = ('pyg-mag', 'numba', 'duckdb', 'faiss-cpu', 'numpy', 'scipy', 'torch', 'pyspark')
START = 1_600_000_000
CLICK_SHARE = 0.3
SIZES = (10**6, 10**7, 10**8, 10**9)
LEARNED = {'user': 200, 'item': 300}
OF_TODAY = {'user': 20, 'item': 'category'}
STAGES = ('read', 'map', 'clusters', 'count', 'hop 2', 'rest')
TITLES = {
    'store': 'store',
    'memory': 'in memory',
    'in_duckdb': 'DuckDB',
    'on_spark': 'Spark, local[2]',
}
GIB = 2**30

# From the path of a log to a measurement of it.
Run = Callable[[Path], Measurement]


def end_of(size: int) -> int:
    return START + size * SECONDS_BETWEEN_CLICKS


def cutoffs(size: int, number: int) -> list[int]:
    r"""Moments after as many rows each, the last after all."""
    return [
        START + size * (place + 1) // number * SECONDS_BETWEEN_CLICKS for place in range(number)
    ]


def write_log(folder: Path, size: int, is_of_clicks: bool, is_given: bool) -> Path:
    share = None if is_of_clicks else CLICK_SHARE
    log = write_power_law_log(folder / 'log.parquet', size, click_share=share)
    if not is_given:
        return log
    given = give_clusters(log, folder / 'given.parquet')
    log.unlink()
    return given


def in_store(size: int, num_windows: int, memory_limit: str) -> Run:
    return lambda log: measure(
        'speed.scale_ways', 'store', log=log, groups=LEARNED, attributes=[], label=True,
        windows={'cutoffs': cutoffs(size, num_windows)}, memory_limit=memory_limit,
    )  # fmt: skip


def clicks_in_store(memory_limit: str) -> Run:
    return lambda log: measure(
        'speed.scale_ways', 'store', log=log, groups=OF_TODAY, attributes=['category'],
        label=False, windows={'num_windows': 1}, memory_limit=memory_limit,
    )  # fmt: skip


def clicks_in_memory(log: Path) -> Measurement:
    arguments = {'log': log, 'groups': OF_TODAY, 'num_parts': 3}
    return measure('speed.mag_coarsening', 'power_law', **arguments)


def given_in_store(size: int, memory_limit: str) -> Run:
    return lambda log: measure(
        'speed.scale_ways', 'store', log=log, groups=GIVEN, attributes=[*GIVEN.values()],
        label=True, windows={'cutoffs': [end_of(size)]}, memory_limit=memory_limit,
    )  # fmt: skip


def given_to(way: str, size: int, **arguments: Any) -> Run:
    return lambda log: measure('speed.scale_ways', way, log=log, end=end_of(size), **arguments)


def runs_of(args: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Run]]:
    r"""What names each run, and what makes it, one log after another."""
    limit = args.memory_limit
    for size in args.sizes:
        if 'sizes' in args.parts:
            yield {'part': 'sizes', 'way': 'store', 'size': size}, in_store(size, 1, limit)
    for size in args.window_sizes:
        for number in args.windows:
            if 'windows' in args.parts:
                name = {'part': 'windows', 'way': 'store', 'size': size, 'windows': number}
                yield name, in_store(size, number, limit)
    for size in args.click_sizes:
        if 'clicks' in args.parts:
            yield {'part': 'clicks', 'way': 'store', 'size': size}, clicks_in_store(limit)
            if size <= args.most_in_memory:
                yield {'part': 'clicks', 'way': 'memory', 'size': size}, clicks_in_memory
    for size in args.engine_sizes:
        if 'engines' in args.parts:
            yield {'part': 'engines', 'way': 'store', 'size': size}, given_in_store(size, limit)
            for way in ('memory', 'in_duckdb'):
                yield {'part': 'engines', 'way': way, 'size': size}, given_to(way, size)
        if 'spark' in args.parts:
            name = {'part': 'engines', 'way': 'on_spark', 'size': size}
            yield name, given_to('on_spark', size, memory_limit=limit)


def run_all(args: argparse.Namespace, results: Results) -> None:
    asked = [
        (name, run)
        for name, run in runs_of(args)
        for repeat in range(args.repeats)
        if len(results.find(**name)) <= repeat
    ]
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        held, log = None, Path()
        for name, run in tqdm(asked, desc='runs'):
            kind = name['size'], name['part'] == 'clicks', name['part'] == 'engines'
            if kind != held:
                log.unlink() if held is not None else None
                held, log = kind, write_log(Path(folder), *kind)
            results.append(record_of(name, run(log), log.stat().st_size))


def record_of(name: dict[str, Any], found: Measurement, log_bytes: int) -> Record:
    stages = found.stages
    return {
        **name,
        'seconds': stages.seconds,
        'processor_seconds': stages.processor_seconds,
        'peak': found.peak,
        'log': log_bytes,
        'facts': found.facts,
        'processor': processor(),
        **stamp(*PACKAGES),
    }


def middle(records: Sequence[Record], value: Callable[[Record], float]) -> float:
    return median(map(value, records))


def stage(records: Sequence[Record], name: str) -> float:
    return middle(records, lambda record: record['seconds'].get(name, 0.0))


def seconds(records: Sequence[Record]) -> float:
    return middle(records, lambda record: sum(record['seconds'].values()))


def microseconds(records: Sequence[Record]) -> float:
    r"""The processor time of a row of the log."""
    return middle(
        records, lambda record: sum(record['processor_seconds'].values()) / record['size'] * 1e6
    )


def fact(records: Sequence[Record], name: str) -> float:
    return middle(records, lambda record: record['facts'][name])


def store_cells(records: list[Record]) -> list[str]:
    r"""The cells of a build."""
    size = records[0]['size']
    return [
        *(f'{stage(records, name):,.1f}' for name in STAGES),
        f'{seconds(records):,.1f}',
        f'{microseconds(records):.2f}',
        f'{fact(records, "anonymous") / GIB:.2f}',
        f'{middle(records, lambda record: record["peak"]) / GIB:.2f}',
        f'{fact(records, "disk") / 1e9:,.2f}',
        f'{fact(records, "kept") / 1e9:,.2f}',
        f'{fact(records, "kept") / size:.1f}',
    ]


def groups_of(results: Results, part: str, *names: str) -> Iterator[list[Record]]:
    r"""The records of a part, those of one kind together, in order."""
    records = results.find(part=part)
    for key in sorted({tuple(record[name] for name in names) for record in records}):
        yield results.find(part=part, **dict(zip(names, key, strict=True)))


def render(results: Results) -> Iterator[str]:
    yield '# A log that does not fit in memory'
    yield ''
    yield (
        'Power-law logs with 100 rows a user and 250 an item, as Parquet in the order of time, '
        'with ids from 0 on. A store is built with two threads and a memory limit of 2 GiB, and '
        'counts exposures, clicks and distinct pairs by cluster, two hops, and the last 20 '
        'neighbors. Seconds by stage: *read* checks the log and looks for what is to be encoded, '
        '*map* cuts it into partitions, *clusters* learns them and assigns all nodes, *count* and '
        '*hop 2* count. Processor time is that of all threads, in microseconds a row. *Anonymous* '
        'is what the process holds itself, *resident* counts pages of mapped files, too, which '
        'the system takes back when it needs them. The log is no part of what is kept. Medians '
        'where there are several runs.'
    )
    header = [
        *(f'{name}, s' for name in STAGES), 'all, s', 'processor, µs a row', 'anonymous, GiB',
        'resident, GiB', 'most disk, GB', 'kept, GB', 'kept, B a row',
    ]  # fmt: skip
    yield from ('', f'## Exposures, {CLICK_SHARE:.0%} of them clicks', '')
    yield (
        f'{LEARNED["user"]} clusters of users and {LEARNED["item"]} of items, learned from raw '
        f'rows of clicks; one window.'
    )
    yield ''
    yield from table(
        ['exposures', 'users', 'items', 'runs', *header],
        [
            [
                f'{of[0]["size"]:,}', f'{fact(of, "users"):,.0f}', f'{fact(of, "items"):,.0f}',
                f'{len(of)}', *store_cells(of),
            ]
            for of in groups_of(results, 'sizes', 'size')
        ],
    )  # fmt: skip
    yield from ('', '## The same as of several moments', '')
    yield from table(
        ['exposures', 'windows', 'runs', *header],
        [
            [f'{of[0]["size"]:,}', f'{of[0]["windows"]}', f'{len(of)}', *store_cells(of)]
            for of in groups_of(results, 'windows', 'size', 'windows')
        ],
    )
    yield from ('', '## Clicks alone, in a store and in memory', '')
    yield (
        'Users in 20 clusters by their counts over categories, items by category, one training '
        'window; training, validation and test part are counted. In memory it is the way of '
        '[coarsening](coarsening.md).'
    )
    yield ''
    yield from table(
        ['clicks', 'way', 'runs', 'seconds', 'processor, µs a row', 'anonymous, GiB',
         'resident, GiB'],
        [
            [
                f'{of[0]["size"]:,}', TITLES[of[0]['way']], f'{len(of)}', f'{seconds(of):,.1f}',
                f'{microseconds(of):.2f}',
                f'{fact(of, "anonymous") / GIB:.2f}' if of[0]['way'] == 'store' else '',
                f'{middle(of, lambda record: record["peak"]) / GIB:.2f}',
            ]
            for of in groups_of(results, 'clicks', 'size', 'way')
        ],
    )  # fmt: skip
    yield from ('', '## Engines', '')
    yield (
        f'{NUM_GIVEN["segment"]} clusters of users and {NUM_GIVEN["family"]} of items, given as '
        f'columns of the log; one window. DuckDB counts by the queries of `mag.store.sql`, which '
        f'have no second hop, and in memory hop 2 is the sparse product of SciPy. Of Spark, whose '
        f'processes are others, seconds alone are known, its start among them.'
    )
    yield ''
    yield from table(
        ['exposures', 'way', 'runs', 'seconds', 'of it', 'processor, µs a row', 'anonymous, GiB'],
        [engine_row(of) for of in groups_of(results, 'engines', 'size', 'way')],
    )
    yield ''
    yield f'On {results.records[0]["processor"]} with {os.cpu_count()} cores.'
    yield from made_by(results.records)


def engine_row(records: list[Record]) -> list[str]:
    first = records[0]
    told = ', '.join(f'{name} {stage(records, name):,.1f}' for name in first['seconds'])
    is_here = first['way'] != 'on_spark'
    return [
        f'{first["size"]:,}', TITLES[first['way']], f'{len(records)}', f'{seconds(records):,.1f}',
        told,
        f'{microseconds(records):.2f}' if is_here else '',
        f'{fact(records, "anonymous") / GIB:.2f}' if is_here else '',
    ]  # fmt: skip


def draw(results: Results, path: Path) -> None:
    r"""Seconds and memory against the number of rows."""
    # Here, because only the figure needs what draws.
    import matplotlib

    matplotlib.use('agg')
    from matplotlib import pyplot as plt

    figure, (time, memory) = plt.subplots(1, 2, figsize=(10.4, 4.2), layout='constrained')
    lines: dict[str, tuple[list[list[Record]], dict[str, Any]]] = {
        'exposures, store': (
            list(groups_of(results, 'sizes', 'size')), {'color': '#d55e00', 'lw': 2.5},
        ),
        'clicks, store': (of_way(results, 'store'), {'color': '#0072b2'}),
        'clicks, in memory': (of_way(results, 'memory'), {'color': '0.4', 'ls': ':'}),
    }  # fmt: skip
    for title, (groups, style) in lines.items():
        sizes = [of[0]['size'] for of in groups]
        time.plot(sizes, [seconds(of) for of in groups], marker='o', ms=4, label=title, **style)
        held = [
            middle(of, lambda record: record['facts'].get('anonymous', record['peak'])) / GIB
            for of in groups
        ]
        memory.plot(sizes, held, marker='o', ms=4, label=title, **style)
    for axes, label in ((time, 'seconds'), (memory, 'GiB held')):
        axes.set_xscale('log')
        axes.set_yscale('log')
        axes.set_xlabel('rows of the log')
        axes.set_ylabel(label)
        axes.spines[['top', 'right']].set_visible(False)
    time.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def of_way(results: Results, way: str) -> list[list[Record]]:
    return [of for of in groups_of(results, 'clicks', 'size', 'way') if of[0]['way'] == way]


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.scale', __doc__)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS[:4])
    parser.add_argument('--sizes', nargs='+', type=int, default=list(SIZES), help='exposures')
    parser.add_argument('--windows', nargs='+', type=int, default=[6, 12])
    parser.add_argument('--window-sizes', nargs='+', type=int, default=[10**7, 10**8])
    parser.add_argument('--click-sizes', nargs='+', type=int, default=list(SIZES[:3]))
    parser.add_argument('--most-in-memory', type=int, default=10**7, help='clicks that fit')
    parser.add_argument('--engine-sizes', nargs='+', type=int, default=[10**7])
    parser.add_argument('--repeats', type=int, default=1, help='runs of each')
    parser.add_argument('--memory-limit', default='2GiB')
    parser.add_argument('--folder', type=Path, help='where logs and stores go; default: temporary')
    parser.add_argument('--json', type=Path, required=True, help='file of the results')
    parser.add_argument('--markdown', type=Path, help='file to write; default: print')
    parser.add_argument('--figure', type=Path, help='PNG file to write')
    args = parser.parse_args(arguments)
    results = Results(args.json)
    run_all(args, results)
    publish(render(results), args.markdown)
    if args.figure is not None:
        draw(results, args.figure)
