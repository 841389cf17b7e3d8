r"""The logs of accuracy.counts, split and counted once and then shared by all processes."""

import copy
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.transforms import Compose

import mag
from accuracy.clicks import PROTOCOLS as CLICK_PROTOCOLS
from accuracy.clicks import Protocol
from mag.datasets import KuaiRand, MovieLens, SyntheticMarket, Trivago
from mag.files import checksum, replacing
from mag.metrics import bayes_optimal
from mag.schema import CLICKS
from mag.transforms import MacroCoarsen, RecentNeighbors, TargetCounts, TemporalSplit

PROTOCOLS = {name: CLICK_PROTOCOLS[name] for name in ('rolling', 'window')} | {
    'cold': Protocol(
        '6 rolling windows, with users and items that nobody has seen',
        TemporalSplit(num_windows=6, keep_cold=True),
    )
}
NUM_RECENT = 20
HOUR, DAY = 3600.0, 24 * 3600.0


class Dataset(NamedTuple):
    r"""A log.

    Args:
        title: What the table calls it.
        load: From the folder of its raw files.
        protocols: Those of :obj:`PROTOCOLS` that it is split by.
        groups: Its macro nodes, at several resolutions. MacGNN reads those of the first.
        half_lives: Those of decayed counts, in seconds; none where positions are cut.
        temperature: That of MacGNN's attention.
        keep_cold: Whether exposures without a history are kept.
        by: Whose time is cut at quantiles, see :class:`~mag.transforms.TemporalSplit`.
    """

    title: str
    load: Callable[[str], HeteroData]
    protocols: tuple[str, ...]
    groups: dict[str, list[int | str]]
    half_lives: tuple[float, ...]
    temperature: float = 1.9
    keep_cold: bool = False
    by: str = 'global'


def trivago(root: str) -> HeteroData:
    r"""Trivago, whose hotels are grouped by the city of the first list that shows them, with the
    place in the list as a field, as no model here reads dense features."""
    data = copy.copy(Trivago(root)[0])
    clicks, hotels = data[CLICKS], data['item']
    item, city = clicks.edge_label_index[1].flip(0), clicks.edge_label_city.flip(0)
    # Exposures are ordered by time: the last one to be written is the first one of all.
    hotels.category = torch.zeros(hotels.num_nodes, dtype=torch.long).scatter_(0, item, city)
    hotels.num_category = clicks.num_city
    clicks.edge_label_place = clicks.edge_label_x[:, 0].long()
    clicks.num_place = int(clicks.edge_label_place.max()) + 1
    return data


def market(num_users: int, num_items: int, num_exposures: int) -> Callable[[str], HeteroData]:
    return lambda root: SyntheticMarket(num_users, num_items, num_exposures, seed=0, log=False)[0]


GROUPS: dict[str, list[int | str]] = {'user': [20, 200], 'item': ['category', 50, 500]}
DATASETS = {
    # Most users rate in one session: a cut of the whole log would leave few with a history.
    'movielens-100k': Dataset(
        'MovieLens-100K', lambda root: MovieLens(root, '100k')[0], ('rolling', 'window', 'cold'),
        GROUPS, (), by='user',
    ),
    # The file's times are of whole sessions: the data set ranks ratings, and a second is a rating.
    'movielens-1m': Dataset(
        'MovieLens-1M', lambda root: MovieLens(root, '1m')[0], ('rolling', 'window', 'cold'),
        GROUPS, (70_000.0, 500_000.0),
    ),
    'kuairand': Dataset(
        'KuaiRand-Pure', lambda root: KuaiRand(root)[0], ('rolling', 'window'), GROUPS,
        (DAY, 7 * DAY), temperature=0.7,
    ),
    'trivago': Dataset(
        'trivago', trivago, ('rolling',), {'user': [20, 200], 'item': [50, 500, 'category']},
        (HOUR, 12 * HOUR), keep_cold=True,
    ),
    'market': Dataset(
        'SyntheticMarket', market(5_000, 1_000, 300_000), ('rolling',), GROUPS, (DAY, 7 * DAY)
    ),
}  # fmt: skip


