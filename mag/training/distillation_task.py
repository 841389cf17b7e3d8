import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_numbers
from mag.fingerprint import fingerprint
from mag.lineage import ids_of, require_ids_of, require_same_ids
from mag.logits import as_logits
from mag.losses import distillation_loss
from mag.training.click_task import ClickTask


class DistillationTask(ClickTask):
    r"""Learns clicks from their labels and from what a trained teacher expects in their place, such
    as a stack teaches the smallest of its branches, which then costs a request what it costs alone,

    .. math::
        \mathcal{L} = (1 - w) \, \mathrm{loss}(y, \hat{y}) + w \, T^2 \, \mathrm{BCE} \left(
        \sigma(t / T), \sigma(\hat{y} / T) \right)

    with the logits :math:`\hat{y}` of the student and :math:`t` of the teacher, after `"Distilling
    the Knowledge in a Neural Network" <https://arxiv.org/abs/1503.02531>`_, see
    :func:`~mag.losses.distillation_loss`. All else is as in :class:`ClickTask`, and so is the loss
    of the labels: a student's own, if it has one.

    .. code-block:: python

        stack = fit(ClickTask(Stack(branches)), train_loader, val_loader)
        task = DistillationTask(CountNet.from_data(train), teacher=stack)

    The teacher is copied, and the copy scores without dropout, is never trained, and is no part of
    the task's weights, checkpoints and averages. A resumed run refuses another teacher.

    Args:
        student (torch.nn.Module): What is trained, as :obj:`model` of :class:`ClickTask`.
        teacher (torch.nn.Module): A trained model of clicks that reads the same batches, or its
            task, which may score with an average of its weights.
        learning_rate (float, optional): The step size of Adam. (default: :obj:`1e-2`)
        weight_decay (float, optional): The share of a parameter that is added to its gradient.
            (default: :obj:`5e-5`)
        average (float, optional): See :class:`ClickTask`. (default: :obj:`None`)
        soft_weight (float, optional): The weight :math:`w` of the teacher. (default: :obj:`0.5`)
        temperature (float, optional): The :math:`T` by which logits are divided. The higher, the
            more count differences between clicks that are all unlikely, or all likely.
            (default: :obj:`1.0`)

    Raises:
        TypeError: If a model is no :class:`torch.nn.Module`, or a number is none.
        ValueError: If a number is out of range, or the models were built for different logs.
    """

    def __init__(
        self,
        student: torch.nn.Module,
        teacher: torch.nn.Module,
        learning_rate: float = 1e-2,
        weight_decay: float = 5e-5,
        average: float | None = None,
        soft_weight: float = 0.5,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, learning_rate, weight_decay, average)
        if not isinstance(teacher, torch.nn.Module):
            raise TypeError(
                f"'teacher' must be a torch.nn.Module, but got {type(teacher).__name__}."
            )
        check_numbers('[0, 1]', soft_weight=soft_weight)
        check_numbers('(0, inf)', temperature=temperature)
        require_same_ids(
            'The teacher was built for', ids_of(teacher), ids_of(student), 'the student'
        )
        self.soft_weight = soft_weight
        self.temperature = temperature
        # In a tuple it is no module of the task: nobody trains, averages or saves it.
        self._teacher = (copy.deepcopy(teacher).eval().requires_grad_(False),)
        # What a resumed run compares.
        self.teacher_checksum = fingerprint(teacher)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'DistillationTask':
        # It goes where the student goes, such as to a GPU.
        self._teacher[0]._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def grow(self, data: HeteroData) -> None:
        r"""Adds what a log has that grew, to the teacher and to the student and the average of its
        weights, by the models' own :obj:`grow`. An optimizer has to be made anew.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If a model does not grow, or :obj:`data` is no
                :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data is of another log, or lacks what was there or is read.
        """
        (teacher,) = self._teacher
        if not callable(getattr(teacher, 'grow', None)):
            raise TypeError(
                f'DistillationTask.grow needs a teacher with a method grow(data), but '
                f'{type(teacher).__name__} has none.'
            )
        super().grow(data)
        teacher.grow(data)  # type: ignore[operator]
        self.teacher_checksum = fingerprint(teacher)

    def check_rows(self, dataset: Any) -> None:
        r"""Raises a :class:`ValueError` as :class:`ClickTask` does, and if the teacher was built
        for another log, or has not grown with it."""
        super().check_rows(dataset)
        require_ids_of(self._teacher[0], dataset, 'train_loader')

    def loss(self, batch: Any) -> Tensor:
        r"""The loss of the labels and that of the teacher's logits, by their weights."""
        output = self.model(batch)
        (teacher,) = self._teacher
        with torch.no_grad():
            taught = as_logits(type(teacher).__name__, teacher(batch)).click
        logit = as_logits(type(self.model).__name__, output).click
        if taught.shape != logit.shape:
            raise ValueError(
                f'{type(teacher).__name__} must return one logit of the click a row, shape '
                f'{list(logit.shape)} like the student, but returned {list(taught.shape)}.'
            )
        soft = distillation_loss(logit, taught, self.temperature)
        return (1 - self.soft_weight) * self._loss_of(output, batch) + self.soft_weight * soft
