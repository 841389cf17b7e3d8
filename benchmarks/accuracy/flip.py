r"""How well FLIP predicts clicks, what its pre-training and each of its losses bring, and what text
tells of items that training rows have hardly named.

In training and validation a tenth of the items has no row, and another tenth one to five training
rows and no other; who is met is drawn anew with each seed. All have their rows in the test part.
DCN V2 reads the same fields, among which text is one id a title.

A model is pre-trained once for a seed and a set of losses, and kept in the folder --checkpoints,
from where what is fine-tuned from it begins. A loss is left out of a model whose ids alone are
fine-tuned, which takes a tenth of the time: chosen after both had scored alike with one seed. All
are fine-tuned at one learning rate, and with the weight decay of most models in accuracy.counts,
where MovieLens-1M stands for MovieLens-100K. All else is as there.

    python benchmarks accuracy.flip run --dataset movielens-100k --root data/movielens-100k \
        --out benchmarks/accuracy/results/flip-movielens-100k.json
    python benchmarks accuracy.flip table benchmarks/accuracy/results/flip-*.json \
        --findings benchmarks/accuracy/results/flip-findings.md \
        > benchmarks/accuracy/flip.md

A command can be stopped and given again, and goes on with the run it was at. Commands that run side
by side need an --out and --checkpoints each.
"""

import argparse
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from records import Record, made_by, make_parser, select, table
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.click_bench import (
    COMPARED,
    Claim,
    Job,
    Model,
    Setting,
    add_plan_commands,
    baseline,
    compare,
    found_logs,
    read_parts,
    run_on,
    run_plan,
    train_clicks,
    trials_of_rates,
)
from accuracy.cold import selected
from accuracy.count_data import DATASETS, Parts
from accuracy.flip_training import (
    LOSSES,
    TEXTS,
    load_weights,
    make_flip,
    pretrained,
    with_text,
)
from accuracy.harness import difference_to, score_groups, spread
from mag.loader.row_loader import RowLoader
from mag.schema import CLICKS, SEES
from mag.training import predict

# A run takes minutes: all models take one rate.
LEARNING_RATE = 3e-3
# Of the items, that without a row before the test part, and that with a few.
SHARE, FEW = 0.1, 5
ALL, KNOWN = 'all', f'more than {FEW}'
TABLES = {
    'models': 'Models',
    'parts': 'What each encoder knows',
    'losses': 'What each loss of pre-training brings to the ids alone',
}

CLAIMS = (
    Claim('FLIP is ahead of DCN V2', 'flip', 'dcn_v2'),
    Claim('pre-training helps FLIP', 'flip', 'scratch'),
    Claim('the contrast of rows helps', 'ids', 'no_instance_contrast'),
    Claim('the loss of masked ids helps', 'ids', 'no_masked_id'),
    Claim('the loss of masked tokens helps', 'ids', 'no_masked_token'),
    Claim('both encoders are ahead of the ids alone', 'flip', 'ids'),
    Claim('both encoders are ahead of the text alone', 'flip', 'text'),
    Claim('pre-training helps the ids alone', 'ids', 'ids_scratch'),
    Claim('pre-training helps the text alone', 'text', 'text_scratch'),
    Claim('a gate for each row helps', 'sample_gate', 'flip'),
    Claim('a sentence for each row helps', 'row_sentence', 'flip'),
)


def flip(train: HeteroData, val: HeteroData, temperature: float, **arguments: Any) -> nn.Module:
    return make_flip(train, **arguments)


def variant(title: str, table: str, tuned_as: str | None, **arguments: Any) -> Model:
    build = partial(flip, **arguments)
    return Model(title, table, build, counts=False, tuned_as=tuned_as, effort=20.0)


MODELS = {
    'dcn_v2': baseline('dcn_v2', counts=False),
    'scratch': variant('FLIP from scratch', 'models', None),
    'flip': variant('FLIP', 'models', None),
    'sample_gate': variant('FLIP, a gate for each row', 'models', 'flip', gate='sample'),
    'row_sentence': variant('FLIP, a sentence for each row', 'models', 'flip', sentence='row'),
    'ids': variant('ids alone', 'parts', 'flip', branches='ids'),
    'text': variant('text alone', 'parts', 'flip', branches='text'),
    'ids_scratch': variant('ids alone, from scratch', 'parts', 'scratch', branches='ids'),
    'text_scratch': variant('text alone, from scratch', 'parts', 'scratch', branches='text'),
    'no_instance_contrast': variant('w/o contrast of rows', 'losses', 'ids', branches='ids'),
    'no_masked_id': variant('w/o masked ids', 'losses', 'ids', branches='ids'),
    'no_masked_token': variant('w/o masked tokens', 'losses', 'ids', branches='ids'),
}
# By which losses a model is pre-trained, and what has a sentence.
PRETRAINING: dict[str, tuple[tuple[str, ...], str]] = {
    **dict.fromkeys(('flip', 'sample_gate', 'ids', 'text'), (LOSSES, 'node')),
    'row_sentence': (LOSSES, 'row'),
    **{f'no_{name}': (tuple(one for one in LOSSES if one != name), 'node') for name in LOSSES},
}


def trials_of(dataset: str, name: str) -> list[Setting]:
    return trials_of_rates(dataset, (LEARNING_RATE,))


