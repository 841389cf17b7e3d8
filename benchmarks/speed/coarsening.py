r"""How fast, how small and how true mag's way from a raw log to training rows is.

Four parts, each run in processes of its own:

  movielens   MovieLens-1M to training rows, mag against the plain way (reference_coarsening.py)
  scale       synthetic power-law logs: time and memory per click as the log grows
  raw         the same logs, grouped by raw rows of clicks into 200 user and 300 item clusters
  projection  what the projection of raw rows costs in the objective of k-means, on MovieLens-1M

Timings mean something only on a machine that does nothing else. The whole table:

  python benchmarks speed.coarsening --movielens DIRECTORY/ml-1m \
      --markdown benchmarks/speed/coarsening.md
"""

import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from functools import partial
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter
from typing import Any, NamedTuple

from records import command, commit, make_parser, table, write
from timing import Stages, take_turns
from tqdm import tqdm

from speed.power_law_log import write_power_law_log

PARTS = ('movielens', 'scale', 'raw', 'projection')
PACKAGES = ('pyg-mag', 'torch', 'faiss-cpu', 'duckdb', 'scipy', 'numpy', 'scikit-learn', 'pandas')
WAYS: dict[str, tuple[str, str, dict[str, Any]]] = {
    f'{way}, {num_windows} window{"s" * (num_windows > 1)}': (
        module,
        function,
        {**arguments, 'num_windows': num_windows},
    )
    for num_windows in (1, 12)
    for way, module, function, arguments in (
        ('plain', 'speed.reference_coarsening', 'measure', {'tight': False}),
        ('plain, tight loop', 'speed.reference_coarsening', 'measure', {'tight': True}),
        ('mag', 'speed.mag_coarsening', 'movie_lens', {}),
    )
}
SYNTHETIC: dict[str, tuple[str, str, dict[str, int | str], int]] = {
    'scale': (
        'Power-law logs',
        'Users in 20 clusters by their counts over categories, items by category. Training, '
        'validation and test\npart are coarsened, and all three stay in memory.',
        {'user': 20, 'item': 'category'},
        3,
    ),
    'raw': (
        'Power-law logs, grouped by raw rows',
        'Users in 200 and items in 300 clusters by their raw rows of clicks. The training part is '
        'coarsened, whose\nhistory is 80 % of the clicks.',
        {'user': 200, 'item': 300},
        1,
    ),
}
PROJECTION_DIMS = (64, 128, 256, 512, None)
MIB = 2**20


class Measurement(NamedTuple):
    r"""One run in a fresh process: what it found, the seconds of its imports, and its stages."""

    facts: dict[str, float]
    import_seconds: float
    stages: Stages

    @property
    def seconds(self) -> float:
        return sum(self.stages.seconds.values())

    @property
    def processor_seconds(self) -> float:
        return sum(self.stages.processor_seconds.values())

    @property
    def peak(self) -> int:
        return max(self.stages.peak.values())


def measure_here(module: str, function: str, arguments: dict[str, Any]) -> Measurement:
    started = perf_counter()
    run = getattr(importlib.import_module(module), function)
    import_seconds = perf_counter() - started
    stages = Stages()
    return Measurement(run(stages, **arguments), import_seconds, stages)


