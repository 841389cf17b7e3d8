import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mag.checks import check_choice, check_integers, check_numbers
from mag.training.task import Task


class AlignmentTask(Task):
    r"""Teaches the encoders of a model what each other knows of the same rows, without labels,
    before the model learns clicks: with AdamW, whose rate may fall to 0 along half a cosine.

    .. code-block:: python

        loader = ExposureLoader(train, shuffle=True)
        task = AlignmentTask(model, num_steps=30 * len(loader))
        fit(task, loader, ExposureLoader(val), monitor='loss', max_epochs=30)

    Masks are drawn anew in each step, by the generators that :func:`~mag.training.fit` seeds and
    restores, and for validation the same each time. Where several processes train, a contrast is
    one of the rows of all, and as not all weights are read,
    :obj:`strategy="ddp_find_unused_parameters_true"` has to be passed to :func:`fit`.

    A step of :class:`~mag.models.FLIP` makes numbers on a CPU that are too small for their type to
    be fast: :func:`torch.set_flush_denormal` takes them for 0, at a fraction of the time.

    Args:
        model (torch.nn.Module): :obj:`model.pretraining_losses(batch, losses, generator)` returns,
            for each name of :obj:`losses`, a scalar and of how many entries it is the mean;
            :obj:`model.pretraining` holds all names. Such as a :class:`~mag.models.FLIP`.
        learning_rate (float, optional): The step size of AdamW. (default: :obj:`1e-4`)
        weight_decay (float, optional): The share of a parameter that a step of size 1 takes away.
            (default: :obj:`1e-3`)
        num_steps (int, optional): The steps after which the rate is 0; by default it stays as it
            is. (default: :obj:`None`)
        losses (Sequence[str], optional): What is learned; by default all that the model names.
            (default: :obj:`None`)
        seed (int, optional): Seed of the masks of validation. (default: :obj:`0`)

    Raises:
        TypeError: If the model has no such losses, or an argument has another type.
        ValueError: If a number is out of range, or the losses are unknown or none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-3,
        num_steps: int | None = None,
        losses: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not callable(getattr(model, 'pretraining_losses', None)):
            raise TypeError(
                f"'model' must have a method pretraining_losses, as FLIP has, but got "
                f'{type(model).__name__}.'
            )
        check_numbers('(0, inf)', learning_rate=learning_rate)
        check_numbers('[0, inf)', weight_decay=weight_decay)
        if num_steps is not None:
            check_integers(1, num_steps=num_steps)
        check_integers(0, 2**63, seed=seed)
        known: Any = model.pretraining
        losses = known if losses is None else losses
        if not isinstance(losses, Sequence) or isinstance(losses, str):
            raise TypeError(f"'losses' must be a sequence among {list(known)}, but got {losses!r}.")
        check_choice(known, **{f'losses[{place}]': name for place, name in enumerate(losses)})
        if not losses or len(set(losses)) < len(losses):
            raise ValueError(
                f"'losses' must be some of {list(known)}, each once, but got {losses!r}."
            )
        self.model = model
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.num_steps, self.seed = num_steps, seed
        self.losses = tuple(losses)
        self.modes = dict.fromkeys(('loss', *self.losses), 'min')

    def loss(self, batch: Any) -> Tensor:
        r"""The sum of the losses of :obj:`batch`."""
        found = self.model.pretraining_losses(batch, self.losses)  # type: ignore[operator]
        return torch.stack([value for value, _ in found.values()]).sum()

    def score(self, batch: Any) -> tuple[Tensor, ...]:
        r"""The losses of a batch of validation, and of how many entries each is the mean, shape
        :obj:`[1, num_losses]`."""
        device = next(self.model.parameters()).device
        generator = torch.Generator(device).manual_seed(self.seed)
        found = self.model.pretraining_losses(batch, self.losses, generator)  # type: ignore[operator]
        values = torch.stack([found[name][0] for name in self.losses])
        counts = [found[name][1] for name in self.losses]
        return values.double().unsqueeze(0), torch.tensor([counts], device=device)

    def measure(self, scores: list[tuple[Tensor, ...]], device: torch.device) -> dict[str, float]:
        r"""Each loss, the mean over its entries, and :obj:`"loss"`, their sum."""
        total = torch.zeros(2, len(self.losses), dtype=torch.double, device=device)
        for value, count in scores:
            total += torch.cat([value * count, count])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        # Of no entry there is nothing to lose.
        means = (total[0] / total[1].clamp(min=1)).tolist()
        return {'loss': sum(means), **dict(zip(self.losses, means, strict=True))}

    def configure_optimizers(self) -> Optimizer | tuple[Optimizer, LRScheduler]:
        optimizer = torch.optim.AdamW(
            self.model.parameters(), self.learning_rate, weight_decay=self.weight_decay
        )
        if self.num_steps is None:
            return optimizer
        num_steps = self.num_steps

        def share(step: int) -> float:
            return (1 + math.cos(math.pi * min(step / num_steps, 1))) / 2

        return optimizer, LambdaLR(optimizer, share)
