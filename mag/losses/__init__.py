r"""Losses as pure functions."""

from mag.losses.conversion_loss import (
    behavior_loss,
    click_and_conversion_loss,
    conversion_loss,
    doubly_robust_loss,
    propensity_weights,
)
from mag.losses.distillation_loss import distillation_loss
from mag.losses.instance_contrast import gather_rows, instance_contrast
from mag.losses.interest_loss import interest_loss
from mag.losses.log_probability import log_complement, logit_of_quotient
from mag.losses.masked_id_loss import masked_id_loss
from mag.losses.masked_token_loss import masked_token_loss
from mag.losses.view_contrast import view_contrast

__all__ = [
    'behavior_loss',
    'click_and_conversion_loss',
    'conversion_loss',
    'distillation_loss',
    'doubly_robust_loss',
    'gather_rows',
    'instance_contrast',
    'interest_loss',
    'log_complement',
    'logit_of_quotient',
    'masked_id_loss',
    'masked_token_loss',
    'propensity_weights',
    'view_contrast',
]
