r"""What models return: one contract for clicks, conversions, branches and views."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.utils._pytree import _register_namedtuple


class Logits(NamedTuple):
    r"""What a model returns for :math:`B` exposures. One that predicts clicks alone may as well
    return their logits as a tensor.

    Attributes:
        click (torch.Tensor): The logit of a click, shape :obj:`[B]`.
        conversion (torch.Tensor or None): The logit of a conversion after a click, shape
            :obj:`[B]`.
        behavior (torch.Tensor or None): The logits of the micro-behaviors after a click, shape
            :obj:`[B, N]`.
        both (torch.Tensor or None): The logit of a click and a conversion together, if the model
            predicts it directly, shape :obj:`[B]`; else the two probabilities are multiplied.
        imputation (torch.Tensor or None): The logit that a doubly robust loss fills in for the
            conversion of an exposure without a click, shape :obj:`[B]`.
        branches (dict[str, torch.Tensor] or None): The logits of a click by parts of the model, by
            their names, each of shape :obj:`[B]`. They are predicted beside :obj:`click`.
        views (dict[str, torch.Tensor] or None): What the model's own loss reads beside logits, such
            as embeddings of the same exposures by different parts, by their names, any shapes.
    """

    click: Tensor
    conversion: Tensor | None = None
    behavior: Tensor | None = None
    both: Tensor | None = None
    imputation: Tensor | None = None
    branches: dict[str, Tensor] | None = None
    views: dict[str, Tensor] | None = None


# An exported program that returns logits is saved under this name.
_register_namedtuple(Logits, serialized_type_name='mag.logits.Logits')


def as_logits(model: str, output: Tensor | Logits) -> Logits:
    r"""What a model returned, as :class:`Logits`.

    Args:
        model (str): The name of the model, for the message.
        output (torch.Tensor or Logits): What it returned.

    Raises:
        TypeError: If it is neither a tensor nor :class:`Logits`.
    """
    if isinstance(output, Tensor):
        return Logits(output)
    if isinstance(output, Logits):
        return output
    raise TypeError(
        f'{model} must return the logits of clicks as a tensor, or mag.logits.Logits, but returned '
        f'{type(output).__name__}.'
    )


def log_both(logits: Logits) -> Tensor:
    r"""The logarithms of the probabilities that click and conversion both happen, shape
    :obj:`[B]`, in float64: products of probabilities come closer to each other than float32 can
    tell. :obj:`logits` has conversions."""
    if logits.both is not None:
        return logsigmoid(logits.both.double())
    return logsigmoid(logits.click.double()) + logsigmoid(logits.conversion.double())  # type: ignore[union-attr]


def probabilities(logits: Logits) -> dict[str, Tensor]:
    r"""Probabilities in float64, each of shape :obj:`[B]`: of a :obj:`"click"`; where the model
    predicts conversions, of a :obj:`"conversion"` after a click and of both,
    :obj:`"click_and_conversion"`; and of a click by each branch, under its name."""
    predicted = {'click': logits.click.double().sigmoid()}
    if logits.conversion is not None:
        predicted['conversion'] = logits.conversion.double().sigmoid()
        predicted['click_and_conversion'] = log_both(logits).exp()
    for name, logit in (logits.branches or {}).items():
        predicted[name] = logit.double().sigmoid()
    return predicted
