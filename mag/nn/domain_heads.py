from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from mag.checks import check_ids, check_integers, check_sizes, check_tensor
from mag.nn.mlp import MLP


class DomainHeads(torch.nn.Module):
    r"""A head for each domain, such as search and recommendation, over features that they share:
    eq. 12 of the `"Joint Learning of E-commerce Search and Recommendation with a Unified Graph
    Neural Network" <https://doi.org/10.1145/3488560.3498414>`_ paper

    .. math::
        \hat{y}_i = \mathrm{MLP}_{d_i} \left( \mathrm{BN}_{d_i} (\mathbf{x}_i) \right)

    In training the statistics of a domain are those of its own rows. A domain with one row in a
    batch, which has no statistics of its own, takes those that were gathered before.

    >>> heads = DomainHeads(16, (8,), num_domains=2)
    >>> heads(torch.randn(3, 16), torch.tensor([0, 1, 0])).shape
    torch.Size([3])

    Args:
        in_channels (int): Size :math:`F` of the features.
        hidden_channels (Sequence[int]): Hidden sizes of each head.
        num_domains (int): The number :math:`D` of heads.

    Shapes:
        - **input:** features :math:`(B, F)`, domains :math:`(B)`
        - **output:** logits :math:`(B)`
    """

    def __init__(self, in_channels: int, hidden_channels: Sequence[int], num_domains: int) -> None:
        super().__init__()
        check_integers(1, in_channels=in_channels, num_domains=num_domains)
        check_sizes(hidden_channels=hidden_channels)
        self.in_channels = in_channels
        self.num_domains = num_domains
        self.norms = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(in_channels) for _ in range(num_domains)
        )
        self.mlps = torch.nn.ModuleList(
            MLP([in_channels, *hidden_channels, 1]) for _ in range(num_domains)
        )

    def reset_parameters(self) -> None:
        for module in (*self.norms, *self.mlps):
            module.reset_parameters()

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): The features, shape :obj:`[B, F]`.
            domain (torch.Tensor): The domain of each row, from 0 to :obj:`D - 1`, shape :obj:`[B]`.

        Raises:
            IndexError: If a domain has no head.
            TypeError: If :obj:`x` holds no floats or :obj:`domain` no int64.
            ValueError: If a shape is another.
        """
        check_tensor('DomainHeads', 'x', x, ('B', self.in_channels), 'floats')
        check_tensor('DomainHeads', 'domain', domain, (x.size(0),), torch.long)
        # In training, which looks for the rows of each, one without a head would have the logit 0.
        check_ids('DomainHeads', 'domains', domain, self.num_domains, wait=True)
        heads = list(zip(self.norms, self.mlps, strict=True))
        if not self.training:
            # All heads look at all rows, as numbers of rows that depend on values are not exported.
            logits = torch.cat([mlp(norm(x)) for norm, mlp in heads], dim=1)
            return logits.gather(1, domain.view(-1, 1)).view(-1).to(x.dtype)
        logit = x.new_zeros(domain.numel())
        for number, (norm, mlp) in enumerate(heads):
            # The rows of another domain are no statistics of this one.
            rows = (domain == number).nonzero().view(-1)
            if rows.numel() == 0:
                # A parameter that waits for a gradient that never comes stops distributed training.
                parameters = [*norm.parameters(), *mlp.parameters()]
                logit = logit + 0 * sum(parameter.sum() for parameter in parameters)
                continue
            with _as_in_evaluation(norm, mlp) if rows.numel() == 1 else nullcontext():
                own = mlp(norm(x.index_select(0, rows)))
            # In half precision a head answers in another dtype than it was asked.
            logit = logit.index_put((rows,), own.view(-1).to(logit.dtype))
        return logit


@contextmanager
def _as_in_evaluation(*modules: torch.nn.Module) -> Iterator[None]:
    parts = [part for module in modules for part in module.modules() if part.training]
    for part in parts:
        part.training = False
    try:
        yield
    finally:
        for part in parts:
            part.training = True
