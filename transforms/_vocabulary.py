r"""What texts are cut into: a tokenizer that is given, or a WordPiece that is trained."""

import os
import os.path as osp
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# What BERT and RoBERTa call the tokens that stand for no text.
_SPECIAL = {
    'cls': ('[CLS]', '<s>'),
    'sep': ('[SEP]', '</s>'),
    'mask': ('[MASK]', '<mask>'),
    'pad': ('[PAD]', '<pad>'),
}
_TRAINED_SPECIAL = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]')
# Texts that are tokenized at once.
_CHUNK = 1 << 14


class Pieces(NamedTuple):
    r"""The pieces of :math:`N` texts, one text after the other."""

    #: Shape :obj:`[P]`.
    token: Tensor
    #: Whether each is part of the value, shape :obj:`[P]`.
    is_value: Tensor
    #: How many each text has, shape :obj:`[N]`.
    length: Tensor


class Vocabulary(NamedTuple):
    r"""A tokenizer that reads every text as text, and adds nothing to it."""

    tokenizer: Any
    #: The ids of the tokens that stand for no text.
    special: dict[str, int]

    @classmethod
    def of(cls, tokenizer: Any) -> 'Vocabulary':
        r"""That of a tokenizer, which stays as it was.

        Args:
            tokenizer: A :class:`tokenizers.Tokenizer`, a fast tokenizer of :obj:`transformers`, or
                the path of a :obj:`tokenizer.json` or of its folder.

        Raises:
            FileNotFoundError: If there is no such file.
            ModuleNotFoundError: If :obj:`tokenizers` is not installed.
            TypeError: If it is something else.
            ValueError: If the file holds no tokenizer, or this lacks one of the tokens.
        """
        tokenizers = _import_tokenizers()
        found = tokenizer
        if isinstance(found, (str, os.PathLike)):
            path = osp.join(found, 'tokenizer.json') if osp.isdir(found) else os.fspath(found)
            if not osp.exists(path):
                raise FileNotFoundError(
                    f"'tokenizer' must be the path of a tokenizer.json or of its folder, but there "
                    f'is no file {path!r}.'
                )
            try:
                found = tokenizers.Tokenizer.from_file(path)
            # The library raises nothing narrower.
            except Exception as error:
                raise ValueError(f'{path!r} holds no tokenizer ({error}).') from error
        found = getattr(found, 'backend_tokenizer', found)
        if not isinstance(found, tokenizers.Tokenizer):
            raise TypeError(
                f"'tokenizer' must be a tokenizers.Tokenizer, a fast tokenizer of transformers or "
                f'the path of a tokenizer.json, but got {type(tokenizer).__name__}.'
            )
        special = {}
        for name, words in _SPECIAL.items():
            named = (*words, getattr(tokenizer, f'{name}_token', None))
            ids = [found.token_to_id(word) for word in named if isinstance(word, str)]
            ids = [number for number in ids if number is not None]
            if not ids:
                raise ValueError(
                    f"'tokenizer' must have the token {' or '.join(words)}, but has none of "
                    f'that name.'
                )
            special[name] = ids[-1]
        return cls.from_text(found.to_str(), special)

    @classmethod
    def from_text(cls, tokenizer: str, special: Mapping[str, int]) -> 'Vocabulary':
        r"""That of a tokenizer as JSON, and the ids of its tokens that stand for no text."""
        found = _import_tokenizers().Tokenizer.from_str(tokenizer)
        found.no_padding()
        found.no_truncation()
        return cls(found, dict(special))

    @classmethod
    def trained(cls, texts: Iterable[str], size: int) -> 'Vocabulary':
        r"""That of a WordPiece which is trained on texts, with the same result each time.

        Args:
            texts: The texts, with as many times a word as it counts.
            size: The most tokens it has.
        """
        tokenizers = _import_tokenizers()
        normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        texts = [normalizer.normalize_str(text) for text in texts]
        counts = Counter(chain.from_iterable(texts))
        counted = sorted((-count, char) for char, count in counts.items() if not char.isspace())
        # Where a script has thousands of characters, rare ones leave room for words.
        most = (size - len(_TRAINED_SPECIAL)) // 4
        chars = sorted(char for _, char in counted[:most])
        rare = {ord(char): ' ' for _, char in counted[most:]}
        if rare:
            texts = [text.translate(rare) for text in texts]
        # The trainer numbers characters within words in the order of a hash table, which is another
        # in each process, and settles ties by these numbers, unless they are given.
        known = [*_TRAINED_SPECIAL, *chars, *(f'##{char}' for char in chars)]
        trainer = tokenizers.trainers.WordPieceTrainer(
            vocab_size=size, special_tokens=known, show_progress=False
        )
        learned = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token='[UNK]'))
        learned.pre_tokenizer = pre_tokenizer
        learned.train_from_iterator(texts, trainer)
        words = tokenizers.models.WordPiece(learned.get_vocab(), unk_token='[UNK]')
        tokenizer = tokenizers.Tokenizer(words)
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizer
        tokenizer.decoder = tokenizers.decoders.WordPiece()
        tokenizer.add_special_tokens(list(_TRAINED_SPECIAL))
        return cls.of(tokenizer)

    def encode(self, before: str, values: Sequence[str], after: str) -> Pieces:
        r"""The pieces of values between the same words; an empty value has none, with no words.

        Args:
            before: What stands before a value.
            values: The values.
            after: What stands after it.
        """
        # What looks like a special token is a text.
        self.tokenizer.encode_special_tokens = True
        # Some tokenizers read a word that follows a blank in another way.
        start = len(before) + 1
        parts = []
        for first in range(0, len(values), _CHUNK):
            chunk = values[first : first + _CHUNK]
            encodings = self.tokenizer.encode_batch(
                [f' {before}{value}{after}' if value else '' for value in chunk],
                add_special_tokens=False,
            )
            length = np.array([len(encoding) for encoding in encodings])
            number = int(length.sum())
            ids = chain.from_iterable(encoding.ids for encoding in encodings)
            token = np.fromiter(ids, np.int32, number)
            offsets = chain.from_iterable(encoding.offsets for encoding in encodings)
            place = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * number).reshape(-1, 2)
            row = np.repeat(np.arange(len(chunk)), length)
            end = start + np.array([len(value) for value in chunk])[row]
            is_value = (place[:, 1] > start) & (place[:, 0] < end)
            # A tokenizer whose words are found in a list may find these, too.
            is_text = ~np.isin(token, list(self.special.values()))
            length = np.bincount(row[is_text], minlength=len(chunk))
            parts.append(
                Pieces(*map(torch.from_numpy, (token[is_text], is_value[is_text], length)))
            )
        if not parts:
            return Pieces(torch.empty(0).int(), torch.empty(0).bool(), torch.empty(0).long())
        return Pieces(*map(torch.cat, zip(*parts)))


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FieldText needs tokenizers, which the extra 'text' installs: "
            "pip install 'pyg-mag[text]'."
        ) from error
    return tokenizers
