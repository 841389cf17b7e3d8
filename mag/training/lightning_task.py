from collections.abc import Iterator
from typing import Any

from lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from mag.lineage import ids_of, require_ids_of, require_same_ids
from mag.training.task import Task


class LightningTask(LightningModule):
    r"""A task for a :class:`lightning.Trainer` of one's own, which trains it, validates, tests and
    predicts with every option it has, in place of :func:`~mag.training.fit`.

    Validation logs metrics as :obj:`"val_auc"` and so on, the test as :obj:`"test_auc"`;
    :obj:`trainer.predict` returns what :meth:`Task.predict` does, a dictionary a batch.
    The loaders of :mod:`mag.loader` share their rows among processes themselves: pass
    :obj:`use_distributed_sampler=False`.

    Args:
        task (Task): What is minimised, measured and stepped.

    Checkpoints hold the fingerprints of the id maps that models were built for; that of another log
    is refused, as are its loaders.

    Raises:
        TypeError: If :obj:`task` is no :class:`Task`.
    """

    def __init__(self, task: Task) -> None:
        super().__init__()
        if not isinstance(task, Task):
            raise TypeError(
                f"'task' must be a mag.training.Task, such as ClickTask(model), but got "
                f'{type(task).__name__}.'
            )
        self.task = task
        self._scores: list[tuple[Tensor, ...]] = []

    def setup(self, stage: str) -> None:
        if stage == 'predict':
            # The Trainer would make the loader anew, to number rows that are batches here.
            source = self.trainer.predict_loop._data_source
            if isinstance(source.instance, DataLoader) and source.instance.batch_size is None:
                source.instance = _Batches(source.instance)

    def on_train_start(self) -> None:
        self._require_ids(self.trainer.train_dataloader)

    def on_validation_start(self) -> None:
        self._require_ids(self.trainer.val_dataloaders)

    def on_test_start(self) -> None:
        self._require_ids(self.trainer.test_dataloaders)

    def on_predict_start(self) -> None:
        self._require_ids(self.trainer.predict_dataloaders)

    def _require_ids(self, loaders: Any) -> None:
        for loader in loaders if isinstance(loaders, (list, tuple)) else [loaders]:
            require_ids_of(self.task, getattr(loader, 'loader', loader), "the Trainer's loader")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint['id_maps'] = ids_of(self.task)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        there = checkpoint.get('id_maps', {})
        require_same_ids('The checkpoint is for', there, ids_of(self.task), 'the model')

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        loss = self.task.loss(batch)
        self.log('train_loss', loss.detach(), prog_bar=True, batch_size=1)
        return loss

    def on_train_batch_end(self, *_: Any) -> None:
        self.task.after_step()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self._scores.append(self.task.score(batch))

    test_step = validation_step

    def predict_step(self, batch: Any, batch_index: int) -> dict[str, Tensor]:
        return self.task.predict(batch)

    def on_validation_epoch_start(self) -> None:
        # One that was broken off has left some.
        self._scores.clear()

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_metrics('val')

    def on_test_epoch_end(self) -> None:
        self._log_metrics('test')

    def _log_metrics(self, part: str) -> None:
        values = self.task.measure(self._scores, self.device)
        self._scores.clear()
        values = {f'{part}_{name}': value for name, value in values.items()}
        self.log_dict(values, prog_bar=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        made = self.task.configure_optimizers()
        if isinstance(made, tuple):
            return [made[0]], [{'scheduler': made[1], 'interval': 'step'}]
        return made


class _Batches:
    r"""A loader that is no :class:`~torch.utils.data.DataLoader`."""

    def __init__(self, loader: DataLoader) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)
