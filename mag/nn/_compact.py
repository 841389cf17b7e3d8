r"""Sentences whose tokens stand apart, and their states."""

import torch
from torch import Tensor

from mag.checks import check_ids, check_tensor


def compact(
    caller: str, tokens: Tensor, is_token: Tensor, num_tokens: int, max_length: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Moves the tokens of each sentence to its front, and cuts off the padding behind the longest
    of them; what is compiled has a fixed length, and keeps it.

    Args:
        caller: Whose name messages begin with.
        tokens: Shape :obj:`[B, L]`.
        is_token: Which of them are no padding, shape :obj:`[B, L]`.
        num_tokens: The size of the vocabulary.
        max_length: The most tokens of a sentence.

    Returns:
        The tokens, 0 for padding, which are of them, and from where they came, each of shape
        :obj:`[B, T]`. A sentence without tokens is taken for one of the token 0, as attention has
        to find something.

    Raises:
        IndexError: If there is no such token.
        TypeError: If :obj:`tokens` are no integers or :obj:`is_token` no booleans.
        ValueError: If a shape is another, or a sentence is longer.
    """
    check_tensor(caller, 'tokens', tokens, ('B', 'L'), 'integers')
    check_tensor(caller, 'is_token', is_token, tokens.shape, torch.bool)
    check_ids(caller, "ids of 'tokens'", tokens, num_tokens, -1)
    order = is_token.logical_not().to(torch.uint8).argsort(dim=1, stable=True)
    if not torch.compiler.is_compiling() and len(order) > 0:
        order = order[:, : max(int(is_token.sum(1).max()), 1)]
    if order.size(1) > max_length:
        raise ValueError(
            f"{caller} expects sentences of at most 'max_length' tokens, {max_length}, but got one "
            f'of {order.size(1)}.'
        )
    is_token = is_token.gather(1, order)
    tokens = tokens.gather(1, order).long().where(is_token, 0)
    is_first = torch.arange(order.size(1), device=order.device) == 0
    return tokens, is_token | is_first, order


def spread(states: Tensor, is_token: Tensor, order: Tensor) -> Tensor:
    r"""Moves states back to where their tokens came from; that of padding is 0.

    Args:
        states: Shape :obj:`[B, T, C]`.
        is_token: Which tokens are no padding, shape :obj:`[B, L]`.
        order: From where they came, shape :obj:`[B, T]`.
    """
    places = order.unsqueeze(2).expand_as(states)
    out = states.new_zeros(*is_token.shape, states.size(2)).scatter(1, places, states)
    return out.masked_fill(is_token.logical_not().unsqueeze(2), 0)
