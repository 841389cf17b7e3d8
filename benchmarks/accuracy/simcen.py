r"""How well SimCEN predicts clicks, what its contrast and its views bring, and what DCN V2 and
FinalMLP reach on the same rows and fields.

No model is given counts at the target. The learning rate is chosen on validation with seed 0: for
SimCEN between that of its authors and three times that, and for the others between those of
accuracy.counts. Its variants take SimCEN's own. Embeddings start alike, and none is regularized but
by the weight decay of most models in accuracy.counts, where MovieLens-1M stands for MovieLens-100K.
All else is as there, but for the running average of weights: on validation SimCEN is better
without one, since statistics of its normalizations lag behind it.

    python benchmarks accuracy.simcen run --dataset movielens-100k --root data/movielens-100k \
        --out benchmarks/accuracy/results/simcen-movielens-100k.json
    python benchmarks accuracy.simcen table benchmarks/accuracy/results/simcen-*.json \
        --findings benchmarks/accuracy/results/simcen-findings.md \
        > benchmarks/accuracy/simcen.md

A command can be stopped and given again: runs that were made are not made a second time. Commands
that run side by side need an --out each.
"""

import argparse
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from records import Record, made_by, make_parser
from torch import nn
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
    logs_of,
    read_parts,
    run_on,
    run_plan,
    trials_of_rates,
)
from accuracy.count_data import DATASETS
from accuracy.fields import EMBEDDING_STD
from mag.models import SimCEN

# Those of accuracy.counts, and of SimCEN that of its authors and the next.
LEARNING_RATES, OWN_RATES = (3e-3, 1e-2), (1e-3, 3e-3)
TABLES = {'models': 'Models', 'parts': 'What the parts of SimCEN bring'}

CLAIMS = (
    Claim('SimCEN is ahead of DCN V2', 'simcen', 'dcn_v2'),
    Claim('SimCEN is ahead of FinalMLP', 'simcen', 'final_mlp'),
    Claim('the contrast helps SimCEN', 'simcen', 'no_contrast'),
    Claim('the views help SimCEN', 'simcen', 'no_views'),
    Claim('an MLP beside it helps SimCEN', 'simcen_mlp', 'simcen'),
    Claim('a second tower helps SimCEN', 'simcen_dual', 'simcen'),
)


def simcen(train: HeteroData, val: HeteroData, temperature: float, **arguments: Any) -> nn.Module:
    r"""SimCEN whose embeddings start as those of the baselines: from the authors' start, at .0001,
    it was still on its first plateau when a run stops here."""
    model = SimCEN.from_data(train, **arguments)
    nn.init.normal_(model.embedding.weight, std=EMBEDDING_STD)
    return model


def final_mlp(train: HeteroData, val: HeteroData, temperature: float) -> nn.Module:
    # Here, because it takes seconds to import.
    from accuracy.final_mlp import FinalMLP

    return FinalMLP(train)


def variant(title: str, table: str, **arguments: Any) -> Model:
    build = partial(simcen, **arguments)
    return Model(title, table, build, counts=False, average=None, tuned_as='simcen', effort=4.0)


MODELS = {
    'dcn_v2': baseline('dcn_v2', counts=False),
    'final_mlp': Model('FinalMLP', 'models', final_mlp, counts=False, is_joined=True, effort=6.0),
    'simcen': variant('SimCEN', 'models')._replace(tuned_as=None),
    'simcen_mlp': variant('SimCEN + MLP', 'models', mlp_channels=(800, 400)),
    'simcen_dual': variant('dual SimCEN', 'models', second_channels=(960, 480)),
    'no_contrast': variant('w/o contrast', 'parts', alpha=0.0),
    'standard': variant('contrast of the views alone (InfoNCE)', 'parts', contrast_form='standard'),
    'no_views': variant('w/o views', 'parts', views=False),
}


def trials_of(dataset: str, name: str) -> list[Setting]:
    return trials_of_rates(dataset, OWN_RATES if name == 'simcen' else LEARNING_RATES)


def run_job(args: argparse.Namespace, paths: dict[tuple[str, str], Path], job: Job) -> Record:
    return run_on(read_parts(paths[job.dataset, job.protocol]), MODELS[job.model], job, args)


def run(args: argparse.Namespace) -> None:
    run_plan(args, logs_of(args), MODELS, trials_of, run_job, args.jobs)


def render(records: list[Record]) -> Iterable[str]:
    r"""The committed tables, two a log and protocol."""
    yield '# SimCEN'
    yield ''
    yield (
        f'Mean and standard deviation over seeds on the test part. {COMPARED} '
        'All models read the same fields, without counts, in embeddings of size 16. '
        'The learning rate is chosen on validation with seed 0 between .003 and .01, for SimCEN '
        'between .001, that of its authors, and .003; its variants take its own. Embeddings '
        f'start alike, with a deviation of {EMBEDDING_STD:g}. Weight decay is that of most models '
        'in accuracy.counts, on MovieLens-100K of those on MovieLens-1M. All stop by the log loss '
        'of validation. DCN V2 and FinalMLP score with a running average of their weights, SimCEN '
        'with its weights, which is better on validation. Seconds are of training with validation.'
    )
    yield from compare(records, MODELS, TABLES, 'simcen', CLAIMS)
    yield ''
    yield from made_by(records)


def main(arguments: Sequence[str]) -> None:
    parser = make_parser('accuracy.simcen', __doc__)
    add_plan_commands(parser, DATASETS, MODELS, run, render, protocols=('rolling',))
    args = parser.parse_args(arguments)
    args.act(args)