def measure(module: str, function: str, **arguments: Any) -> Measurement:
    r"""Runs a function of a module in a process that did nothing before.

    Linux hands the peak of a parent's memory down to its children, which is why this file imports
    nothing large itself.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(measure_here, module, function, arguments).result()


def aligned(rows: list[dict[str, str]]) -> str:
    r"""A table of cells by the titles of their columns, with numbers to the right."""
    return '\n'.join(table(list(rows[0]), [list(row.values()) for row in rows], align='---:'))


def median_of(runs: list[Measurement], value: Callable[[Measurement], float]) -> float:
    return median(map(value, runs))


def movielens(folder: Path, repeats: int) -> str:
    runs = take_turns(
        {
            way: partial(measure, module, function, folder=folder, **arguments)
            for way, (module, function, arguments) in WAYS.items()
        },
        repeats,
    )
    names = list(runs['mag, 1 window'][0].stages.seconds)
    rows, stages = [], []
    for way, measured in runs.items():
        seconds = [run.seconds for run in measured]
        plain = median_of(runs[f'plain, {way.split(", ")[-1]}'], lambda run: run.seconds)
        peak = median_of(measured, lambda run: run.peak / MIB)
        imports = median_of(measured, lambda run: run.stages.start_peak / MIB)
        processor_seconds = median_of(measured, lambda run: run.processor_seconds)
        rows.append(
            {
                'way': way,
                'seconds': f'{median(seconds):.2f}',
                'range': f'{min(seconds):.2f} to {max(seconds):.2f}',
                'times faster': f'{plain / median(seconds):.1f}',
                'processor seconds': f'{processor_seconds:.2f}',
                'import seconds': f'{median_of(measured, lambda run: run.import_seconds):.2f}',
                'peak MiB': f'{peak:.0f}',
                'of it imports': f'{imports:.0f}',
                'rows': ', '.join(f'{count:,} {name}' for name, count in measured[0].facts.items()),
            }
        )
        stages.append({'seconds of a stage': way})
        for name in names:
            spent = median(run.stages.seconds.get(name, 0.0) for run in measured)
            stages[-1][name] = f'{spent:.2f}'
    return f"""## MovieLens-1M, raw files to training rows