def with_cold_items(parts: Parts, seed: int) -> Parts:
    r"""Parts in which some items have no row before the test part, and some a few."""
    generator = torch.Generator().manual_seed(seed)
    num_items = parts.train['item'].num_nodes
    draw = torch.rand(num_items, generator=generator)
    unseen, few = draw < SHARE, (draw >= SHARE) & (draw < 2 * SHARE)
    most = torch.randint(1, FEW + 1, (num_items,), generator=generator)
    item = parts.train[CLICKS].edge_label_index[1]
    kept = ~unseen[item] & (~few[item] | (place_among_equals(item, generator) < most[item]))

    def part(data: HeteroData, labels: Tensor) -> HeteroData:
        edges = {name: ~unseen[data[name].edge_index[1]] for name in (CLICKS, SEES)}
        return selected(data, edges, labels)

    val_item = parts.val[CLICKS].edge_label_index[1]
    return parts._replace(
        train=part(parts.train, kept), val=part(parts.val, ~(unseen | few)[val_item])
    )


def place_among_equals(value: Tensor, generator: torch.Generator) -> Tensor:
    r"""The place of each entry among those of the same value, in a random order."""
    shuffled = torch.randperm(value.numel(), generator=generator)
    order = shuffled[value[shuffled].sort(stable=True).indices]
    number = value.bincount()
    first = number.cumsum(0) - number
    place = torch.empty_like(value)
    place[order] = torch.arange(value.numel()) - first[value[order]]
    return place


def groups_of(train: HeteroData, test: HeteroData) -> dict[str, Tensor]:
    r"""The rows of the test part by how many training rows their items have."""
    number = train[CLICKS].edge_label_index[1].bincount(minlength=test['item'].num_nodes)
    number = number[test[CLICKS].edge_label_index[1]]
    return {
        ALL: torch.ones_like(number, dtype=torch.bool),
        '0': number == 0,
        f'1 to {FEW}': (number > 0) & (number <= FEW),
        KNOWN: number > FEW,
    }


def score(groups: dict[str, Tensor], test: HeteroData, trained: Any, loader: RowLoader) -> Record:
    r"""What a model reaches in each group of rows; the metrics of all are those of items that are
    known, as no other table has items that were hidden."""
    clicks = test[CLICKS]
    probability = predict(trained, loader)['click']
    user, known = clicks.edge_label_index[0], {KNOWN: groups[KNOWN]}
    scores = score_groups(probability, clicks.edge_label, known, user)[KNOWN]
    # Of an item that is hidden a user has seldom a row of each kind.
    return {**scores, 'items': score_groups(probability, clicks.edge_label, groups)}


@lru_cache(maxsize=2)
def parts_of_seed(dataset: str, root: str, path: Path, seed: int) -> Parts:
    return with_text(dataset, root, with_cold_items(read_parts(path), seed))


def train_from(
    weights: dict[str, Tensor] | None, built: nn.Module, *others: Any
) -> tuple[Any, int]:
    r"""Fine-tunes a model from weights, or from its own where there are none."""
    if weights is not None:
        load_weights(built, weights)
    return train_clicks(built, *others)


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    parts = parts_of_seed(job.dataset, args.root, paths[job.dataset, job.protocol], job.seed)
    model = MODELS[job.model]
    weights: dict[str, Tensor] | None = None
    before: Record = {}
    if job.model in PRETRAINING:
        weights, before = pretrained(parts, *PRETRAINING[job.model], job, args)
    groups = groups_of(parts.train, parts.test)
    record = run_on(
        parts, model, job, args, partial(score, groups, parts.test), partial(train_from, weights)
    )
    sizes = {name: int(is_in.sum()) for name, is_in in groups.items()}
    return {**record, 'groups': sizes, 'pretraining': before}


def run(args: argparse.Namespace) -> None:
    logs = [(dataset, 'cold') for dataset in args.dataset]
    run_plan(args, logs, MODELS, trials_of, run_job, args.jobs)


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables."""
    yield '# FLIP'
    yield ''
    yield (
        f'Mean and standard deviation over seeds on the rows of the test part whose items have '
        f'more than {FEW} training rows; those of other items are below. Each seed hides other '
        f'items. {COMPARED} All are fine-tuned at a learning '
        f'rate of {LEARNING_RATE:g}, with the weight decay of most models in accuracy.counts, on '
        f'MovieLens-100K of those on MovieLens-1M. All stop by the log loss of validation, and '
        f'score with a running average of their weights. Seconds are of '
        f'fine-tuning with validation.'
    )
    yield from compare(records, MODELS, TABLES, 'flip', CLAIMS)
    runs = select(records, purpose='run')
    for title, found in found_logs(runs):
        yield from ('', f'## Items by their training rows: {title}', '')
        yield from items_table(found)
        yield from ('', before_training(found))
    yield ''
    yield from made_by(records)


def items_table(runs: list[Record]) -> Iterable[str]:
    r"""AUC by the number of training rows of the item."""
    groups = list(runs[0]['groups'])
    header = ['model']
    for group in groups:
        number = mean(run['groups'][group] for run in runs)
        header += [f'{group}: AUC, {number:,.0f} rows', 'to FLIP']
    rows = []
    for name, model in MODELS.items():
        found = select(runs, model=name)
        if not found:
            continue
        cells = [model.title]
        for group in groups:
            value = partial(auc_of, group)
            cells.append(spread([value(run) for run in found]))
            cells.append(difference_to('flip', runs, name, value))
        rows.append(cells)
    return table(header, rows)


def auc_of(group: str, run: Record) -> float:
    return run['test']['items'][group]['auc']


def before_training(runs: list[Record]) -> str:
    found = [run['pretraining'] for run in runs if run['pretraining']]
    if not found:
        return 'Nothing was pre-trained.'
    seconds, epochs = (mean(one[name] for one in found) for name in ('seconds', 'epochs'))
    return f'Pre-training took {epochs:.1f} epochs and {seconds:,.0f} seconds.'


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.flip', __doc__)
    datasets = [name for name in DATASETS if name in TEXTS]
    add_plan_commands(parser, datasets, MODELS, run, render)
    args = parser.parse_args(arguments)
    args.act(args)
