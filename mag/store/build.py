r"""Builds a store from a log that does not fit in memory."""

import json
import os
import os.path as osp
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import Tensor

from mag.compression.count_codes import MAX_COUNT, RELATIVE_ERROR
from mag.files import checksum, flush, format_bytes, locked, replacing
from mag.schema import NEIGHBOR_TYPE, Resolution
from mag.store.clusters import StoreClusters, assign_bytes
from mag.store.counting import PAIRS, Counted, Level, add_hops, count_nodes, read_levels
from mag.store.encode import Encoder, Log
from mag.store.kernels import (
    NodeCounts,
    Records,
    SecondHop,
    code_type,
    count_bytes,
    partition_events,
)
from mag.store.kernels.neighbor_rows import FORM_BITS
from mag.store.manifest import has_manifest, read_manifest, write_manifest
from mag.store.partitions import Partitions
from mag.store.plan import BuildPlan, Sizes
from mag.store.units import Units
from mag.transforms import TemporalSplit

_PLAN = 'work/plan.json'


def build(plan: BuildPlan, progress: bool = True) -> str:
    r"""Builds a store, or goes on where a former process was killed, and gives its folder.

    Everything is written to a folder beside, :obj:`<out>.building`, which is renamed at the end:
    what is at :obj:`out` is whole. After a kill at any moment the same plan gives the same bytes. A
    store that is there is left as it is.

    Args:
        plan (BuildPlan): What to build.
        progress (bool, optional): Whether to print the plan, and to show bars.
            (default: :obj:`True`)

    Raises:
        OSError: If the folder cannot be written, or another process builds this store.
        ValueError: If the folder holds anything else, the store was built, or begun, with another
            plan or from other files, the disk or the memory cannot hold it, or a file is not what
            the plan says.
    """
    return StoreBuild(plan, progress).run()


