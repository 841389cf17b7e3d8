import torch
from torch import Tensor

from mag.checks import check_booleans
from mag.schema import require_positive_integers


class Dice(torch.nn.Module):
    r"""The data-adaptive activation from the `"Deep Interest Network for Click-Through Rate
    Prediction" <https://arxiv.org/abs/1706.06978>`_ paper

    .. math::
        f(x) = p(x) \cdot x + \alpha \, (1 - p(x)) \cdot x, \qquad
        p(x) = \sigma \left( \frac{x - \mathrm{E}[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \right),

    with one :math:`\alpha` a feature, and :math:`\mathrm{E}` and :math:`\mathrm{Var}` from the
    batch in training and from running averages in evaluation.

    Args:
        num_features (int): Size of the last dimension.
        released (bool, optional): If set to :obj:`True`, reproduces the released code of MacGNN:
            one scalar :math:`\alpha`, and the statistics (with the unbiased deviation) are those of
            the batch in evaluation, too, so that a prediction depends on the rows beside it.
            (default: :obj:`False`)

    Shapes:
        - **input:** :math:`(B, F)`
        - **output:** :math:`(B, F)`
    """

    def __init__(self, num_features: int, released: bool = False) -> None:
        super().__init__()
        require_positive_integers(num_features=num_features)
        check_booleans(released=released)
        self.num_features = num_features
        self.released = released
        self.alpha = torch.nn.Parameter(torch.empty(1 if released else num_features))
        if not released:
            self.norm = torch.nn.BatchNorm1d(num_features, eps=1e-9, momentum=0.01, affine=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.alpha)
        if not self.released:
            self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Shape :obj:`[B, F]`.

        Raises:
            ValueError: If the shape is another, or the batch statistics are needed and the batch
                has one row.
        """
        if x.dim() != 2 or x.size(1) != self.num_features:
            raise ValueError(
                f'{self!r} expects shape [B, {self.num_features}], but got {[*x.shape]}.'
            )
        if x.size(0) == 1 and (self.training or self.released):
            raise ValueError(
                f'{self!r} takes its statistics from the batch and needs two rows or more, but got '
                f'one.'
            )
        if self.released:
            deviation, mean = torch.std_mean(x, dim=0)
            # Where the released code divides by zero (a constant column), the gate is one half.
            gate = ((x - mean) / deviation.clamp(min=torch.finfo(x.dtype).tiny) + 1e-8).sigmoid()
        else:
            gate = self.norm(x).sigmoid()
        return x * torch.addcmul(self.alpha, gate, 1 - self.alpha)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.num_features}, released={self.released})'
