r"""A CSV log that a resumed run continues."""

import csv
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only


class CSVLog(Logger):
    r"""Writes metrics to one CSV file, one row a step, which a resumed run continues where its
    checkpoint was made (Lightning's :class:`~lightning.pytorch.loggers.CSVLogger` starts over).

    Args:
        path (str): The file.
        last_step (int, optional): The step to continue after. Rows of later steps, left by a run
            that was killed after its last checkpoint, are dropped. If :obj:`None`, the file starts
            empty. (default: :obj:`None`)
    """

    def __init__(self, path: str, last_step: int | None = None) -> None:
        super().__init__()
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if last_step is not None and os.path.exists(path):
            with open(path, newline='') as file:
                rows = [{k: v for k, v in row.items() if v != ''} for row in csv.DictReader(file)]
            self.rows = [
                {**row, 'step': int(row['step'])} for row in rows if int(row['step']) <= last_step
            ]

    @property
    def name(self) -> str:
        return 'csv'

    @property
    def version(self) -> str:
        return ''

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        r"""Adds :obj:`metrics` to the row of :obj:`step`, which must not descend."""
        if not self.rows or self.rows[-1]['step'] != step:
            self.rows.append({'step': step})
        self.rows[-1].update(metrics)

    @rank_zero_only
    def save(self) -> None:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        temporary = f'{self.path}.tmp'
        with open(temporary, 'w', newline='') as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
        os.replace(temporary, self.path)
