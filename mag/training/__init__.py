r"""Training, evaluation and prediction, the same for every model."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mag.training.click_task import ClickTask
    from mag.training.distillation_task import DistillationTask
    from mag.training.fitting import fit
    from mag.training.lightning_task import LightningTask
    from mag.training.scoring import evaluate, predict
    from mag.training.task import Task

__all__ = [
    'ClickTask', 'DistillationTask', 'LightningTask', 'Task', 'evaluate', 'fit', 'predict'
]  # fmt: skip

_FILES = {
    'ClickTask': 'click_task',
    'DistillationTask': 'distillation_task',
    'LightningTask': 'lightning_task',
    'Task': 'task',
    'evaluate': 'scoring',
    'fit': 'fitting',
    'predict': 'scoring',
}


def __getattr__(name: str) -> object:
    # A task alone, which a transform may be, needs neither Lightning nor torchmetrics.
    if name in _FILES:
        return getattr(import_module(f'mag.training.{_FILES[name]}'), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
