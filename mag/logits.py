r"""What models return."""

from typing import NamedTuple

from torch import Tensor
from torch.utils._pytree import _register_namedtuple


class ConversionLogits(NamedTuple):
    r"""What a conversion model returns for :math:`B` exposures.

    Attributes:
        click (torch.Tensor): The logit of a click, shape :obj:`[B]`.
        conversion (torch.Tensor): The logit of a conversion after a click, shape :obj:`[B]`.
        behavior (torch.Tensor or None): The logits of the micro-behaviors after a click, shape
            :obj:`[B, N]`.
        both (torch.Tensor or None): The logit of a click and a conversion together, if the model
            predicts it directly, shape :obj:`[B]`; else the two probabilities are multiplied.
        imputation (torch.Tensor or None): The logit that a doubly robust loss fills in for the
            conversion of an exposure without a click, shape :obj:`[B]`.
    """

    click: Tensor
    conversion: Tensor
    behavior: Tensor | None = None
    both: Tensor | None = None
    imputation: Tensor | None = None


# An exported program that returns logits is saved under this name.
_register_namedtuple(ConversionLogits, serialized_type_name='mag.logits.ConversionLogits')
