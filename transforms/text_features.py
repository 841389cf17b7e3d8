import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_unicode, check_values
from mag.schema import require


@functional_transform('text_features')
class TextFeatures(BaseTransform):
    r"""Adds features of what is written about each item, :obj:`data['item'].x_text`, float32 of
    shape :obj:`[num_items, D]` (functional name: :obj:`text_features`).

    The encoder is any function from texts to rows. That of a small model of the package
    :obj:`sentence-transformers`, which is not installed with mag, gives 384 features:

    .. code-block:: python

        dataset = MovieLens('data/movielens', '100k')
        encode = SentenceTransformer('all-MiniLM-L6-v2').encode
        data = TextFeatures(dataset.texts, encode)(dataset[0])

    Args:
        texts (Iterable[str]): The text of every item, in node order.
        encode (callable): From the list of texts to a :class:`numpy.ndarray` or
            :class:`torch.Tensor` of shape :obj:`[num_items, D]`. It is called once, here.

    Raises:
        TypeError: If :obj:`texts` holds something else, :obj:`encode` cannot be called, or it
            returns no numbers.
        ValueError: If a text holds a lone surrogate, what :obj:`encode` returns is not of that
            shape or not finite, or, when called, there is not one text an item.
    """

    def __init__(
        self, texts: Iterable[str], encode: Callable[[list[str]], np.ndarray | Tensor]
    ) -> None:
        if not isinstance(texts, Iterable) or isinstance(texts, str):
            raise TypeError(f"'texts' must be a sequence of a str an item, but got {texts!r}.")
        self.texts = list(texts)
        for text in self.texts:
            if not isinstance(text, str):
                raise TypeError(f"'texts' must be a sequence of a str an item, but holds {text!r}.")
        check_unicode('texts', self.texts, 'item')
        if not callable(encode):
            raise TypeError(
                f"'encode' must be a function of a list of texts, such as "
                f"SentenceTransformer('all-MiniLM-L6-v2').encode, but got {encode!r}."
            )
        self.encode = encode
        self.x = _to_features(encode(self.texts), len(self.texts))

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'TextFeatures')
        num_items = data['item'].num_nodes
        if num_items != len(self.texts):
            raise ValueError(
                f"'texts' must be one an item of the data, {num_items}, but got {len(self.texts)}."
            )
        data['item'].x_text = self.x
        return data

    def __repr__(self) -> str:
        # All texts would be too long to read, and their number too little to tell them apart.
        checksum = zlib.crc32('\0'.join(self.texts).encode())
        return (
            f'{self.__class__.__name__}({len(self.texts)} texts with the checksum {checksum:08x}, '
            f'encode={self.encode!r})'
        )


def _to_features(x: Any, num_texts: int) -> Tensor:
    if isinstance(x, np.ndarray) and x.dtype.kind in 'iuf':
        x = torch.as_tensor(x)
    if not isinstance(x, Tensor) or x.is_complex() or x.dtype == torch.bool:
        raise TypeError(
            f"'encode' must return a NumPy array or a tensor of numbers, but returned "
            f'{type(x).__name__} of {getattr(x, "dtype", "other things")}.'
        )
    if x.dim() != 2 or x.size(0) != num_texts or x.size(1) == 0:
        raise ValueError(
            f"'encode' must return features of shape [{num_texts}, D] for {num_texts} texts, but "
            f'returned {list(x.shape)}.'
        )
    x = x.detach().cpu().float()
    check_values('TextFeatures', 'encode(texts)', x, x.isfinite(), 'finite float32')
    return x