class Parts(NamedTuple):
    r"""A log that was split and counted.

    Attributes:
        log: The whole log.
        train: The training part; its rows read the counts strictly before themselves.
        val: The validation part; its rows read those as of its cutoff.
        test: The test part, in the same way.
        windows: The counts of the training rows as of their windows, shape :obj:`[L, C, 2]`.
        fresh: The counts of the test rows strictly before themselves, shape :obj:`[L, C, 2]`.
        temperature: That of MacGNN's attention.
        optimum: AUC and log loss on the test part of whoever knows the truth, if anybody does.
    """

    log: HeteroData
    train: HeteroData
    val: HeteroData
    test: HeteroData
    windows: Tensor
    fresh: Tensor
    temperature: float
    optimum: tuple[float, float] | None


def make_parts(dataset: str, protocol: str, root: str) -> Parts:
    r"""Splits and counts a log."""
    of_log = DATASETS[dataset]
    data = of_log.load(root)
    split: Any = copy.copy(PROTOCOLS[protocol].split)
    split.keep_cold |= of_log.keep_cold
    split.by = of_log.by
    parts = list(split(data))
    # Nobody here reads macro edges over exposures.
    coarsen = MacroCoarsen(of_log.groups, exposure_hops=0).fit(parts[0])
    to_macro = Compose([RecentNeighbors(NUM_RECENT), coarsen])
    train, val, test = (to_macro(part) for part in parts)
    counts = TargetCounts(half_lives=of_log.half_lives).fit(train)
    # One thread each: torch waits for no other while it sorts and sums.
    with ThreadPoolExecutor() as pool:
        made = [
            pool.submit(counts, part, log)
            for part, log in ((train, data), (val, None), (test, None), (train, None), (test, data))
        ]
    train, val, test, windows, fresh = (future.result() for future in made)
    optimum = None
    if 'truth' in data:
        optimum = bayes_optimal(data.truth['click_probability'][test[CLICKS].edge_label_row])
    return Parts(
        data, train, val, test, windows[CLICKS].edge_label_counts, fresh[CLICKS].edge_label_counts,
        of_log.temperature, optimum,
    )  # fmt: skip


def save_parts(dataset: str, protocol: str, root: str, folder: str) -> Path:
    r"""Makes the parts, unless the file that they are kept in was made by the same code."""
    path = Path(folder, f'{dataset}-{protocol}.pt')
    _, _, *settings = DATASETS[dataset]
    made_by = [repr(settings), repr(PROTOCOLS[protocol]), sources()]
    if path.exists() and torch.load(path, mmap=True)['made_by'] == made_by:
        return path
    parts = make_parts(dataset, protocol, root)
    content = {
        name: value.to_dict() if isinstance(value, HeteroData) else value
        for name, value in parts._asdict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        torch.save({'made_by': made_by, 'parts': content}, temporary)
    return path


def load_parts(path: Path) -> Parts:
    r"""Reads the parts; processes of one machine share the memory."""
    content = torch.load(path, mmap=True)['parts']
    return Parts(
        **{
            name: HeteroData.from_dict(value) if isinstance(value, dict) else value
            for name, value in content.items()
        }
    )


def sources() -> str:
    r"""A checksum of the code that makes parts."""
    found = [
        os.path.join(folder, name)
        for folder, _, names in os.walk(os.path.dirname(mag.__file__), followlinks=True)
        for name in names
        if name.endswith('.py')
    ]
    return ' '.join(checksum(path) for path in sorted([*found, __file__]))


def kind(column: str) -> str:
    r"""The kind of view that a column is of, such as ``'user x item_cluster'``."""
    return re.sub(r'(cluster)_\w+', r'\1', column.split(',')[0])


def with_counts(part: HeteroData, counts: Tensor, keep: Callable[[str], bool]) -> HeteroData:
    r"""A part with some columns of counts only. Where the prior of a column is not among them,
    the rate of all exposures takes its place."""
    part = copy.copy(part)
    clicks = part[CLICKS]
    names, prior = clicks.count_names, clicks.count_prior
    kept = [place for place, name in enumerate(names) if keep(name)]
    clicks.edge_label_counts = counts if len(kept) == len(names) else counts[:, kept]
    clicks.count_names = [names[place] for place in kept]
    places = {place: number for number, place in enumerate(kept)}
    clicks.count_prior = [places.get(prior[place], -1) for place in kept]
    return part


def without_counts(part: HeteroData) -> HeteroData:
    part = copy.copy(part)
    for name in ('edge_label_counts', 'count_names', 'count_prior', 'count_rate'):
        del part[CLICKS][name]
    return part


def without_exposures(counts: Tensor) -> Tensor:
    r"""Counts that say how much was clicked, and not how much was shown."""
    return counts[..., 1:].expand_as(counts)