class StoreBuild:
    r"""The steps of :func:`build`, of which others may compute some elsewhere.

    Args:
        plan (BuildPlan): What to build.
        progress (bool): Whether to print the plan, and to show bars.
    """

    def __init__(self, plan: BuildPlan, progress: bool) -> None:
        self.plan, self.progress = plan, progress
        self.folder = f'{osp.abspath(plan.out)}.building'

    def run(self) -> str:
        r"""Builds the store, and gives its folder."""
        out = osp.abspath(self.plan.out)
        if has_manifest(out):
            self.plan.check_same(read_manifest(out)['plan'], out)
            return out
        if osp.exists(out) and (not osp.isdir(out) or os.listdir(out)):
            raise ValueError(
                f"'out' must be a new folder or a store, but {out!r} holds something else."
            )
        os.makedirs(osp.dirname(out), exist_ok=True)
        try:
            with locked(f'{out}.lock', wait=False):
                # Another process may have ended between.
                if not has_manifest(out):
                    self._make()
                    os.replace(self.folder, out)
                    flush(osp.dirname(out))
        except BlockingIOError as error:
            raise OSError(f'Another process builds {out!r}: wait for it, or stop it.') from error
        return out

    def _make(self) -> None:
        plan = self.plan
        if has_manifest(self.folder):
            # All is done but to rename it.
            plan.check_same(read_manifest(self.folder)['plan'], self.folder)
        else:
            self._begin(self.progress)
            self.units = Units(self.folder, plan.threads, self.progress, plan.spare)
            self.encoder = Encoder(plan.schema, self.units, plan.spare * 2 // 3, plan.rows)
            self._build()
        shutil.rmtree(osp.join(self.folder, 'work'), ignore_errors=True)

    def _begin(self, progress: bool) -> None:
        r"""Keeps the plan, or makes sure that it is the one that was begun."""
        plan, path = self.plan, osp.join(self.folder, _PLAN)
        if osp.exists(path):
            with open(path, encoding='utf-8') as file:
                plan.check_same(json.load(file), self.folder)
            return
        sizes = plan.estimate()
        if progress:
            print(plan.describe(sizes), file=sys.stderr)
        plan.check_fits(sizes)
        os.makedirs(osp.dirname(path), exist_ok=True)
        with replacing(path) as temporary, open(temporary, 'w', encoding='utf-8') as file:
            json.dump(plan.facts, file)

    def _build(self) -> None:
        plan, units = self.plan, self.units
        log = self.encoder.encode()
        self.num_nodes = {name: units.results[f'ids-{name}']['num_nodes'] for name in NEIGHBOR_TYPE}
        self.cutoffs = units.run('cutoffs', lambda: self._cutoffs(log))['cutoffs']
        self.num_windows = len(self.cutoffs)
        self.num_clusters = {
            of.name: of.group
            if isinstance(of.group, int)
            else units.run(f'groups-{of.name}', partial(self._attribute, log, of))['number']
            for of in plan.resolutions
        }
        plan.check_numbers(self.num_clusters)
        for node_type, name in plan.attributes:
            file = f'attributes/{name}.npy'
            write = partial(self.encoder.write_attribute, log, node_type, name, file)
            units.run(f'attribute-{name}', write)
        for name in plan.schema.named('contexts'):
            units.run(f'context-{name}', partial(self.encoder.write_context, log, name))
        units.run('facts', lambda: self.encoder.facts(log))
        sizes = Sizes(sum(log.num_rows), self.num_nodes, self.num_clusters, self.num_windows)
        # Now that they are known.
        units.run('fits', lambda: plan.check_fits(sizes))
        self.num_partitions = plan.num_partitions(sizes)
        self.partitions = self._map(log)
        if self.num_clicks == self.num_events > 0:
            warnings.warn(
                f'Each of the {self.num_events:,} rows before the last cutoff is a click, and no '
                f'model learns from these alone: name the column that tells the others as '
                f"'label'.",
                stacklevel=5,
            )
        self.needed = {
            name: units.run(f'memory-{name}', partial(self._needed, name)) for name in NEIGHBOR_TYPE
        }
        if any(isinstance(of.group, int) for of in plan.resolutions):
            self._learn()
        for name in NEIGHBOR_TYPE:
            self._count(name)
        shutil.rmtree(units.path('work/map'), ignore_errors=True)
        for name in NEIGHBOR_TYPE:
            self._second(name)
        write_manifest(self.folder, self._facts(log))

    def _cutoffs(self, log: Log) -> dict[str, Any]:
        r"""The cutoffs, and which are those of which part of the log."""
        if self.plan.cutoffs is not None:
            return {'cutoffs': [*self.plan.cutoffs], 'parts': None}
        split = TemporalSplit(num_windows=self.plan.num_windows)
        train = np.linspace(split.train_start, split.val_start, split.num_windows, endpoint=False)
        shares = np.append(train, [split.val_start, split.test_start, 1.0])
        # As TemporalSplit says: the history is all up to the quantile. What asks after the log
        # reads all of it.
        cutoffs = np.floor(self._quantiles(log, shares)).astype(np.int64) + 1
        *trained, val, test, end = cutoffs.tolist()
        parts = {'train': sorted({*trained}), 'val': val, 'test': test}
        return {'cutoffs': sorted({*trained, val, test, end}), 'parts': parts}

    def _quantiles(self, log: Log, share: np.ndarray) -> np.ndarray:
        r"""What :func:`numpy.quantile` finds of the times, which are in their order."""
        last = sum(log.num_rows) - 1
        place = last * share
        before = np.floor(place).astype(np.int64)
        after = np.minimum(before + 1, last)
        asked, where = np.unique(np.concatenate([before, after]), return_inverse=True)
        low, high = np.split(self.encoder.times(log, asked)[where], 2)
        part, difference = place - before, high - low
        return np.where(part < 0.5, low + difference * part, high - difference * (1 - part))

    def _attribute(self, log: Log, of: Resolution) -> dict[str, Any]:
        file = f'clusters/{of.name}.npy'
        return self.encoder.write_attribute(log, of.node_type, str(of.group), file)

    def _map(self, log: Log) -> Partitions:
        r"""Writes records of all events, by partition."""
        runs = log.runs(self.plan.rows)
        names = {f'map-{place:06}': place for place in range(len(runs))}
        cutoffs = np.array(self.cutoffs)
        with self.encoder.connect() as connection:

            def compute(name: str) -> dict[str, Records]:
                found = connection.cursor().execute(
                    f'SELECT user::INTEGER AS user, item::INTEGER AS item, time, click '
                    f'FROM ({runs[names[name]].query})'
                )
                rows = found.fetchnumpy()
                window = cutoffs.searchsorted(rows['time'], side='right').astype(np.uint8)
                event = rows['user'], rows['item'], window, rows['click']
                return partition_events(*event, self.num_partitions, self.num_windows)

            def write(name: str, records: dict[str, Records]) -> list[int]:
                for node_type, (record, offset) in records.items():
                    path = Partitions.segment(node_type, names[name])
                    self._save(f'{path}.npy', record)
                    self._save(f'{path}_offset.npy', offset)
                return [len(records['user'].record), int((records['user'].record & 1).sum())]

            sizes = {name: runs[place].num_rows for name, place in names.items()}
            self.units.run_all('map', ' rows', sizes, compute, write)
        counted = np.array([self.units.results[name] for name in names])
        self.num_events, self.num_clicks = counted.sum(axis=0).tolist()
        size = self.num_nodes, self.num_partitions, self.num_windows
        return Partitions(self.units, *size, len(names))

    def _needed(self, node_type: str) -> list[int]:
        r"""How many bytes of memory each partition needs at most.

        Raises:
            ValueError: If there are less for one.
        """
        plan, partitions = self.plan, self.partitions
        found = []
        for place, number in enumerate(partitions.num_events(node_type).tolist()):
            needed = self._bytes_of(node_type, place, number, number, number)
            # Hardly ever are all clicks, and of one node.
            if needed > plan.spare // plan.threads:
                events, clicks = partitions.events_of_nodes(node_type, place)
                of_clicks = int(clicks.sum()), int(clicks.max())
                needed = self._bytes_of(node_type, place, number, *of_clicks)
                if needed > plan.spare:
                    busiest = int(events.argmax())
                    node = busiest * partitions.num_partitions[node_type] + place
                    raise ValueError(
                        f'Of {self.num_events:,} events, {int(events[busiest]):,} are of the '
                        f'{node_type} {self.encoder.raw_id(node_type, node)!r}, and must be '
                        f'counted at once, which needs {format_bytes(needed)}, but of a memory of '
                        f'{format_bytes(plan.memory)} {format_bytes(plan.spare)} are left: build '
                        f'anew with memory_limit={plan.memory_for(needed)!r}, or without the '
                        f'events of this {node_type}.'
                    )
            found.append(needed)
        return found

    def _needed_of(self, node_type: str, names: Mapping[str, int]) -> dict[str, int]:
        return {name: self.needed[node_type][place] for name, place in names.items()}

    def _bytes_of(
        self, node_type: str, partition: int, num_events: int, num_clicks: int, most_clicks: int
    ) -> int:
        r"""How many bytes of memory a partition needs at most."""
        plan, of_other = self.plan, NEIGHBOR_TYPE[node_type]
        num_clusters = [
            self.num_clusters[of.name] for of in plan.resolutions if of.node_type == of_other
        ]
        size = self.partitions.size(node_type, partition)
        counted = count_bytes(
            size, num_events, num_clicks, most_clicks, self.num_windows, [*num_clusters, 1],
            plan.num_recent,
        )  # fmt: skip
        clusters = plan.clusters()
        if node_type not in clusters.behaviors:
            return counted
        sizes = size, self.num_nodes[node_type]
        assigned = assign_bytes(clusters, node_type, sizes, num_clicks, self.num_clusters)
        return max(counted, assigned)

    def _save(self, name: str, array: np.ndarray) -> None:
        r"""Writes a whole file."""
        self.units.allocate(name, array.dtype, array.shape)
        self.units.write(name, array)

    def _learn(self) -> None:
        r"""Finds the clusters that no attribute tells."""
        units = self.units
        clusters = self.plan.clusters()
        learner = StoreClusters(self.partitions, clusters, self.num_clusters)
        first = {of.node_type: of for of in reversed(self.plan.resolutions)}
        for node_type in learner.order:
            other, path = first[NEIGHBOR_TYPE[node_type]], f'work/{node_type}.safetensors'
            is_raw = clusters.behaviors[node_type] == 'raw'
            neighbor = None if is_raw else units.read(f'clusters/{other.name}.npy')

            def fit(node_type: str = node_type, path: str = path, neighbor: Any = neighbor) -> None:
                save_file(learner.fit(node_type, neighbor), units.path(path))
                units.wrote(units.path(path))

            units.run(f'fit-{node_type}', fit)
            self._assign(learner, node_type, load_file(units.path(path)), neighbor)
        if learner.order:
            units.run('centroids', lambda: self._keep_centroids(learner.order))

    def _assign(
        self,
        learner: StoreClusters,
        node_type: str,
        fitted: dict[str, Tensor],
        neighbor: np.ndarray | None,
    ) -> None:
        r"""Writes the learned clusters of all nodes of a type, partition by partition."""
        units, number = self.units, self.partitions.num_partitions[node_type]
        names = {f'assign-{node_type}-{place:06}': place for place in range(number)}
        learned = [
            of.name
            for of in self.plan.resolutions
            if of.node_type == node_type and isinstance(of.group, int)
        ]
        if not {*names} <= units.results.keys():
            for name in learned:
                units.allocate(f'clusters/{name}.npy', np.int32, [self.num_nodes[node_type]])
                units.allocate(f'clusters/{name}_window.npy', np.uint8, [self.num_nodes[node_type]])

        def write(unit: str, found: tuple[dict[str, np.ndarray], np.ndarray]) -> None:
            cluster, window = found
            for name in learned:
                units.scatter(f'clusters/{name}.npy', cluster[name], names[unit], number)
                units.scatter(f'clusters/{name}_window.npy', window, names[unit], number)

        units.run_all(
            f'cluster {node_type}s',
            ' nodes',
            {name: self.partitions.size(node_type, place) for name, place in names.items()},
            self._assigned(learner, node_type, names, fitted, neighbor),
            write,
            self._needed_of(node_type, names),
        )

    def _assigned(
        self,
        learner: StoreClusters,
        node_type: str,
        names: dict[str, int],
        fitted: dict[str, Tensor],
        neighbor: np.ndarray | None,
    ) -> Callable[[str], tuple[dict[str, np.ndarray], np.ndarray]]:
        r"""From the name of a unit to the clusters of the nodes of its partition."""
        return lambda name: learner.assign(node_type, names[name], fitted, neighbor)

    def _keep_centroids(self, node_types: list[str]) -> None:
        path = self.units.path('clusters/centroids.safetensors')
        fitted = (load_file(self.units.path(f'work/{name}.safetensors')) for name in node_types)
        save_file({name: value for of in fitted for name, value in of.items()}, path)
        self.units.wrote(path)

    def _levels(self, node_type: str) -> list[Level]:
        return read_levels(
            self.plan.resolutions, node_type, self.num_nodes, self.num_clusters, self.units.read
        )

    def _count(self, node_type: str) -> None:
        r"""Counts the events of all nodes of a type, partition by partition."""
        units, partitions = self.units, self.partitions
        levels = self._levels(NEIGHBOR_TYPE[node_type])
        folder, shape = f'nodes/{node_type}', (self.num_windows, self.plan.num_recent)
        num_nodes, base = self.num_nodes[node_type], partitions.base(node_type)
        names = {f'nodes-{node_type}-{place:06}': place for place in range(len(base))}
        # Files whose length is known; the others grow.
        if not {*names} <= units.results.keys():
            units.allocate(f'{folder}/recent.npy', np.int32, (num_nodes, *shape))
            for level in levels:
                units.allocate(f'{folder}/indptr{level.suffix}.npy', np.uint64, [num_nodes + 1])
            units.allocate(f'work/rows/{node_type}_offset.npy', np.uint64, [num_nodes + 1])
        end = self._ends(names, len(levels) + 1)

        def write(name: str, counted: Counted) -> list[int]:
            counts, rows = counted
            place = names[name]
            first = int(base[place])
            units.write(f'{folder}/recent.npy', counts.recent, first * shape[0] * shape[1])
            for number, (suffix, *_) in enumerate(levels):
                start = int(end[number])
                indptr = counts.indptr[number] + np.uint64(start)
                units.write(f'{folder}/indptr{suffix}.npy', indptr, first)
                units.write(f'{folder}/code{suffix}.npy', counts.code[number], start)
                units.write(f'{folder}/count{suffix}.npy', counts.count[number], start)
            start = int(end[-1])
            offset = rows.offset + np.uint64(start << FORM_BITS)
            units.write(f'work/rows/{node_type}_offset.npy', offset, first)
            units.write(f'work/rows/{node_type}_data.npy', rows.data, start)
            self._keep_pairs(node_type, place, counts)
            lengths = [*map(len, counts.code), len(rows.data)]
            end[:] += lengths
            return lengths

        # Records that nobody reads again are gone, and so are their sizes.
        sizes = {name: partitions.size(node_type, place) for name, place in names.items()}
        compute, needed = self._counted(node_type, names, levels), self._needed_of(node_type, names)
        units.run_all(f'count {node_type}s', ' nodes', sizes, compute, write, needed)

        def close() -> None:
            for level, entries in zip(levels, end[:-1], strict=True):
                dtype = code_type(self.num_windows, level.num_clusters)
                units.allocate(f'{folder}/code{level.suffix}.npy', dtype, [entries])
                units.allocate(f'{folder}/count{level.suffix}.npy', np.uint8, [entries])
            units.allocate(f'work/rows/{node_type}_data.npy', np.uint32, [end[-1]])

        units.run(f'close-{node_type}', close)

    def _counted(
        self, node_type: str, names: dict[str, int], levels: list[Level]
    ) -> Callable[[str], Counted]:
        r"""From the name of a unit to the counts of its partition."""
        size = self.num_windows, self.plan.num_recent
        partitions = self.partitions
        return lambda name: count_nodes(partitions, node_type, names[name], levels, *size)

    def _keep_pairs(self, node_type: str, partition: int, counts: NodeCounts) -> None:
        r"""Writes the distinct pairs of a partition, which hop 2 reads."""
        for part in PAIRS:
            self._save(_pairs(node_type, partition, part), getattr(counts, f'pairs_{part}'))

    def _second(self, node_type: str) -> None:
        r"""Counts two hops of all nodes of a type, some at a time."""
        units, partitions = self.units, self.partitions
        num_clusters = self.num_clusters[node_type]
        folder, size = f'nodes/{node_type}', self.num_windows * num_clusters
        base = partitions.base(node_type)
        is_exact = self.plan.counts == 'exact'
        # Of each thread a table of two bytes, or that and floats, places and codes: a part of what
        # there is, as other steps leave some of it in pieces.
        most = max(1, self.plan.spare // (self.plan.threads * size * (16 if is_exact else 64)))
        names: dict[str, tuple[int, int, int]] = {}
        for place in range(len(base)):
            number = partitions.size(node_type, place)
            for first in range(0, number, most):
                last = min(first + most, number)
                names[f'second-{node_type}-{len(names):06}'] = place, first, last
        if not {*names} <= units.results.keys():
            shape = self.num_nodes[node_type], self.num_windows, num_clusters
            dtype = np.uint16 if is_exact else np.uint8
            units.allocate(f'{folder}/second.npy', dtype, shape)
        end = self._ends(names, 1)

        def write(name: str, found: SecondHop) -> list[int]:
            place, first, _ = names[name]
            start = (int(base[place]) + first) * size
            units.write(f'{folder}/second.npy', found.table, start)
            num_over = int(end[0])
            units.write(f'{folder}/second_over_index.npy', found.over_index + start, num_over)
            units.write(f'{folder}/second_over_count.npy', found.over_count, num_over)
            end[:] += len(found.over_index)
            return [len(found.over_index)]

        sizes = {name: last - first for name, (_, first, last) in names.items()}
        compute = self._hops(node_type, names)
        units.run_all(f'hop 2 of {node_type}s', ' nodes', sizes, compute, write)

        def close() -> None:
            for part in ('index', 'count'):
                units.allocate(f'{folder}/second_over_{part}.npy', np.int64, [end[0]])

        units.run(f'close-second-{node_type}', close)

    def _ends(self, names: Iterable[str], number: int) -> np.ndarray:
        r"""Where arrays that grow end after the units that are done."""
        end = np.zeros(number, np.int64)
        for name in names:
            end += self.units.results.get(name, 0)
        return end

    def _hops(
        self, node_type: str, names: dict[str, tuple[int, int, int]]
    ) -> Callable[[str], SecondHop]:
        r"""From the name of a unit to the two hops of its nodes: those of a partition from one
        place to another."""
        units, other = self.units, NEIGHBOR_TYPE[node_type]
        offset, data = (units.read(f'work/rows/{other}_{part}.npy') for part in ('offset', 'data'))
        size = self.num_windows, self.num_clusters[node_type]
        rows = offset, data, self.partitions.base(other), *size

        def compute(name: str) -> SecondHop:
            place, *span = names[name]
            pairs = (units.read(_pairs(node_type, place, part)) for part in PAIRS)
            return add_hops(tuple(pairs), span, rows, self.plan.counts)

        return compute

    def _checksums(self) -> dict[str, str]:
        r"""The files that are kept, and the checksum of each."""
        kept = []
        for folder, _, files in sorted(os.walk(self.folder)):
            relative = osp.relpath(folder, self.folder)
            if not relative.startswith('work'):
                kept += [osp.normpath(osp.join(relative, file)) for file in sorted(files)]
        names = {f'checksum-{place:06}': file for place, file in enumerate(kept)}
        self.units.run_all(
            'checksums',
            'B',
            {name: osp.getsize(self.units.path(file)) for name, file in names.items()},
            lambda name: checksum(self.units.path(names[name])),
            lambda name, found: found,
        )
        return {file: self.units.results[name] for name, file in names.items()}

    def _facts(self, log: Log) -> dict[str, Any]:
        units, scanned = self.units, self.units.results['scan']
        named = {name: f'ids-{name}' for name in NEIGHBOR_TYPE}
        named |= {
            str(of.group): f'groups-{of.name}'
            for of in self.plan.resolutions
            if isinstance(of.group, str)
        }
        named |= {name: f'attribute-{name}' for _, name in self.plan.attributes}
        contexts = {name: f'context-{name}' for name in sorted(self.plan.schema.named('contexts'))}
        files, arrays = self._checksums(), {}
        for name in files:
            if name.endswith('.npy'):
                array = units.read(name)
                arrays[name.removesuffix('.npy')] = {
                    'dtype': array.dtype.str, 'shape': [*array.shape],
                }  # fmt: skip
        num_bytes = sum(
            np.dtype(of['dtype']).itemsize * int(np.prod(of['shape'], dtype=object))
            for of in arrays.values()
        )
        facts = {
            'plan': self.plan.facts,
            'fingerprint': self.plan.fingerprint,
            'num_nodes': self.num_nodes,
            'num_partitions': self.num_partitions,
            **units.results['cutoffs'],
            'num_rows': sum(log.num_rows),
            'num_events': self.num_events,
            'num_clicks': self.num_clicks,
            'num_recent': self.plan.num_recent,
            'counts': self.plan.counts,
            'resolutions': [
                {**of._asdict(), 'name': of.name, 'num_clusters': self.num_clusters[of.name]}
                for of in self.plan.resolutions
            ],
            'dense': scanned['is_dense'],
            'lineage': {
                name: units.results[unit]['lineage'] for name, unit in {**named, **contexts}.items()
            },
            'attributes': [
                {
                    'node_type': node_type,
                    'name': name,
                    'number': units.results[f'attribute-{name}']['number'],
                }
                for node_type, name in self.plan.attributes
            ],
            'contexts': {name: units.results[unit]['number'] for name, unit in contexts.items()},
            'features': [*self.plan.schema.named('features')],
            'log': {'files': log.files, 'columns': log.columns, **units.results['facts']},
            'arrays': arrays,
            'files': files,
            'bytes': num_bytes,
        }
        if self.plan.counts == 'log':
            facts['log_counts'] = {'largest': MAX_COUNT, 'error': RELATIVE_ERROR}
        return facts


def _pairs(node_type: str, partition: int, part: str) -> str:
    return f'work/pairs/{node_type}/{partition:06}_{part}.npy'
