from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_integers, check_numbers
from mag.nn._compact import compact, spread

# Sentences that are encoded at once: the activations of more no longer fit into the blocks of
# memory that the allocator keeps, whose pages then come anew in each step.
_CHUNK = 256


class _Layout(NamedTuple):
    r"""Where the tokens of a batch are, of whose states there is one row each."""

    #: How many sentences there are, and how long they are.
    shape: tuple[int, int]
    #: The place of each token among all of the batch, shape :obj:`[P]`; :obj:`None` if the rows
    #: are all of them.
    place: Tensor | None
    #: What may be attended to, shape :obj:`[B, 1, 1, T]`.
    mask: Tensor
    #: The row of the first token of each sentence, shape :obj:`[B]`.
    first: Tensor

    def pad(self, x: Tensor) -> Tensor:
        r"""The states of all places, shape :obj:`[B, T, C]`."""
        if self.place is not None:
            x = x.new_zeros(self.mask.numel(), x.size(1)).index_copy(0, self.place, x)
        return x.view(*self.shape, x.size(1))

    def pack(self, x: Tensor) -> Tensor:
        r"""The states of tokens, shape :obj:`[P, C]`."""
        x = x.flatten(0, 1)
        return x if self.place is None else x.index_select(0, self.place)


class TextEncoder(torch.nn.Module):
    r"""A small transformer that is trained from scratch: the encoder of the `"Attention Is All You
    Need" <https://arxiv.org/abs/1706.03762>`_ paper, as in `"BERT"
    <https://arxiv.org/abs/1810.04805>`_

    .. math::
        \mathbf{H}' &= \mathrm{LN} \left( \mathbf{H} + \mathrm{MultiHead}(\mathbf{H}) \right) \\
        \mathbf{H} &= \mathrm{LN} \left( \mathbf{H}' +
        \mathbf{W}_2 \, \mathrm{GELU}(\mathbf{W}_1 \mathbf{H}') \right),

    from the sum of an embedding of each token and one of its position, normalized. Positions count
    tokens alone, so that padding may stand anywhere.

    It gives what :class:`torch.nn.TransformerEncoder` gives, in less time on a CPU: all but the
    attention is computed for tokens and not for padding, and :meth:`first` computes of the last
    layer what the first token reads. Dropout is applied to what is added to a state, and not to
    attention, which a CPU would compute in a slower way.

    Args:
        num_tokens (int): The size of the vocabulary.
        channels (int, optional): The size of a state. (default: :obj:`128`)
        num_layers (int, optional): The number of layers. (default: :obj:`2`)
        num_heads (int, optional): The number of heads of attention. (default: :obj:`4`)
        hidden_channels (int, optional): The size between the two linear maps of a layer.
            (default: :obj:`512`)
        max_length (int, optional): The most tokens of a sentence. (default: :obj:`512`)
        dropout (float, optional): The dropout probability. (default: :obj:`0.1`)

    Shapes:
        - **input:** tokens :math:`(B, L)` and which of them are no padding :math:`(B, L)`
        - **output:** states :math:`(B, L, C)`

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of range, or :obj:`channels` is no multiple of
            :obj:`num_heads`.
    """

    def __init__(
        self,
        num_tokens: int,
        channels: int = 128,
        num_layers: int = 2,
        num_heads: int = 4,
        hidden_channels: int = 512,
        max_length: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_integers(
            1,
            num_tokens=num_tokens,
            channels=channels,
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_channels=hidden_channels,
            max_length=max_length,
        )
        check_numbers('[0, 1)', dropout=dropout)
        if channels % num_heads != 0:
            raise ValueError(
                f"'channels' must be a multiple of 'num_heads', which is {num_heads}, but got "
                f'{channels}.'
            )
        self.num_tokens, self.channels, self.max_length = num_tokens, channels, max_length
        self.token = torch.nn.Embedding(num_tokens, channels)
        self.position = torch.nn.Parameter(torch.empty(max_length, channels))
        self.norm = torch.nn.LayerNorm(channels)
        self.dropout = torch.nn.Dropout(dropout)
        self.layers = torch.nn.ModuleList(
            _Layer(channels, num_heads, hidden_channels, dropout) for _ in range(num_layers)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Embedding)):
                # That of BERT.
                torch.nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.zeros_(module.bias)
            if isinstance(module, torch.nn.LayerNorm):
                module.reset_parameters()
        torch.nn.init.normal_(self.position, std=0.02)

    def forward(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        r"""
        Args:
            tokens (torch.Tensor): The tokens of each sentence, shape :obj:`[B, L]`.
            is_token (torch.Tensor): Which of them are no padding, shape :obj:`[B, L]`.

        Returns:
            The state of each token, shape :obj:`[B, L, channels]`, 0 of padding.

        Raises:
            IndexError: If there is no such token.
            TypeError: If :obj:`tokens` are no integers or :obj:`is_token` no booleans.
            ValueError: If a shape is another, or a sentence longer than :obj:`max_length`.
        """
        return self._in_chunks(tokens, is_token, False)

    def first(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        r"""The state of the first token of each sentence, such as :obj:`[CLS]`, shape
        :obj:`[B, channels]`; in less time than all states take.

        Args:
            tokens (torch.Tensor): As above, as are the errors.
            is_token (torch.Tensor): As above.
        """
        return self._in_chunks(tokens, is_token, True)

    def _in_chunks(self, tokens: Tensor, is_token: Tensor, is_first: bool) -> Tensor:
        if torch.compiler.is_compiling() or tokens.device.type != 'cpu':
            return self._encode(tokens, is_token, is_first)
        chunks = zip(tokens.split(_CHUNK), is_token.split(_CHUNK))
        return torch.cat([self._encode(*chunk, is_first) for chunk in chunks])

    def _encode(self, tokens: Tensor, is_token: Tensor, is_first: bool) -> Tensor:
        short, is_short, order = compact(
            type(self).__name__, tokens, is_token, self.num_tokens, self.max_length
        )
        num_sentences, length = short.shape
        place = None
        first = torch.arange(num_sentences, device=short.device) * length
        # How many tokens there are is not known to what is compiled.
        if not torch.compiler.is_compiling():
            place = is_short.flatten().nonzero().view(-1)
            num = is_short.sum(1)
            first = num.cumsum(0) - num
        layout = _Layout((num_sentences, length), place, is_short[:, None, None], first)
        x = layout.pack(self.token(short) + self.position[:length])
        x = self.dropout(self.norm(x))
        for layer in self.layers[:-1]:
            x = layer(x, layout)
        x = self.layers[-1](x, layout, is_first)
        return x if is_first else spread(layout.pad(x), is_token, order)

    def extra_repr(self) -> str:
        return f'max_length={self.max_length}'


class _Layer(torch.nn.Module):
    def __init__(self, channels: int, num_heads: int, hidden_channels: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.lin_query = torch.nn.Linear(channels, channels)
        self.lin_key_value = torch.nn.Linear(channels, 2 * channels)
        self.lin_out = torch.nn.Linear(channels, channels)
        self.norm_attention = torch.nn.LayerNorm(channels)
        self.lin_in = torch.nn.Linear(channels, hidden_channels)
        self.lin_hidden = torch.nn.Linear(hidden_channels, channels)
        self.norm_hidden = torch.nn.LayerNorm(channels)
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, x: Tensor, layout: _Layout, is_first: bool = False) -> Tensor:
        r"""The states of all tokens, or of the first of each sentence."""
        key, value = layout.pad(self.lin_key_value(x)).chunk(2, dim=2)
        if is_first:
            x = x.index_select(0, layout.first)
            query = self.lin_query(x).unsqueeze(1)
        else:
            query = layout.pad(self.lin_query(x))
        query, key, value = (
            y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in (query, key, value)
        )
        read = F.scaled_dot_product_attention(query, key, value, layout.mask)
        read = read.transpose(1, 2).flatten(2)
        read = read.squeeze(1) if is_first else layout.pack(read)
        x = self.norm_attention(x + self.dropout(self.lin_out(read)))
        return self.norm_hidden(x + self.dropout(self.lin_hidden(F.gelu(self.lin_in(x)))))
