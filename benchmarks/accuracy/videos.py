r"""How well HyperCTR predicts clicks on items with several modalities.

Every model sees the same exposures, in batches of the same size, with the same optimizer and the
same early stopping on validation, and the clicks of each user before the exposure; only the graph
of MMGCN stays as it was before the first label. All get the contents of the items. What users care
for is learned from the clicks before the first label, once for a seed and length of slots; the
hypergraphs are those of the whole log, of which each row reads the last slot that ended before it.

Each seed draws its own market. TikTok is published without times: each seed deals its own slots,
and draws as many exposures without a click as there are clicks. The command can be stopped and
given again:

    python benchmarks accuracy.videos run --dataset market \
        --out benchmarks/accuracy/results/video-market.json
    python benchmarks accuracy.videos run --dataset tiktok --root data/tiktok \
        --out benchmarks/accuracy/results/video-tiktok.json
    python benchmarks accuracy.videos table benchmarks/accuracy/results/video-*.json \
        --findings benchmarks/accuracy/results/video-findings.md \
        > benchmarks/accuracy/videos.md
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lightning import seed_everything
from records import Record, make_parser, table
from torch import nn
from torch_geometric.data import HeteroData

from accuracy.harness import (
    add_commands,
    describe_rows,
    difference_to,
    fit_run,
    rows_of,
    run_missing,
    sections,
    spread,
    value_of,
)
from accuracy.history_models import DIN, MMGCN, GRU4Rec
from mag.datasets import MicroVideo, SyntheticMarket
from mag.loader import HistoryLoader
from mag.models import HyperCTR
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate
from mag.transforms import InterestHypergraph, TemporalSplit, TimeSlots, UserInterest

METRICS = ('auc', 'gauc', 'logloss')
NUM_EXPOSURES = 200_000
EMBEDDING_DIM = 32
LENGTH = 20
INTEREST_EPOCHS = 10
DAY = 24 * 3600


class Log(NamedTuple):
    r"""A whole log with its time slots, and its training, validation and test part."""

    data: HeteroData
    parts: tuple[HeteroData, ...]


class Dataset(NamedTuple):
    r"""A log of items with contents.

    Args:
        title: What the table calls it.
        load: From a folder, a seed and what cuts time into slots.
        slots: What cuts time unless a model says otherwise.
    """

    title: str
    load: Callable[[str, int, int], Log]
    slots: int


def market(root: str, seed: int, days: int) -> Log:
    data = SyntheticMarket(
        NUM_EXPOSURES // 800, NUM_EXPOSURES // 200, NUM_EXPOSURES, seed=seed, log=False
    )[0]
    data = TimeSlots(days * DAY)(data)
    return Log(data, TemporalSplit(0.5, 0.8, 0.9, num_windows=1, keep_cold=True)(data))


def tiktok(root: str, seed: int, num_slots: int) -> Log:
    # What is cached is of one seed and number of slots, so there is a cache for each call.
    with TemporaryDirectory() as folder:
        Path(folder, 'raw').symlink_to(Path(root, 'raw').resolve())
        dataset = MicroVideo(folder, num_slots=num_slots, seed=seed, log=False)
        data = TimeSlots(1)(dataset[0])
        val_start, test_start = (dataset.split_shares[name] for name in ('val_start', 'test_start'))
    # Labels start after two fifths of the training rows, where 5, 10 and 20 slots all end one.
    split = TemporalSplit(0.375 * val_start, val_start, test_start, num_windows=1, keep_cold=True)
    return Log(data, split(data))


DATASETS = {
    'market': Dataset('SyntheticMarket, slots of 4 days', market, slots=4),
    'tiktok': Dataset('TikTok, 10 slots', tiktok, slots=10),
}


class Model(NamedTuple):
    r"""A row of the table.

    Args:
        title: What the table calls it.
        build: From the whole log with its hypergraphs and the training part.
        dataset: The only log it is for, or any.
        slots: What cuts time; otherwise as the log says.
        threshold: The interest from which on a user cares for a modality.
    """

    title: str
    build: Callable[[HeteroData, HeteroData], nn.Module]
    dataset: str | None = None
    slots: int | None = None
    threshold: float = 0.5


def hyperctr(data: HeteroData, train: HeteroData, **arguments: Any) -> nn.Module:
    return HyperCTR.from_data(data, embedding_dim=EMBEDDING_DIM, **arguments)


def only(modality: str, dataset: str) -> Model:
    return Model(f'HyperCTR, {modality} alone', partial(hyperctr, modalities=[modality]), dataset)


def history_model(model: type[nn.Module]) -> Callable[[HeteroData, HeteroData], nn.Module]:
    return lambda data, train: model(train, EMBEDDING_DIM)


MODELS = {
    'hyperctr': Model('HyperCTR', hyperctr),
    'visual': only('visual', 'market'),
    'acoustic': only('acoustic', 'market'),
    'text': only('text', 'market'),
    'image': only('image', 'tiktok'),
    'audio': only('audio', 'tiktok'),
    'no_hypergraph': Model('HyperCTR w/o hypergraph', partial(hyperctr, hypergraph=False)),
    'layers_1': Model('HyperCTR, 1 layer', partial(hyperctr, num_layers=1)),
    'layers_2': Model('HyperCTR, 2 layers', partial(hyperctr, num_layers=2)),
    'layers_4': Model('HyperCTR, 4 layers', partial(hyperctr, num_layers=4)),
    'days_1': Model('HyperCTR, slots of 1 day', hyperctr, 'market', slots=1),
    'days_2': Model('HyperCTR, slots of 2 days', hyperctr, 'market', slots=2),
    'days_7': Model('HyperCTR, slots of 7 days', hyperctr, 'market', slots=7),
    'slots_5': Model('HyperCTR, 5 slots', hyperctr, 'tiktok', slots=5),
    'slots_20': Model('HyperCTR, 20 slots', hyperctr, 'tiktok', slots=20),
    'threshold_65': Model('HyperCTR, threshold of .65', hyperctr, threshold=0.65),
    'favorite': Model('HyperCTR, favorite modality alone', hyperctr, threshold=1.0),
    'weighted': Model('HyperCTR, weighted hyperedges', partial(hyperctr, weighted=True)),
    'rank_4': Model('HyperCTR, fusion of rank 4', partial(hyperctr, fusion_rank=4)),
    'positions': Model('HyperCTR, positions', partial(hyperctr, num_positions=LENGTH)),
    'gru4rec': Model('GRU4Rec', history_model(GRU4Rec)),
    'din': Model('DIN', history_model(DIN)),
    'mmgcn': Model('MMGCN', history_model(MMGCN)),
}


# As many as the lengths of slots that a log is cut into.
@lru_cache(maxsize=4)
def load_with_interest(dataset: str, root: str, seed: int, slots: int) -> Log:
    r"""The log with what its users care for."""
    data, parts = DATASETS[dataset].load(root, seed, slots)
    learned = UserInterest(num_epochs=INTEREST_EPOCHS, seed=seed).fit(parts[0], progress=False)
    return Log(learned(data), parts)


def run_one(dataset: str, name: str, seed: int, args: argparse.Namespace) -> Record:
    model = MODELS[name]
    slots = DATASETS[dataset].slots if model.slots is None else model.slots
    data, parts = load_with_interest(dataset, args.root, seed, slots)
    data = InterestHypergraph(model.threshold, seed=seed)(data)

    def load(part: HeteroData, shuffle: bool = False) -> HistoryLoader:
        return HistoryLoader(
            part,
            args.batch_size if shuffle else 4 * args.batch_size,
            shuffle,
            length=LENGTH,
            history=data,
            seed=seed,
        )

    train_loader = load(parts[0], shuffle=True)
    seed_everything(seed, verbose=False)
    task = ClickTask(model.build(data, parts[0]), args.learning_rate, args.weight_decay)
    fit_run(task, train_loader, load(parts[1]), (dataset, name), seed, args)
    return {
        'rows': [len(part[CLICKS].edge_label) for part in parts],
        'val': evaluate(task, load(parts[1])),
        'test': evaluate(task, load(parts[2])),
    }


def run(args: argparse.Namespace) -> None:
    for dataset in args.dataset:
        models = [name for name in args.models if MODELS[name].dataset in (None, dataset)]
        changed = {**vars(args), 'dataset': [dataset], 'models': models}
        run_missing(run_one, argparse.Namespace(**changed))


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed table: what models reach on each log, and the distance to HyperCTR."""
    yield '# Items with several modalities'
    yield ''
    yield (
        'Mean and standard deviation over seeds on the test part; higher AUC and GAUC and lower '
        'logloss are better. Beside each the difference to HyperCTR on the same seeds with the '
        'p-value of a paired t-test, without correction for their number. HyperCTR reads all '
        'modalities and has 3 layers and whole fusion unless said otherwise; embeddings are of '
        f'{EMBEDDING_DIM}, and histories the last {LENGTH} clicks.'
    )
    yield from sections(records, DATASETS, section)


def section(dataset: str, runs: list[Record]) -> Iterable[str]:
    yield from ('', f'## {DATASETS[dataset].title}', '')
    yield f'{describe_rows(runs[0])}.'
    yield ''

    def cells(name: str, found: list[Record]) -> list[str]:
        row = []
        for metric in METRICS:
            value = partial(value_of, metric)
            row += [spread(list(map(value, found))), difference_to('hyperctr', runs, name, value)]
        return row

    header = ['model']
    for title in ('AUC', 'GAUC', 'logloss'):
        header += [title, 'against HyperCTR']
    yield from table([*header, 'seeds'], rows_of(runs, MODELS, cells))


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.videos', __doc__)
    add_commands(
        parser,
        DATASETS,
        MODELS,
        run,
        render,
        checkpoints='output/video',
        batch_size=512,
        max_epochs=5,
        patience=4,
        learning_rate=3e-3,
    )
    args = parser.parse_args(arguments)
    args.act(args)
