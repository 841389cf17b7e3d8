import torch
from torch import Tensor

from mag.checks import check_choice, check_integers, check_tensor
from mag.nn._running_norm import RunningNorm


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
        form (str, optional): :obj:`"paper"`, or :obj:`"released"` for the code that MacGNN's
            authors released: one scalar :math:`\alpha`, and the statistics (with the unbiased
            deviation) are those of the batch in evaluation, too, so that a prediction depends on
            the rows beside it. (default: :obj:`"paper"`)

    Shapes:
        - **input:** :math:`(B, F)`
        - **output:** :math:`(B, F)`
    """

    def __init__(self, num_features: int, form: str = 'paper') -> None:
        super().__init__()
        check_integers(1, num_features=num_features)
        check_choice(('paper', 'released'), form=form)
        self.num_features = num_features
        self.form = form
        self.alpha = torch.nn.Parameter(torch.empty(num_features if form == 'paper' else 1))
        if form == 'paper':
            self.norm = RunningNorm(num_features, eps=1e-9)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.zeros_(self.alpha)
        if self.form == 'paper':
            self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Shape :obj:`[B, F]`.

        Raises:
            TypeError: If :obj:`x` holds no floats.
            ValueError: If the shape is another, or the batch statistics are needed and the batch
                has one row.
        """
        check_tensor(self, 'x', x, ('B', self.num_features), 'floats')
        if x.size(0) == 1 and (self.training or self.form == 'released'):
            raise ValueError(
                f'{self!r} takes its statistics from the batch and needs two rows or more, but got '
                f'one.'
            )
        if self.form == 'released':
            deviation, mean = torch.std_mean(x, dim=0)
            # Where the released code divides by zero (a constant column), the gate is one half.
            gate = ((x - mean) / deviation.clamp(min=torch.finfo(x.dtype).tiny) + 1e-8).sigmoid()
        else:
            gate = self.norm(x).sigmoid()
        return x * torch.addcmul(self.alpha, gate, 1 - self.alpha)

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self.num_features}, form={self.form!r})'
