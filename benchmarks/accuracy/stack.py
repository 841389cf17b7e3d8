r"""What the macro graph, FLIP and SimCEN bring each other under one head: each alone, in pairs, and
all together, and what is left of it in a small model that learns from the whole.

All rows are stacks with the same kind of head, which differ in their branches: MacGNN or CountNet,
FLIP, pre-trained as in accuracy.flip, and SimCEN. On KuaiRand, which has no texts and is run
without FLIP, the learning rate is chosen on validation with seed 0, for each row among the same,
but that of a row of last weights is that of its averaged row; where FLIP is, all rows take one.
Weight decay is that of most models in accuracy.counts, where MovieLens-1M stands for
MovieLens-100K. CountNet reads the counts at the target, of one resolution. All else is as there.

Rows with SimCEN score with their last weights, since the statistics of its normalizations lag
behind a running average; what they are compared with has a row that does so too. Its embeddings
start as in accuracy.simcen.

A student is CountNet alone, and learns beside the labels from a stack with the same seed, that of
all three or that without FLIP; its setting is that of CountNet alone. One shared table takes that
of CountNet + SimCEN.

    python benchmarks accuracy.stack run --dataset movielens-100k --root data/movielens-100k \
        --out benchmarks/accuracy/results/stack-movielens-100k.json
    python benchmarks accuracy.stack table benchmarks/accuracy/results/stack-*.json \
        --findings benchmarks/accuracy/results/stack-findings.md \
        > benchmarks/accuracy/stack.md

A command can be stopped and given again, and goes on with the run it was at. Commands that run side
by side need an --out and --checkpoints each.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from lightning import seed_everything
from records import Record, Results, made_by, make_parser
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.click_bench import (
    COMPARED,
    Claim,
    Job,
    Model,
    Setting,
    add_plan_commands,
    compare,
    fit_task,
    make_loader,
    parts_of,
    read_parts,
    run_of,
    run_on,
    run_plan,
    trials_of_rates,
)
from accuracy.count_data import DATASETS, Parts
from accuracy.counts import is_of_one_resolution
from accuracy.flip_training import (
    LOSSES,
    TEXTS,
    load_weights,
    make_flip,
    pretrained,
    with_text,
)
from accuracy.simcen import simcen
from mag.loader import JoinedBatch
from mag.loader.row_loader import RowLoader
from mag.models import CountNet, MacGNN, Stack
from mag.schema import MACRO, reached
from mag.training import ClickTask, DistillationTask

# A stack with FLIP takes minutes a run: where it is, all rows take one rate.
LEARNING_RATES = {'kuairand': (3e-3, 1e-2)}
ONE_RATE = (3e-3,)
CONTRAST = 0.01
TABLES = {
    'alone': 'Alone',
    'pairs': 'Pairs',
    'all': 'All',
    'last': 'Without SimCEN, scored with the last weights and not with their average',
    'small': 'A small model that a stack teaches',
}
TITLES = {
    'macgnn': 'MacGNN',
    'wide_macgnn': 'MacGNN with embeddings of size 128',
    'sized_macgnn': 'MacGNN of counts by the size of macro nodes',
    'counts': 'CountNet',
    'flip': 'FLIP',
    'simcen': 'SimCEN',
}
EFFORTS = {
    'macgnn': 3.0,
    'wide_macgnn': 20.0,
    'sized_macgnn': 3.0,
    'counts': 1.0,
    'flip': 20.0,
    'simcen': 4.0,
}


class CountsBySize(nn.Module):
    r"""MacGNN that reads how often each macro node was clicked in relation to its size: counts
    times the mean size of all, over its own.

    Args:
        data: The training part.
        temperature: That of its attention.
    """

    def __init__(self, data: HeteroData, temperature: float) -> None:
        super().__init__()
        self.model = MacGNN.from_data(data, temperature=temperature)
        self.out_channels = self.model.out_channels
        for name, macro in MACRO.items():
            size = data[macro]['size'].clamp(min=1)
            self.register_buffer(name, size.float().mean() / size)

    def features(self, batch: JoinedBatch) -> Tensor:
        pairs: Any = batch.pairs
        user_hops, item_hops = (
            tuple(counts * getattr(self, reached(name, hop)) for hop, counts in enumerate(hops, 1))
            for name, hops in (('user', pairs.user_hops), ('item', pairs.item_hops))
        )
        return self.model.features(pairs._replace(user_hops=user_hops, item_hops=item_hops))


def stack(
    names: Sequence[str],
    train: HeteroData,
    val: HeteroData,
    temperature: float,
    **arguments: Any,
) -> nn.Module:
    makers: dict[str, Callable[..., nn.Module]] = {
        'macgnn': partial(MacGNN.from_data, temperature=temperature),
        'wide_macgnn': partial(MacGNN.from_data, temperature=temperature, embedding_dim=128),
        'sized_macgnn': partial(CountsBySize, temperature=temperature),
        'counts': CountNet.from_data,
        'flip': make_flip,
        'simcen': partial(simcen, val=val, temperature=temperature),
    }
    contrast = {'simcen': CONTRAST} if 'simcen' in names else None
    return Stack({name: makers[name](train) for name in names}, contrast=contrast, **arguments)


def stacked(*names: str, **arguments: Any) -> Model:
    reads_pairs = any(name.endswith('macgnn') for name in names)
    row = Model(
        ' + '.join(TITLES[name] for name in names),
        ('alone', 'pairs', 'all')[len(names) - 1],
        partial(stack, names, **arguments),
        ('features', 'pairs') if reads_pairs else ('features',),
        counts='counts' in names,
        columns=is_of_one_resolution,
        is_joined=reads_pairs,
        effort=sum(EFFORTS[name] for name in names),
    )
    # The statistics that SimCEN normalizes by lag behind an average of its weights.
    return row._replace(average=None) if 'simcen' in names else row


ROWS = [
    *[(name,) for name in TITLES],
    *[('macgnn', 'flip'), ('macgnn', 'simcen'), ('flip', 'simcen')],
    *[('counts', 'flip'), ('counts', 'simcen')],
    *[('macgnn', 'flip', 'simcen'), ('counts', 'flip', 'simcen')],
]
MODELS = {'_'.join(names): stacked(*names) for names in ROWS}
for name in ('macgnn', 'counts', 'macgnn_flip', 'counts_flip'):
    row = MODELS[name]
    MODELS[f'{name}_last'] = row._replace(
        title=f'{row.title}, last weights', table='last', average=None, tuned_as=name
    )
MODELS['counts_simcen_shared'] = stacked('counts', 'simcen', share_embeddings=True)._replace(
    title='CountNet + SimCEN, one table of embeddings', tuned_as='counts_simcen'
)
for student, teacher in (('student', 'counts_flip_simcen'), ('student_of_two', 'counts_simcen')):
    MODELS[student] = stacked('counts')._replace(
        title=f'CountNet, taught by {MODELS[teacher].title}', table='small', tuned_as='counts',
        teacher=teacher,
    )  # fmt: skip


TEACHERS = {model.teacher for model in MODELS.values()}
CLAIMS = (
    Claim('embeddings of size 128 help MacGNN', 'wide_macgnn', 'macgnn'),
    Claim('counts by the size of macro nodes help MacGNN', 'sized_macgnn', 'macgnn'),
    Claim('SimCEN helps MacGNN + FLIP', 'macgnn_flip_simcen', 'macgnn_flip'),
    Claim('SimCEN helps MacGNN + FLIP, all last', 'macgnn_flip_simcen', 'macgnn_flip_last'),
    Claim('SimCEN helps MacGNN', 'macgnn_simcen', 'macgnn'),
    Claim('SimCEN helps MacGNN, both last', 'macgnn_simcen', 'macgnn_last'),
    Claim('FLIP helps MacGNN', 'macgnn_flip', 'macgnn'),
    Claim('MacGNN helps FLIP + SimCEN', 'macgnn_flip_simcen', 'flip_simcen'),
    Claim('SimCEN helps CountNet + FLIP', 'counts_flip_simcen', 'counts_flip'),
    Claim('SimCEN helps CountNet + FLIP, all last', 'counts_flip_simcen', 'counts_flip_last'),
    Claim('SimCEN helps CountNet', 'counts_simcen', 'counts'),
    Claim('SimCEN helps CountNet, both last', 'counts_simcen', 'counts_last'),
    Claim('FLIP helps CountNet', 'counts_flip', 'counts'),
    Claim('a shared table helps CountNet + SimCEN', 'counts_simcen_shared', 'counts_simcen'),
    Claim('CountNet + FLIP + SimCEN teaches CountNet', 'student', 'counts'),
    Claim('CountNet + SimCEN teaches CountNet', 'student_of_two', 'counts'),
)


def trials_of(dataset: str, name: str) -> list[Setting]:
    return trials_of_rates(dataset, LEARNING_RATES.get(dataset, ONE_RATE))


def reads_text(name: str) -> bool:
    return 'flip' in (MODELS[name].teacher or name)


@lru_cache(maxsize=2)
def parts_with_text(dataset: str, root: str, path: Path) -> Parts:
    parts = read_parts(path)
    return with_text(dataset, root, parts) if dataset in TEXTS else parts


class Trainer:
    r"""Trains the stacks of a job.

    Args:
        parts: Those of its log.
        job: The job.
        args: Those of the command.
    """

    def __init__(self, parts: Parts, job: Job, args: argparse.Namespace) -> None:
        self.parts, self.job, self.args = parts, job, args
        self.weights: dict[str, Tensor] = {}
        if reads_text(job.model):
            self.weights, _ = pretrained(parts, LOSSES, 'node', job, args)

    def __call__(
        self,
        built: Stack,
        model: Model,
        job: Job,
        train: RowLoader,
        val: RowLoader,
        args: argparse.Namespace,
    ) -> tuple[ClickTask, int]:
        r"""Trains a stack, or a student once its teacher is trained."""
        if model.teacher is None:
            return self.fit(built, model, job, train, val)
        teacher = self.teacher(model.teacher)
        task = DistillationTask(built, teacher, **job.setting, average=model.average)
        return task, fit_task(task, job, train, val, self.args)

    def fit(
        self, built: Stack, model: Model, job: Job, train: RowLoader, val: RowLoader
    ) -> tuple[ClickTask, int]:
        if 'flip' in built.branches:
            load_weights(built.branches['flip'], self.weights)
        directory = None
        if job.purpose == 'run' and job.model in TEACHERS:
            # A student asks for it again.
            name = f'{job.dataset}-{job.protocol}'
            directory = Path(self.args.checkpoints, 'stack', name, f'{job.model}-{job.seed}')
        task = ClickTask(built, **job.setting, average=model.average)
        return task, fit_task(task, job, train, val, self.args, directory)

    def teacher(self, name: str) -> ClickTask:
        r"""The teacher as its own run has trained it."""
        job, args = self.job, self.args
        model = MODELS[name]
        records = Results(Path(args.out)).records
        run = run_of(records, job.dataset, job.protocol, name, job.seed)
        if run is None:
            raise ValueError(f'{args.out} has no run of {name} with seed {job.seed}, the teacher.')
        given = parts_of(model, self.parts)
        train = make_loader(model, given['train'], args.batch_size, self.parts.log, job.seed)
        seed_everything(job.seed, verbose=False)
        built: Any = model.build(given['train'], given['val'], self.parts.temperature)
        job = job._replace(model=name, setting=run['setting'])
        val = make_loader(model, given['val'], 8 * args.batch_size)
        return self.fit(built, model, job, train, val)[0]


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    parts = parts_with_text(job.dataset, args.root, paths[job.dataset, job.protocol])
    trainer = Trainer(parts, job, args)
    return run_on(parts, MODELS[job.model], job, args, trainer=trainer)


def run(args: argparse.Namespace) -> None:
    for dataset in args.dataset:
        names = [name for name in args.models if dataset in TEXTS or not reads_text(name)]
        of_log = argparse.Namespace(**{**vars(args), 'models': names})
        run_plan(of_log, [(dataset, 'rolling')], MODELS, trials_of, run_job, args.jobs)


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables."""
    yield '# The stack of macro graph, text and contrasted crosses'
    yield ''
    yield (
        f'Mean and standard deviation over seeds on the test part, served with stale counts. '
        f'{COMPARED} On KuaiRand the learning rate is chosen on validation with seed 0 in two '
        'trials for each row, elsewhere it is .003 for all; rows of last weights take that of '
        'their averaged row; weight decay is that of most models in '
        'accuracy.counts, on MovieLens-100K of those on MovieLens-1M. A student takes the setting '
        'of CountNet alone, and one table that of CountNet + SimCEN. All stop by the log loss of '
        'validation, and score with a running average of their weights, but for rows with SimCEN '
        'and where a table says that the last ones score. Seconds are of training '
        'with validation, without the pre-training of FLIP and without that of a teacher.'
    )
    yield from compare(records, MODELS, TABLES, 'macgnn', CLAIMS)
    yield ''
    yield from made_by(records)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.stack', __doc__)
    add_plan_commands(parser, DATASETS, MODELS, run, render)
    args = parser.parse_args(arguments)
    args.act(args)
