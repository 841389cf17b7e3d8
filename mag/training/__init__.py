r"""Training, evaluation and prediction, the same for every model."""

from mag.training.click_task import ClickTask
from mag.training.evaluate import evaluate, predict
from mag.training.fit import fit
from mag.training.task import Task

__all__ = ['ClickTask', 'LightningTask', 'Task', 'evaluate', 'fit', 'predict']


def __getattr__(name: str) -> object:
    # Lightning takes longer to import than all the rest, and few need this.
    if name == 'LightningTask':
        from mag.training.lightning_task import LightningTask

        return LightningTask
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
