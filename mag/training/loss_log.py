from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor


class LossLog(Callback):
    r"""Logs the mean training loss since the last row, and stops a run whose loss is not finite.

    Losses stay on their device until the row is due: looking at each would make a GPU wait.

    Args:
        log_every_n_steps (int): Steps between rows.
    """

    def __init__(self, log_every_n_steps: int) -> None:
        self.log_every_n_steps = log_every_n_steps
        self.losses: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs['loss'])
        if (trainer.fit_loop.total_batch_idx + 1) % self.log_every_n_steps == 0:
            pl_module.log('train_loss', self._write(trainer), prog_bar=True, logger=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.losses:
            self._write(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.losses:
            self._write(trainer)

    def _write(self, trainer: Trainer) -> float:
        losses = trainer.strategy.reduce(torch.stack(self.losses).double(), reduce_op='mean')
        self.losses.clear()
        bad = (~losses.isfinite()).nonzero()
        if bad.numel() > 0:
            step = trainer.fit_loop.total_batch_idx + 2 - len(losses) + int(bad[0])
            learning_rate = trainer.optimizers[0].param_groups[0]['lr']
            raise FloatingPointError(
                f'The training loss became {losses[bad[0]].item()} at step {step} with learning '
                f'rate {learning_rate}. Try a smaller one, or look for NaN in the batches.'
            )
        mean = losses.mean().item()
        for logger in trainer.loggers:
            logger.log_metrics(
                {'epoch': trainer.current_epoch, 'train_loss': mean}, trainer.global_step
            )
        return mean
