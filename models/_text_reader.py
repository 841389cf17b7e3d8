from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn.inits import reset

from mag.schema import Tokens


class Reading(NamedTuple):
    r"""The text of :math:`B` rows, read."""

    #: What a row's sentences say, shape :obj:`[B, C]`.
    summary: Tensor
    #: The states of all their tokens, shape :obj:`[B, L, C]`.
    states: Tensor
    #: Where there is a token, shape :obj:`[B, L]`.
    is_token: Tensor


class MaskedTokens(NamedTuple):
    r"""The :math:`K` tokens that were masked in :math:`B` rows."""

    #: The row of each, shape :obj:`[K]`.
    row: Tensor
    #: Its state in the masked sentence, shape :obj:`[K, C]`.
    state: Tensor
    #: The token that was there, shape :obj:`[K]`.
    target: Tensor


class _Sentences(NamedTuple):
    r"""Sentences, shape :obj:`[N, L]` each."""

    token: Tensor
    is_token: Tensor
    #: The field whose value a token is part of, :obj:`-1` for none.
    field: Tensor


class TextReader(torch.nn.Module):
    r"""Writes the sentences of rows from the pieces of their users, items and contexts, and has an
    encoder read them.

    Args:
        tokens (Tokens): The pieces.
        encoder (torch.nn.Module): From tokens and where there are some, both :obj:`[N, L]`, to
            states :obj:`[N, L, C]`.
        sentence (str): :obj:`"row"` for one sentence a row, :obj:`"node"` for one of its user, one
            of its item and one of each context, of which those of a batch are read once.
    """

    # Any module with what is read here.
    encoder: Any
    _kept_version: int | None

    def __init__(self, tokens: Tokens, encoder: torch.nn.Module, sentence: str) -> None:
        super().__init__()
        self.encoder, self.sentence = encoder, sentence
        self.channels: int = self.encoder.channels
        self.max_length: int = self.encoder.max_length
        self.special = dict(tokens.special)
        self.columns = [source.column for source in tokens.sources]
        sources = range(len(tokens.sources))
        # The sources that each sentence of a row is joined from.
        self.parts = [tuple(sources)] if sentence == 'row' else [(source,) for source in sources]
        self.merge = None
        if sentence == 'node':
            # Beside what each says, what the first two, user and item, have in common.
            self.merge = torch.nn.Linear((len(self.parts) + 1) * self.channels, self.channels)
        for place, source in enumerate(tokens.sources):
            # Of a type that processes can send each other.
            for name, table in (('token', source.token), ('field', source.field)):
                self.register_buffer(f'{name}_{place}', table.int(), persistent=False)
            self.register_buffer(f'kept_{place}', None, persistent=False)
        self.fields = self._fields(tokens)
        self._kept_version = None
        self.register_load_state_dict_post_hook(_forget)

    def _fields(self, tokens: Tokens) -> list[list[int]]:
        r"""The fields whose values each sentence of a row may hold."""
        found = []
        for part in self.parts:
            fields = [tokens.sources[source].field.unique() for source in part]
            found.append([field for field in torch.cat(fields).unique().tolist() if field >= 0])
        return found

    def reset_parameters(self) -> None:
        reset(self.encoder)
        reset(self.merge)

    def train(self, mode: bool = True) -> 'TextReader':
        if mode:
            self.forget()
        return super().train(mode)

    def grow(self, tokens: Tokens) -> None:
        r"""Takes the pieces of a log that grew, which tells its former values as before.

        Raises:
            ValueError: If it does not.
        """
        for place, source in enumerate(tokens.sources):
            known = getattr(self, f'token_{place}').cpu()
            given = source.token[: len(known)]
            width = max(known.size(1), given.size(1))
            tables = [F.pad(x, (0, width - x.size(1)), value=-1) for x in (known, given)]
            if tokens.special != self.special or not torch.equal(*tables):
                raise ValueError(
                    f'FLIP was built for another text of {tokens.fields[source.column]!r}: give '
                    f'FieldText the tokenizer of the one that was applied before the log grew.'
                )
        for place, source in enumerate(tokens.sources):
            for name, table in (('token', source.token), ('field', source.field)):
                device = getattr(self, f'{name}_{place}').device
                setattr(self, f'{name}_{place}', table.int().to(device))
        self.fields = self._fields(tokens)
        self.forget()

    def forget(self) -> None:
        r"""Drops what :meth:`precompute` kept."""
        self._kept_version = None
        for place in range(len(self.columns)):
            setattr(self, f'kept_{place}', None)

    @torch.no_grad()
    def precompute(self, batch_size: int) -> None:
        r"""Reads the sentences of all users, items and contexts, so many at a time, and keeps what
        they say."""
        for place in range(len(self.columns)):
            token = getattr(self, f'token_{place}')
            nodes = torch.arange(len(token), device=token.device).unsqueeze(1)
            said = [
                self._read_first(self._write((place,), part)) for part in nodes.split(batch_size)
            ]
            setattr(self, f'kept_{place}', torch.cat(said))
        self._kept_version = self._weights_version()

    def is_precomputed(self) -> bool:
        r"""Whether all sentences were read, and by the weights of now."""
        if self._kept_version is None or torch.compiler.is_compiling():
            return self._kept_version is not None
        return self._kept_version == self._weights_version()

    def __getstate__(self) -> dict[str, Any]:
        # The weights of a copy count their changes anew.
        return {**self.__dict__, '_kept_version': 0 if self.is_precomputed() else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self._kept_version is not None:
            self._kept_version = self._weights_version()

    def _weights_version(self) -> int:
        # Each step of an optimizer adds to it, unless it is fused.
        weights = self.encoder.parameters()
        return sum(weight._version for weight in weights if not weight.is_inference())

    def forward(self, known: Tensor) -> Tensor:
        r"""What the sentences of rows say, shape :obj:`[B, C]`, from the ids of all fields, counted
        from 1, shape :obj:`[B, F]`."""
        if self.is_precomputed():
            return self._merged(
                [
                    getattr(self, f'kept_{place}').index_select(0, known[:, column])
                    for place, column in enumerate(self.columns)
                ]
            )
        summaries = []
        for part in self.parts:
            keys, row = self._distinct(self._keys(part, known))
            said = self._read_first(self._write(part, keys))
            summaries.append(said.index_select(0, row))
        return self._merged(summaries)

    def read(self, known: Tensor, masked: Tensor | None = None) -> Reading:
        r"""The same with all that pre-training reads.

        Args:
            known: The ids of all fields, counted from 1, shape :obj:`[B, F]`.
            masked: Fields whose values are masked in all rows, booleans of shape :obj:`[F]`.
        """
        states, is_token = [], []
        for part in self.parts:
            keys, row = self._distinct(self._keys(part, known))
            sentences = self._write(part, keys)
            if masked is not None:
                hidden = _is_masked(sentences, masked.expand(len(keys), -1))
                sentences = self._mask(sentences, hidden)
            states.append(self._read(sentences).index_select(0, row))
            is_token.append(sentences.is_token.index_select(0, row))
        summary = self._merged([state[:, 0] for state in states])
        return Reading(summary, torch.cat(states, 1), torch.cat(is_token, 1))

    def told(self, known: Tensor) -> Tensor:
        r"""The fields of each row that have tokens, none of which was cut off, shape
        :obj:`[B, F]`."""
        told = torch.zeros(len(known), known.size(1) + 1, dtype=torch.bool, device=known.device)
        for part in self.parts:
            keys, row = self._distinct(self._keys(part, known))
            of_token = self._write(part, keys).field.long() + 1
            told |= told.new_zeros(len(keys), told.size(1)).scatter_(1, of_token, True)[row]
        return told[:, 1:]

    def draw(self, known: Tensor, generator: torch.Generator | None) -> Tensor:
        r"""A number from 0 to 1 for each field of each row, by which fields are masked, shape
        :obj:`[B, F]`. Rows that share a sentence share those of its fields, so that it is read in
        one form a batch; each row alone has numbers that are independent."""
        if self.sentence == 'row':
            return torch.rand(known.shape, device=known.device, generator=generator)
        drawn = torch.zeros(known.shape, device=known.device)
        for part, fields in zip(self.parts, self.fields, strict=True):
            keys, row = self._distinct(self._keys(part, known))
            shape = (len(keys), len(fields))
            drawn[:, fields] = torch.rand(shape, device=known.device, generator=generator)[row]
        return drawn

    def read_masked(self, known: Tensor, masked: Tensor) -> MaskedTokens:
        r"""The tokens of masked fields, as they are read in sentences where all of these are
        masked. A sentence that rows share is read once for each set of fields.

        Args:
            known: The ids of all fields, counted from 1, shape :obj:`[B, F]`.
            masked: Which fields are masked, booleans of shape :obj:`[B, F]`.
        """
        found = []
        for part, fields in zip(self.parts, self.fields, strict=True):
            of_part = masked[:, fields]
            rows = of_part.any(1).nonzero().view(-1)
            if rows.numel() == 0:
                continue
            keys = self._keys(part, known)
            keys, row = self._distinct(torch.cat([keys, of_part.long()], 1)[rows])
            chosen = torch.zeros(len(keys), masked.size(1), dtype=torch.bool, device=masked.device)
            chosen[:, fields] = keys[:, len(part) :].bool()
            sentences = self._write(part, keys[:, : len(part)])
            hidden = _is_masked(sentences, chosen)
            states = self._read(self._mask(sentences, hidden))
            entry, column = hidden.index_select(0, row).nonzero(as_tuple=True)
            place = row[entry] * hidden.size(1) + column
            state = states.flatten(0, 1).index_select(0, place)
            found.append((rows[entry], state, sentences.token.flatten()[place]))
        if not found:
            none = known.new_empty(0)
            weight = next(self.encoder.parameters())
            return MaskedTokens(none, weight.new_empty(0, self.channels), none)
        return MaskedTokens(*(torch.cat(column) for column in zip(*found, strict=True)))

    def _keys(self, part: tuple[int, ...], known: Tensor) -> Tensor:
        return known[:, [self.columns[source] for source in part]]

    def _distinct(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        r"""The distinct rows of a table, and which of them each row is. Those of whole rows are
        taken as they are, as few are alike."""
        if self.sentence == 'row' or torch.compiler.is_compiling():
            return keys, torch.arange(keys.size(0), device=keys.device)
        return keys.unique(dim=0, return_inverse=True)

    def _write(self, part: tuple[int, ...], keys: Tensor) -> _Sentences:
        r"""The sentences of such users, items and contexts, as long as the longest of them."""
        token, field = (
            torch.cat(
                [
                    getattr(self, f'{name}_{source}').index_select(0, keys[:, column])
                    for column, source in enumerate(part)
                ],
                dim=1,
            )
            for name in ('token', 'field')
        )
        is_piece = token >= 0
        if len(part) > 1:
            # The pieces of each sentence first, in their order.
            order = (~is_piece).to(torch.uint8).argsort(dim=1, stable=True)
            token, field = token.gather(1, order), field.gather(1, order)
        length = is_piece.sum(1)
        field = _without_cut(field, self.max_length - 2)
        most = min(self.max_length - 2, token.size(1))
        if not torch.compiler.is_compiling() and len(length) > 0:
            most = min(most, int(length.max()))
        length = length.clamp(max=most).unsqueeze(1)
        token = F.pad(token[:, :most], (1, 1), value=-1)
        token[:, 0] = self.special['cls']
        token = token.scatter(1, length + 1, self.special['sep'])
        is_token = token >= 0
        field = F.pad(field[:, :most], (1, 1), value=-1)
        return _Sentences(token.masked_fill(~is_token, self.special['pad']), is_token, field)

    def _mask(self, sentences: _Sentences, hidden: Tensor) -> _Sentences:
        return sentences._replace(token=sentences.token.masked_fill(hidden, self.special['mask']))

    def _read(self, sentences: _Sentences) -> Tensor:
        return self.encoder(sentences.token, sentences.is_token)

    def _read_first(self, sentences: _Sentences) -> Tensor:
        r"""What each sentence says, shape :obj:`[N, C]`."""
        # An encoder may have a faster way to it than by all states.
        if hasattr(self.encoder, 'first'):
            return self.encoder.first(sentences.token, sentences.is_token)
        return self._read(sentences)[:, 0]

    def _merged(self, summaries: list[Tensor]) -> Tensor:
        if self.merge is None:
            return summaries[0]
        user, item, *_ = summaries
        return self.merge(torch.cat([*summaries, user * item], dim=1))


def _without_cut(field: Tensor, most: int) -> Tensor:
    r"""What is left of the field where a sentence is cut belongs to none."""
    if field.size(1) <= most:
        return field
    cut = field[:, most - 1 : most]
    is_cut = (cut >= 0) & (cut == field[:, most : most + 1])
    return field.masked_fill(is_cut & (field == cut), -1)


def _is_masked(sentences: _Sentences, masked: Tensor) -> Tensor:
    r"""Which tokens are those of masked fields, booleans of shape :obj:`[N, F]`."""
    field = sentences.field.long()
    return masked.gather(1, field.clamp(min=0)) & (field >= 0)


def _forget(reader: TextReader, keys: object) -> None:
    reader.forget()
