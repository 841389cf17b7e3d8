r"""What the text of a fitted transform says of what it was fitted on."""

import hashlib
from collections.abc import Iterable

from torch import Tensor


def fitted(tensors: Iterable[Tensor], text: str = '') -> str:
    r"""Tells fits on different data apart, as PyG's caches know a transform by its text.

    Args:
        tensors: What was learned.
        text: What else was. (default: :obj:`""`)
    """
    digest = hashlib.sha1(text.encode())
    for tensor in tensors:
        digest.update(tensor.numpy().tobytes())
    return f'fitted={digest.hexdigest()[:8]!r}'
