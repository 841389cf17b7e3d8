r"""Training and evaluation, the same for every model."""

from mag.training.click_module import ClickModule
from mag.training.fit import MONITORS, evaluate, fit

__all__ = ['MONITORS', 'ClickModule', 'evaluate', 'fit']
