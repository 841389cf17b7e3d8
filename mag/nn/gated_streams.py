from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_booleans, check_choice, check_integers, check_numbers, check_tensor

ACTIVATIONS = ('gelu', 'leaky_relu', 'mish', 'relu')


class GatedStreams(torch.nn.Module):
    r"""A layer of three streams, an ego and two views, of which the first gates the others, from
    the `"SimCEN: Simple Contrast-enhanced Network for CTR Prediction"
    <https://doi.org/10.1145/3664647.3681203>`_ paper (released code)

    .. math::
        [\mathbf{e} \Vert \mathbf{a} \Vert \mathbf{b}] = \mathbf{W} \mathbf{x} + \mathbf{c}, \qquad
        \mathbf{g} = \sigma(\mathbf{G} \mathbf{e} + \mathbf{h}) / \boldsymbol{\gamma}, \qquad
        \mathbf{a}' = (1 + \mathbf{g}) \odot \mathbf{a} + \mathbf{n}_a + \mathbf{a}_{\mathrm{in}},

    and :math:`\mathbf{b}'` likewise, with the views :math:`\mathbf{a}_{\mathrm{in}}` and
    :math:`\mathbf{b}_{\mathrm{in}}` of the input :math:`\mathbf{x}`. Each stream is then
    normalized, activated and dropped out by itself.

    The vector :math:`\mathbf{n}`, which the authors call a noise, is learned and the same for all
    rows: a bias. A normalization takes it away again. The temperature :math:`\boldsymbol{\gamma}`
    starts at 1 and is kept away from 0, by .001 on either side, since it divides.

    Args:
        in_channels (int): Size of the input.
        out_channels (int): Size :math:`3t` of the output.
        skip (bool, optional): If set to :obj:`False`, the views of the input are not added.
            (default: :obj:`True`)
        bias (bool, optional): If set to :obj:`False`, the bias :math:`\mathbf{n}` is not added. It
            is there all the same, without a gradient, as in the first layer of the released code,
            so that models have as many parameters. (default: :obj:`True`)
        batch_norm (bool, optional): If set to :obj:`False`, streams are not normalized.
            (default: :obj:`True`)
        activations (Sequence[str], optional): Those of ego, first and second view: each
            :obj:`"relu"`, :obj:`"leaky_relu"`, :obj:`"mish"` or :obj:`"gelu"`.
            (default: :obj:`("relu", "mish", "gelu")`)
        dropouts (Sequence[float], optional): The shares of ego, first and second view that are
            dropped in training. (default: :obj:`(0.0, 0.0, 0.0)`)

    Shapes:
        - **input:** :math:`(B, C)`
        - **output:** :math:`(B, 3t)`, the ego, the first and the second view

    Raises:
        TypeError: If an argument has another type.
        ValueError: If the output is no three streams, or with :obj:`skip` of another size than the
            input, or an activation is unknown, or a share is none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        skip: bool = True,
        bias: bool = True,
        batch_norm: bool = True,
        activations: Sequence[str] = ('relu', 'mish', 'gelu'),
        dropouts: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> None:
        super().__init__()
        check_integers(1, in_channels=in_channels, out_channels=out_channels)
        check_booleans(skip=skip, bias=bias, batch_norm=batch_norm)
        if out_channels % 3 != 0:
            raise ValueError(
                f"'out_channels' must be a multiple of 3, for an ego and two views, but got "
                f'{out_channels}.'
            )
        if skip and in_channels != out_channels:
            raise ValueError(
                f"GatedStreams with 'skip' adds views of the input, but has 'in_channels' "
                f"{in_channels} and 'out_channels' {out_channels}."
            )
        check_streams(activations, dropouts)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.skip, self.has_bias = skip, bias
        self.activations, self.dropouts = tuple(activations), tuple(dropouts)
        size = out_channels // 3
        self.lin = torch.nn.Linear(in_channels, out_channels)
        self.lin_gate = torch.nn.Linear(size, size)
        self.temperature = torch.nn.Parameter(torch.empty(size))
        # A parameter that waits for a gradient that never comes stops distributed training.
        self.bias = torch.nn.Parameter(torch.empty(2, size), requires_grad=bias)
        # That of three streams is that of all their channels.
        self.norm = torch.nn.BatchNorm1d(out_channels) if batch_norm else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for lin in (self.lin, self.lin_gate):
            torch.nn.init.xavier_normal_(lin.weight)
            torch.nn.init.zeros_(lin.bias)
        torch.nn.init.ones_(self.temperature)
        torch.nn.init.uniform_(self.bias)
        if self.norm is not None:
            self.norm.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        r"""
        Args:
            x (torch.Tensor): Shape :obj:`[B, in_channels]`.

        Raises:
            TypeError: If it holds no floats.
            ValueError: If the shape is another, or statistics of the batch are needed and it has
                one row.
        """
        check_tensor(self, 'x', x, ('B', self.in_channels), 'floats')
        if self.training and self.norm is not None and x.size(0) == 1:
            raise ValueError(
                'GatedStreams takes its statistics from the batch in training and needs two rows '
                "or more, but got one: pass batch_norm=False, or set it to 'eval()'."
            )
        size = self.lin_gate.in_features
        ego, views = self.lin(x).split([size, 2 * size], dim=1)
        temperature = self.temperature.abs().clamp(min=1e-3).copysign(self.temperature)
        gate = 1 + self.lin_gate(ego).sigmoid() / temperature
        views = views.unflatten(1, (2, size)) * gate.unsqueeze(1)
        if self.has_bias:
            views = views + self.bias
        if self.skip:
            views = views + x[:, size:].unflatten(1, (2, size))
        out = torch.cat([ego, views.flatten(1)], dim=1)
        if self.norm is not None:
            out = self.norm(out)
        streams = [
            F.dropout(getattr(F, name)(stream), share, self.training)
            for stream, name, share in zip(
                out.chunk(3, dim=1), self.activations, self.dropouts, strict=True
            )
        ]
        return torch.cat(streams, dim=1)

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, '
            f'skip={self.skip}, bias={self.has_bias}, batch_norm={self.norm is not None}, '
            f'activations={self.activations}, dropouts={self.dropouts})'
        )


def check_streams(activations: Any, dropouts: Any) -> None:
    r"""Raises unless there are activations and shares to drop of an ego and two views."""
    for name, value in (('activations', activations), ('dropouts', dropouts)):
        sentence = f"'{name}' must be three, for the ego and two views, but got {value!r}."
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(sentence)
        if len(value) != 3:
            raise ValueError(sentence)
    check_choice(ACTIVATIONS, **{f'activations[{i}]': of for i, of in enumerate(activations)})
    check_numbers('[0, 1)', **{f'dropouts[{i}]': share for i, share in enumerate(dropouts)})