Medians of {repeats} runs that took turns, each in a fresh process. In the seconds: reading
`ratings.dat` and `movies.dat`, splitting, 20 user clusters by k-means, neighbor counts of two hops,
lists of the last 20 neighbors, and every row of training, validation and test data in memory once;
for mag also reading `users.dat`, hashing the raw files and writing the cache. Not in them: imports.
"plain" is pandas, scikit-learn and scipy with one array a sample (`reference_coarsening.py`), and
"tight loop" the same with no pandas inside the loop and all samples in one array. Their recent
lists are part of their rows. With one window, as in the paper, training labels go from the 80 %
quantile of time to the 90 % one (mag's stop at 88 % and leave the rest to validation); with twelve,
mag's default, from 30 % to 88 %, each read against the graph before its window.

{aligned(rows)}

{aligned(stages)}
"""


def power_law(
    title: str,
    note: str,
    groups: dict[str, int | str],
    num_parts: int,
    sizes: list[int],
    repeats: int,
    directory: Path,
) -> str:
    runs: dict[int, list[Measurement]] = {}
    with tqdm(total=len(sizes) * (repeats + 1), desc=title) as progress:
        for size in sizes:
            log = write_power_law_log(directory / f'{size}.parquet', size)
            progress.update()
            runs[size] = []
            for _ in range(repeats):
                arguments = {'log': log, 'groups': groups, 'num_parts': num_parts}
                runs[size].append(measure('speed.mag_coarsening', 'power_law', **arguments))
                progress.update()
            log.unlink()

    names = list(runs[sizes[0]][0].stages.seconds)
    rows, peaks, microseconds = [], [], []
    for size, measured in runs.items():
        seconds = median_of(measured, lambda run: run.seconds)
        processor_seconds = median_of(measured, lambda run: run.processor_seconds)
        imports = median_of(measured, lambda run: run.stages.start_peak / 2**30)
        own_peak = median_of(measured, lambda run: run.peak - run.stages.start_peak)
        microseconds.append(seconds / size * 1e6)
        row = {
            'clicks': f'{size:,}',
            'users': f'{measured[0].facts["users"]:,}',
            'items': f'{measured[0].facts["items"]:,}',
        }
        peaks.append({'peak GiB by the end of': f'{size:,} clicks', 'imports': f'{imports:.2f}'})
        for name in names:
            row[name] = f'{median(run.stages.seconds[name] for run in measured):.2f}'
            peak = median(run.stages.peak[name] for run in measured) / 2**30
            peaks[-1][name] = f'{peak:.2f}'
        row |= {
            'all': f'{seconds:.2f}',
            'µs a click': f'{microseconds[-1]:.2f}',
            'processor µs a click': f'{processor_seconds / size * 1e6:.2f}',
            'peak GiB': f'{median_of(measured, lambda run: run.peak / 2**30):.2f}',
            'peak bytes a click': f'{own_peak / size:.0f}',
        }
        rows.append(row)
    return f"""## {title}

{note}
A user for every 100 clicks and an item for every 250; one training window. Medians of {repeats}
runs, each in a fresh process; from items to all, seconds. Imports are not in the seconds, nor in
the bytes a click, but they are in the peak. A click takes
{microseconds[-1] / microseconds[0]:.2f} times as long at {sizes[-1]:,} clicks as at {sizes[0]:,}.

{aligned(rows)}

{aligned(peaks)}
"""


def projection(folder: Path, seeds: int) -> str:
    rows = []
    for num_clusters in tqdm((20, 200), desc='Projection'):
        runs = [
            measure(
                'speed.mag_coarsening',
                'projection',
                folder=folder,
                num_clusters=num_clusters,
                dims=PROJECTION_DIMS,
                seed=seed,
            ).facts
            for seed in range(seeds)
        ]
        exact = mean(run['objective None'] for run in runs)
        one = runs[0]['objective one']
        for dim in PROJECTION_DIMS:
            found = [run[f'objective {dim}'] for run in runs]
            kept = (one - mean(found)) / (one - exact)
            rows.append(
                {
                    'clusters': f'{num_clusters}',
                    'width of the projection': 'none, all columns' if dim is None else f'{dim}',
                    'objective': f'{mean(found):.1f} ± {stdev(found):.1f}',
                    'against all columns': f'{(mean(found) / exact - 1) * 100:+.2f} %',
                    'of the reduction kept': f'{kept * 100:.1f} %',
                    'seconds': f'{median(run[f"seconds {dim}"] for run in runs):.2f}',
                }
            )
    return f"""## What the projection of raw rows costs

MovieLens-1M users with clicks before the 80 % quantile of time, clustered by their rows of clicks
(paper, eq. 2). The objective is computed on the *true* rows, whatever was clustered: the summed
squared distance to the mean of the cluster; mean and standard deviation of {seeds} seeds (of
k-means and of the projection). "Of the reduction kept": of what k-means on all columns takes off
the objective of one single cluster, how much is left.

{aligned(rows)}
"""


def heading() -> str:
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    python = sys.version.split()[0]
    packages = ', '.join(f'{name} {version(name)}' for name in PACKAGES)
    return f"""# Coarsening: raw log to training rows

- command: `{command()}`
- date: {date.today()}, commit {commit()}
- machine: {os.cpu_count()} cores, {memory:.0f} GiB of memory; Python {python}
- versions: {packages}
"""


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('speed.coarsening', __doc__)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=PARTS, metavar='PART')
    default = Path(os.environ['MAG_DATA'], 'ml-1m') if 'MAG_DATA' in os.environ else None
    parser.add_argument(
        '--movielens',
        type=Path,
        default=default,
        metavar='DIRECTORY',
        help='the files of MovieLens-1M as released (default: $MAG_DATA/ml-1m)',
    )
    parser.add_argument('--repeats', type=int, default=7, help='runs of each way on MovieLens-1M')
    parser.add_argument(
        '--clicks',
        type=int,
        nargs='+',
        default=[10**6, 10**7, 10**8],
        help='sizes of the synthetic logs',
    )
    parser.add_argument('--scale-repeats', type=int, default=3, help='runs on each synthetic log')
    parser.add_argument(
        '--seeds', type=int, default=5, help='seeds of the projection part, at least 2'
    )
    parser.add_argument(
        '--markdown', type=Path, metavar='FILE', help='write the tables to this file too'
    )
    args = parser.parse_args(arguments)
    if args.movielens is None and {'movielens', 'projection'} & set(args.parts):
        parser.error('the parts movielens and projection need --movielens')

    sections = [heading()]
    with tempfile.TemporaryDirectory() as directory:
        for part in args.parts:
            if part == 'movielens':
                section = movielens(args.movielens, args.repeats)
            elif part == 'projection':
                section = projection(args.movielens, args.seeds)
            else:
                title, note, groups, num_parts = SYNTHETIC[part]
                section = power_law(
                    title,
                    note,
                    groups,
                    num_parts,
                    args.clicks,
                    args.scale_repeats,
                    Path(directory),
                )
            print(f'\n{section}', flush=True)
            sections.append(section)
            if args.markdown:
                write(args.markdown, '\n'.join(sections))
