import torch
import torch.nn.functional as F
from torch import Tensor


class RunningNorm(torch.nn.BatchNorm1d):
    r"""Batch normalization whose running averages are those of batches from the first step on.

    At step :math:`k` a batch counts for :math:`\max(1 / k, m)`, with the momentum :math:`m`: the
    averages are means of all batches at first, and forget old ones later. With a momentum of 0.01
    those of :class:`torch.nn.BatchNorm1d` hold a third of the mean 0 and the variance 1 that they
    began with after 100 steps, so that a model which is evaluated earlier is another one than that
    which was trained, and early stopping stops at the wrong step.

    Args:
        num_features (int): Size of the last dimension.
        eps (float, optional): Added to the variance. (default: :obj:`1e-5`)
        momentum (float, optional): :math:`m`. (default: :obj:`0.01`)

    Shapes:
        - **input:** :math:`(B, F)`
        - **output:** :math:`(B, F)`
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float = 0.01) -> None:
        super().__init__(num_features, eps, momentum, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Shape :obj:`[B, F]`.

        Raises:
            ValueError: In training, if the batch has one row.
        """
        if not self.training:
            return super().forward(x)
        out = F.batch_norm(x, None, None, training=True, eps=self.eps)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            # As a tensor, because a number would wait for the device, and break a compiled graph.
            step = self.num_batches_tracked.reciprocal().clamp(min=self.momentum)
            variance, mean = torch.var_mean(x.detach().to(self.running_mean.dtype), dim=0)
            self.running_mean.lerp_(mean, step.to(mean.dtype))
            self.running_var.lerp_(variance, step.to(mean.dtype))
        return out
