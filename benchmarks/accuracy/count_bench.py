r"""What accuracy.fresh and accuracy.cold share: CountNet on one log, and the parts at hand."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

from lightning import seed_everything
from records import Record, Results, stamp
from torch_geometric.data import HeteroData

from accuracy.count_data import DATASETS
from accuracy.harness import PACKAGES, fit_run, tune
from mag.loader import ExposureLoader
from mag.models import CountNet
from mag.schema import CLICKS
from mag.training import ClickTask, evaluate
from mag.transforms import MacroCoarsen, TargetCounts, TemporalSplit

TRIALS = ((3e-3, 1e-5), (3e-3, 3e-4))


class Model(NamedTuple):
    r"""A row of a table: what it is called, and how it differs from CountNet."""

    title: str
    arguments: dict[str, Any] = {}


class Bench:
    r"""The parts of one log, and runs of CountNet on them."""

    models: ClassVar[Mapping[str, Model]] = {'count_net': Model('CountNet')}

    def __init__(self, dataset: str, args: argparse.Namespace) -> None:
        self.dataset, self.args = dataset, args
        self.log, parts = self.split()
        coarsen = MacroCoarsen(DATASETS[dataset].groups, exposure_hops=0).fit(parts[0])
        train, val, test = (coarsen(part) for part in parts)
        self.counts = counts = TargetCounts().fit(train)
        self.train, self.val = counts(train, log=self.log), counts(val)
        self.test, self.fresh = counts(test), counts(test, log=self.log)

    def split(self) -> tuple[HeteroData, Sequence[HeteroData]]:
        r"""The log and its parts."""
        log = DATASETS[self.dataset].load(self.args.root)
        return log, TemporalSplit(num_windows=6)(log)

    def fit(self, name: str, seed: int, setting: dict[str, float]) -> ClickTask:
        r"""Trains one model."""
        train = ExposureLoader(self.train, self.args.batch_size, shuffle=True, seed=seed)
        seed_everything(seed, verbose=False)
        model = CountNet.from_data(self.train, **self.models[name].arguments)
        task = ClickTask(model, **setting, average=0.99)
        setting_name = '-'.join(f'{value:g}' for value in setting.values())
        every = max(20, len(train) // 6)
        fit_run(
            task, train, self.rows(self.val), (self.dataset, f'{name}-{setting_name}'), seed,
            self.args, validate_every=every, monitor='logloss',
        )  # fmt: skip
        return task

    def rows(self, part: HeteroData) -> ExposureLoader:
        r"""The rows of a part in their order."""
        return ExposureLoader(part, 8 * self.args.batch_size)

    def tune(self, name: str, results: Results) -> dict[str, float]:
        r"""The learning rate and weight decay with the best log loss of validation."""
        wanted = {'dataset': self.dataset, 'model': name, 'seed': 0}
        return tune(
            partial(self._run_trial, wanted), TRIALS, wanted, results,
            lambda values: -values['logloss'],
        )  # fmt: skip

    def _run_trial(self, wanted: Record, setting: dict[str, float]) -> Record:
        task = self.fit(wanted['model'], wanted['seed'], setting)
        rows = [part[CLICKS].edge_label.numel() for part in (self.train, self.val, self.test)]
        values = evaluate(task, self.rows(self.val))
        return {**wanted, **setting, 'rows': rows, 'val': values, **stamp(*PACKAGES)}
