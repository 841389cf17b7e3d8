r"""What accuracy.flip and accuracy.stack share: the text of a log, and FLIP pre-trained on it."""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import seed_everything
from records import Record, write
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.click_bench import Job
from accuracy.clicks import Steps
from accuracy.count_data import Parts, without_counts
from mag.datasets import MovieLens
from mag.files import locked
from mag.loader import ExposureLoader
from mag.models import FLIP
from mag.nn import TextEncoder
from mag.schema import tokens
from mag.training import AlignmentTask, fit
from mag.transforms import FieldText

LOSSES = ('instance_contrast', 'masked_id', 'masked_token')
# An encoder of text that starts from nothing learns at a higher rate than one that has read.
EPOCHS, LEARNING_RATE = 3, 1e-3
# On logs this small few rows a step make enough steps, and heads that drop nothing let the contrast
# of rows leave chance: tried on the losses of pre-training alone.
BATCH_SIZE, PROJECTION_DROPOUT = 256, 0.0
# Gradients of FLIP have numbers too small for their type to be fast.
torch.set_flush_denormal(True)
# Of a state of the text: half of the default, in a third of the time.
CHANNELS = 64
# Of each log with texts, what its fields are told as.
TEXTS: dict[str, Callable[[str], Record]] = {
    'movielens-100k': lambda root: MovieLens(root, '100k').field_text(),
    'movielens-1m': lambda root: MovieLens(root, '1m').field_text(),
}


def with_text(dataset: str, root: str, parts: Parts) -> Parts:
    r"""Parts of a log in which every row has a sentence."""
    text = FieldText(**TEXTS[dataset](root)).fit(parts.train)
    return parts._replace(train=text(parts.train), val=text(parts.val), test=text(parts.test))


def make_flip(part: HeteroData, sentence: str = 'node', **arguments: Any) -> FLIP:
    r"""FLIP with a small encoder of text that has read nothing yet. Users and items have a sentence
    each, which can be kept at serving, unless it is one a row, as in the paper."""
    encoder = TextEncoder(tokens(part, 'make_flip').num_tokens, channels=CHANNELS)
    arguments = {'sentence': sentence, 'projection_dropout': PROJECTION_DROPOUT, **arguments}
    return FLIP.from_data(part, text_encoder=encoder, **arguments)


def pretrained(
    parts: Parts, losses: tuple[str, ...], sentence: str, job: Job, args: argparse.Namespace
) -> tuple[dict[str, Tensor], Record]:
    r"""The weights of FLIP after pre-training, and what that took.

    Args:
        parts: Those of a log, with text.
        losses: Those of :obj:`LOSSES` that are minimised.
        sentence: What has one, a :obj:`'node'` or a :obj:`'row'`.
        job: Of which log, and with which seed.
        args: Those of the command.
    """
    name = '-'.join((sentence, *losses, str(job.seed)))
    directory = Path(args.checkpoints, 'flip', f'{job.dataset}-{job.protocol}', name)
    told = directory / 'cost.json'
    seed_everything(job.seed, verbose=False)
    model = make_flip(parts.train, sentence)
    part, val_part = without_counts(parts.train), without_counts(parts.val)
    train = ExposureLoader(part, BATCH_SIZE, shuffle=True, seed=job.seed)
    val = ExposureLoader(val_part, 8 * BATCH_SIZE)
    task = AlignmentTask(model, LEARNING_RATE, num_steps=EPOCHS * len(train), losses=losses)
    directory.parent.mkdir(parents=True, exist_ok=True)
    # Of several runs at once, one trains what all of its seed begin with.
    with locked(f'{directory}.lock'):
        steps, start = Steps(), time.perf_counter()
        fit(
            task, train, val, directory=directory, max_epochs=EPOCHS, patience=EPOCHS,
            seed=job.seed, monitor='loss', progress=False, callbacks=[steps],
            accelerator=args.accelerator,
        )  # fmt: skip
        if not told.exists():
            cost = {'seconds': time.perf_counter() - start, 'epochs': steps.count / len(train)}
            write(told, json.dumps(cost))
    return model.state_dict(), json.loads(told.read_text())


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    r"""Gives a FLIP what another has learned, but for the gate, which may be of another form."""
    found = {name: value for name, value in weights.items() if not name.startswith('alpha')}
    missing, unexpected = model.load_state_dict(found, strict=False)
    if unexpected or any(not name.startswith('alpha') for name in missing):
        raise ValueError(f'The models differ in {[*missing, *unexpected]}.')
