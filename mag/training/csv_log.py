r"""A CSV log that a resumed run continues."""

import csv
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from mag.files import replacing


class CSVLog(Logger):
    r"""Writes metrics to one CSV file, one row a step, which a resumed run continues where its
    checkpoint was made (Lightning's :class:`~lightning.pytorch.loggers.CSVLogger` starts over).

    Args:
        path (str): The file, which is written whole each time and never read.
        rows (list[dict], optional): The rows to continue after, which a checkpoint holds. What the
            file has besides, left by a run that was killed after its last checkpoint, is dropped.
            (default: :obj:`()`)
    """

    def __init__(self, path: str, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__()
        self.path = path
        self.rows = [dict(row) for row in rows]

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
        with replacing(self.path) as temporary, open(temporary, 'w', newline='') as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)
