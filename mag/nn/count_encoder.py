import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_booleans, check_choice, check_integers, check_numbers, check_tensor
from mag.nn._running_norm import RunningNorm


class CountEncoder(torch.nn.Module):
    r"""What a head reads of counts: how much was seen, and how much more often it was clicked than
    expected.

    Of each view, :math:`n` exposures and :math:`c` clicks become :math:`\log(1 + n)` and the
    difference of its rate from the rate :math:`p` of its prior view, or of their logits. A rate is
    shrunk towards that prior as if :math:`s` exposures more had been clicked as often as the prior
    says (empirical Bayes),

    .. math::
        r = \frac{c + s \, p}{n + s}, \qquad s = \mathrm{softplus}(\theta),

    so that where little was seen there is nothing to say. A view without a prior view expects the
    rate of all exposures. The numbers are standardised over batches in training, and by their
    averages so far in evaluation.

    Counts of any kind will do, with fractions such as decayed ones, as long as :math:`0 \le c \le
    n`. For these the output is finite, also where all of a billion exposures were clicked, as a
    logit is taken of clicks against the rest and not of a rate that rounds to 1.

    That counts are finite and :math:`0 \le c \le n` is not checked here: a GPU would wait for it,
    and a graph to export would break. :class:`~mag.loader.Exposures` checks it, for loaders and
    requests. Nothing is clamped either, which would make a number of any mistake: the logit of
    more clicks than exposures is NaN.

    Args:
        prior (Sequence[int]): For each view, the place of its prior view, or :obj:`-1`.
        rate (float): The share of exposures that are clicked, of all together.
        strength (float, optional): Where each :math:`s` starts. (default: :obj:`10.0`)
        learned (bool, optional): If set to :obj:`False`, each :math:`s` stays there.
            (default: :obj:`True`)
        scale (str, optional): :obj:`"rate"` or :obj:`"logit"`, on which a rate and its prior are
            compared. (default: :obj:`"logit"`)

    Shapes:
        - **input:** counts :math:`(B, V, 2)`, exposures before clicks
        - **output:** :math:`(B, 2 V)`, first how much was seen of each view
    """

    order: Tensor
    expected: Tensor
    back: Tensor

    def __init__(
        self,
        prior: Sequence[int],
        rate: float,
        *,
        strength: float = 10.0,
        learned: bool = True,
        scale: str = 'logit',
    ) -> None:
        super().__init__()
        if not isinstance(prior, Sequence) or isinstance(prior, str):
            raise TypeError(
                f"'prior' must be a sequence of places such as (-1, 0), but got {prior!r}."
            )
        if not prior:
            raise ValueError(f"'prior' must name at least one view, but got {prior!r}.")
        check_integers(-1, len(prior), **{f'prior[{i}]': of for i, of in enumerate(prior)})
        check_numbers('(0, 1)', rate=rate)
        check_numbers('(0, inf)', strength=strength)
        check_booleans(learned=learned)
        check_choice(('rate', 'logit'), scale=scale)
        self.prior, self.rate = tuple(prior), rate
        self.strength, self.learned, self.scale = strength, learned, scale
        # Level by level, so that each rate is computed after its prior's; the rate of all stands
        # first.
        levels = _levels(self.prior)
        place = {view: number for number, view in enumerate([-1, *itertools.chain(*levels)])}
        ends = list(itertools.accumulate(len(level) for level in levels))
        self.levels = [slice(start, end) for start, end in zip([0, *ends], ends)]
        order = [view for level in levels for view in level]
        self.register_buffer('order', torch.tensor(order), persistent=False)
        expected = torch.tensor([place[self.prior[view]] for view in order])
        self.register_buffer('expected', expected, persistent=False)
        back = torch.tensor([place[view] for view in range(len(prior))])
        self.register_buffer('back', back, persistent=False)
        self.theta = torch.nn.Parameter(torch.empty(len(prior)), requires_grad=learned)
        self.norm = RunningNorm(2 * len(prior))
        self.reset_parameters()

    @property
    def out_channels(self) -> int:
        r"""The numbers that come out for a row."""
        return 2 * len(self.prior)

    def reset_parameters(self) -> None:
        # The inverse of softplus.
        torch.nn.init.constant_(self.theta, self.strength + math.log(-math.expm1(-self.strength)))
        self.norm.reset_parameters()

    def forward(self, counts: Tensor) -> Tensor:
        r"""
        Args:
            counts (torch.Tensor): Exposures and clicks of each view, shape :obj:`[B, V, 2]`.

        Raises:
            TypeError: If they are no numbers.
            ValueError: If the shape is another.
        """
        shares, prior = self._shares(counts)
        if self.scale == 'logit':
            shares, prior = shares.log(), prior.log()
            more = (shares[..., 0] - shares[..., 1]) - (prior[..., 0] - prior[..., 1])
        else:
            more = shares[..., 0] - prior[..., 0]
        return self.norm(torch.cat([counts[..., 0].log1p(), more], dim=1))

    def rates(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        r"""The shrunk rates, and what was expected, each of shape :obj:`[B, V]`."""
        shares, prior = self._shares(counts)
        return shares[..., 0], prior[..., 0]

    def _shares(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        r"""The shrunk rates and what is left to 1, and what was expected of both, each of shape
        :obj:`[B, V, 2]`."""
        check_tensor(self, 'counts', counts, ('B', len(self.prior), 2), 'numbers')
        seen, clicked = counts.index_select(1, self.order).to(self.theta.dtype).unbind(-1)
        parts, seen = torch.stack([clicked, seen - clicked], dim=-1), seen.unsqueeze(-1)
        strength = F.softplus(self.theta)[self.order].unsqueeze(-1)
        whole = torch.ones_like(seen[:, :1])
        shares = torch.cat([self.rate * whole, (1 - self.rate) * whole], dim=-1)
        priors = []
        for here in self.levels:
            prior = shares.index_select(1, self.expected[here])
            share = (parts[:, here] + strength[here] * prior) / (seen[:, here] + strength[here])
            shares = torch.cat([shares, share], dim=1)
            priors.append(prior)
        expected = torch.cat(priors, dim=1)
        return shares.index_select(1, self.back), expected.index_select(1, self.back - 1)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({len(self.prior)}, strength={self.strength}, '
            f'learned={self.learned}, scale={self.scale!r})'
        )


def _levels(prior: Sequence[int]) -> list[list[int]]:
    r"""The views without a prior view, those whose prior is among these, and so on."""
    levels, left, done = [], list(range(len(prior))), {-1}
    while left:
        level = [view for view in left if prior[view] in done]
        if not level:
            raise ValueError(f"'prior' goes round in a circle, from {left[0]} to {prior[left[0]]}.")
        levels.append(level)
        done.update(level)
        left = [view for view in left if view not in done]
    return levels
