r"""What models return: one contract for clicks, conversions, branches and views."""

from typing import NamedTuple

from torch import Tensor
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
