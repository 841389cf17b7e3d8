from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn.inits import reset

from mag.checks import check_booleans, check_choice, check_integers, check_numbers, check_tensor
from mag.lineage import remember_ids
from mag.loader import ExposureBatch, ExposureFeatures, JoinedBatch
from mag.logits import Logits, as_logits
from mag.losses import gather_rows, instance_contrast, masked_token_loss
from mag.models._batch import exposure_batch, labels
from mag.models._field_embedding import FieldEmbedding, check_fields
from mag.models._growth import check_grown, grown_fields
from mag.models._masked_ids import MaskedIds
from mag.models._text_reader import TextReader
from mag.nn import DeepCross, ProjectionHead, TextEncoder
from mag.nn.id_embedding import all_rows
from mag.schema import Tokens, tokens

_LOSSES = ('instance_contrast', 'masked_id', 'masked_token')

_STD = 1e-4
_DROPOUT = 0.2
_NUM_PROJECTED = 128
# The share of the fields of a row that are masked.
_MASKED = 0.15
_ROWS_AT_ONCE = 65_536


class FLIP(torch.nn.Module):
    r"""The click model of two encoders, one of ids and one of the same row as text, from the
    `"FLIP: Fine-grained Alignment between ID-based Models and Pretrained Language Models for CTR
    Prediction" <https://arxiv.org/abs/2310.19453>`_ paper; where the paper leaves something open,
    as released.

    Before it learns clicks, each of the two is taught what the other knows, by
    :class:`~mag.training.AlignmentTask`: which text belongs to which ids
    (:func:`~mag.losses.instance_contrast`), the ids of masked fields from the text
    (:func:`~mag.losses.masked_id_loss`), and the words of masked fields from the ids
    (:func:`~mag.losses.masked_token_loss`). Then both predict clicks

    .. math::
        \hat{y} = \sigma \left( \alpha \, l_{\mathrm{ids}} + (1 - \alpha) \, l_{\mathrm{text}} + b
        \right), \qquad l_{\mathrm{ids}} = \sum_f w_{x_f} + \mathbf{w}^{\top}
        \mathbf{h}_{\mathrm{ids}} + b_{\mathrm{ids}}, \quad l_{\mathrm{text}} = \mathbf{v}^{\top}
        \mathbf{h}_{\mathrm{text}} + b_{\mathrm{text}},

    with one number :math:`\alpha` that is learned, and each also alone, see :meth:`loss`.

    .. code-block:: python

        text = FieldText(**dataset.field_text()).fit(train)
        train, val = text(train), text(val)
        model = FLIP.from_data(train, sentence='node')
        fit(AlignmentTask(model), ExposureLoader(train, shuffle=True), ExposureLoader(val),
            monitor='loss')
        fit(ClickTask(model, 1e-3, 0.0), ExposureLoader(train, shuffle=True), ExposureLoader(val))

    The paper's sentence is that of a row. With :obj:`sentence="node"`, beyond the paper, user, item
    and each context have a sentence of their own, of which those of a batch are read once, and
    those of a log once for all requests, see :meth:`precompute`:

    .. math::
        \mathbf{h}_{\mathrm{text}} = \mathbf{W} \left( \mathbf{h}_u \Vert \mathbf{h}_i \Vert
        \cdots \Vert \mathbf{h}_u \odot \mathbf{h}_i \right) + \mathbf{c}.

    A masked id is an embedding of its own: none of the log, and not that of no value. Fields that
    are numbers are not read.

    Args:
        num_values (Mapping[str, int]): The number of values of each field of
            :obj:`ExposureBatch.sparse`, by its name.
        tokens (Tokens): The text of all of them, see :func:`mag.schema.tokens`, which also names
            the fields.
        text_encoder (torch.nn.Module, optional): From tokens and where there are some, both of
            shape :obj:`[B, L]`, to the states of the tokens, shape :obj:`[B, L, C]`, the first of
            which is that of the sentence; with the attributes :obj:`channels`, :obj:`num_tokens`
            and :obj:`max_length`. By default a :class:`~mag.nn.TextEncoder`.
            (default: :obj:`None`)
        id_encoder (torch.nn.Module, optional): From the embeddings of the fields, shape
            :obj:`[B, F, d]`, to what they say, shape :obj:`[B, C]`, with the attribute
            :obj:`out_channels`. By default a :class:`~mag.nn.DeepCross`. (default: :obj:`None`)
        embedding_dim (int, optional): Size :math:`d` of an embedding. (default: :obj:`32`)
        sentence (str, optional): :obj:`"row"` or :obj:`"node"`, see above. (default: :obj:`"row"`)
        branches (str, optional): What predicts clicks: :obj:`"both"`, :obj:`"ids"` or
            :obj:`"text"`. All three have the same weights, so that one pre-training serves them.
            (default: :obj:`"both"`)
        gate (str, optional): :obj:`"global"` for one :math:`\alpha`, or :obj:`"sample"`, beyond
            the paper, for one a row: the sigmoid of a linear map of what both say.
            (default: :obj:`"global"`)
        alpha (float, optional): What the one :math:`\alpha` starts as. At 0 the ids learn from
            their own loss alone until it has moved. (default: :obj:`0.0`)
        projection_dropout (float, optional): The share that the projection heads drop. On a small
            log, 0: with the paper's, the contrast stayed at chance on MovieLens-100K, as both heads
            came to say the same of all rows. (default: :obj:`0.2`)
        regularization (float, optional): The share of the squares of all embeddings of ids and of
            their weights :math:`w` that is added to the loss. (default: :obj:`1e-4`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown in
            a step of training, in the text, too. (default: :obj:`0.0`)
        value_counts (Mapping[str, torch.Tensor], optional): How often each value of a field was
            seen in training, from which noise for the loss of masked ids is drawn, shape
            :obj:`[num_values]`, by the name of the field; what never was counts as once.
            (default: :obj:`None`)

    Attributes:
        out_channels (int): How many :meth:`features` there are.
        pretraining (tuple[str, ...]): The names of the :meth:`pretraining_losses`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of range, a field has no number of values, counts are of
            other values, or the text encoder knows fewer tokens than there are, or reads fewer than
            three.
    """

    pretraining = _LOSSES

    def __init__(
        self,
        num_values: Mapping[str, int],
        tokens: Tokens,
        text_encoder: Any = None,
        id_encoder: Any = None,
        embedding_dim: int = 32,
        sentence: str = 'row',
        branches: str = 'both',
        gate: str = 'global',
        alpha: float = 0.0,
        projection_dropout: float = 0.2,
        regularization: float = 1e-4,
        id_dropout: float = 0.0,
        value_counts: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        fields = tokens.fields
        check_fields(num_values, fields)
        check_integers(1, embedding_dim=embedding_dim)
        check_choice(('row', 'node'), sentence=sentence)
        check_choice(('both', 'ids', 'text'), branches=branches)
        check_choice(('global', 'sample'), gate=gate)
        check_numbers('(-inf, inf)', alpha=alpha)
        check_numbers('[0, inf)', regularization=regularization)
        check_numbers('[0, 1)', id_dropout=id_dropout)
        if text_encoder is None:
            text_encoder = TextEncoder(tokens.num_tokens)
        _check_encoder('text_encoder', text_encoder, 'channels', 'num_tokens', 'max_length')
        if text_encoder.max_length < 3:
            raise ValueError(
                f"'text_encoder' must read a token between two others, but its max_length is "
                f'{text_encoder.max_length}.'
            )
        if text_encoder.num_tokens < tokens.num_tokens:
            raise ValueError(
                f"'text_encoder' must know the {tokens.num_tokens} tokens of the data, but knows "
                f'{text_encoder.num_tokens}: take the tokenizer that it was made with for '
                f'FieldText.'
            )
        if id_encoder is None:
            id_encoder = DeepCross(len(fields), embedding_dim)
        _check_encoder('id_encoder', id_encoder, 'out_channels')
        value_counts = value_counts or {}
        for name, counts in value_counts.items():
            check_choice(fields, **{'field of value_counts': name})
            check_tensor('FLIP', f'value_counts.{name}', counts, (num_values[name],), 'integers')
        self.fields, self.branches, self.gate = fields, branches, gate
        self.alpha_start, self.regularization = alpha, regularization
        self.id_dropout = id_dropout
        self.num_masked = max(1, int(len(fields) * _MASKED))
        self.embedding = FieldEmbedding(
            'FLIP', num_values, fields, embedding_dim, std=_STD, id_dropout=id_dropout
        )
        self.linear = FieldEmbedding('FLIP', num_values, fields, 1, std=_STD)
        self.mask = torch.nn.Parameter(torch.empty(embedding_dim))
        self.id_encoder = id_encoder
        self.text = TextReader(tokens, text_encoder, sentence)
        of_ids, of_text = int(id_encoder.out_channels), self.text.channels
        self.id_projection = ProjectionHead(of_ids, _NUM_PROJECTED, projection_dropout)
        self.text_projection = ProjectionHead(of_text, _NUM_PROJECTED, projection_dropout)
        self.query = torch.nn.Sequential(
            torch.nn.Linear(of_ids, of_text), torch.nn.LayerNorm(of_text)
        )
        self.recovered = torch.nn.Linear(of_ids + of_text, len(fields) * embedding_dim)
        self.masked_ids = MaskedIds(num_values, fields, embedding_dim, value_counts)
        self.masked_tokens = torch.nn.Sequential(
            torch.nn.Linear(of_text + of_ids, of_text),
            torch.nn.Tanh(),
            torch.nn.Dropout(_DROPOUT),
            torch.nn.Linear(of_text, tokens.num_tokens),
        )
        self.id_head = torch.nn.Linear(of_ids, 1)
        self.text_head = torch.nn.Linear(of_text, 1)
        self.alpha: torch.nn.Linear | torch.nn.Parameter = (
            torch.nn.Linear(of_ids + of_text, 1)
            if gate == 'sample'
            else torch.nn.Parameter(torch.empty(()))
        )
        self.bias = torch.nn.Parameter(torch.empty(()))
        self.out_channels = _NUM_PROJECTED * (2 if branches == 'both' else 1)
        self._reset_own()

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> 'FLIP':
        r"""Builds the model for a part that went through :class:`~mag.transforms.FieldText`.

        Args:
            data (HeteroData): The training part: noise is drawn from the values of its exposures.
            **kwargs (optional): Arguments of :class:`FLIP`.

        Raises:
            TypeError: If the data is no graph.
            ValueError: If it has no text, or that of other fields.
        """
        features = ExposureFeatures(data, caller='FLIP.from_data')
        text = _text_of('FLIP.from_data', data, features.fields)
        kwargs = {'value_counts': _count_values(features), **kwargs}
        return remember_ids(cls(features.num_values, text, **kwargs), data)

    def reset_parameters(self) -> None:
        # A part may start its layers in another way than they do alone.
        for part in self.children():
            reset(part)
        self._reset_own()

    @torch.no_grad()
    def _reset_own(self) -> None:
        torch.nn.init.normal_(self.mask, std=_STD)
        torch.nn.init.zeros_(self.bias)
        if isinstance(self.alpha, torch.nn.Parameter):
            self.alpha.fill_(self.alpha_start)

    def grow(self, data: HeteroData) -> None:
        r"""Adds what a log has that grew: users, items and values of other fields, whose embeddings
        start as that of none, and their text. What was known is scored as before. An optimizer has
        to be made anew, and :meth:`precompute` called again.

        Args:
            data (HeteroData): A part of the grown log, with its text by the same tokenizer, as
                :obj:`FieldText(text.tokenizer, ...)` writes it.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data has the ids of another log, other fields, fewer values than
                before, or another text of those.
        """
        features, known, found = grown_fields(self, data)
        text = _text_of('FLIP.grow', data, features.fields)
        check_grown(self, data, known, found)
        self.text.grow(text)
        for part in (self.embedding, self.linear, self.masked_ids):
            part.grow(features.num_values)
        remember_ids(self, data)

    def precompute(self, batch_size: int = 1024) -> 'FLIP':
        r"""Reads the text of all users, items and contexts and keeps what it says, so that a
        request costs what the ids cost and a look-up. It is dropped where weights may change: in
        training, where others are loaded, by :meth:`grow`, and after a step of an optimizer, unless
        that is fused. A copy has it, too; what was compiled or exported reads what there was then.

        Args:
            batch_size (int, optional): How many to read at once. (default: :obj:`1024`)

        Raises:
            TypeError: If :obj:`batch_size` is no integer.
            ValueError: If it is not positive, the model is in training, or has one sentence a row.
        """
        check_integers(1, batch_size=batch_size)
        if self.text.sentence == 'row':
            raise ValueError(
                "FLIP with sentence='row' reads user and item together, which no text of one of "
                "them tells in advance: build it with sentence='node'."
            )
        if self.training:
            raise ValueError('FLIP.precompute keeps what a model says: call model.eval() first.')
        self.text.precompute(batch_size)
        return self

    def forward(self, batch: ExposureBatch | JoinedBatch) -> Tensor | Logits:
        r"""
        Args:
            batch (ExposureBatch or JoinedBatch): Exposures with their features.

        Returns:
            The logits of clicks, beside those of the branches :obj:`"ids"` and :obj:`"text"`; of
            one branch alone a tensor of shape :obj:`[B]`.

        Raises:
            IndexError: If a field has no such value.
            TypeError: If the batch is of another kind.
            ValueError: If it has no features, or other columns.
        """
        known = self._known(batch)
        found, logits = {}, {}
        if self.branches != 'text':
            found['ids'] = self._read_ids(known)
            linear = self.linear(known).sum((1, 2))
            logits['ids'] = self.id_head(found['ids']).squeeze(1) + linear
        if self.branches != 'ids':
            found['text'] = self.text(known)
            logits['text'] = self.text_head(found['text']).squeeze(1)
        if self.branches != 'both':
            return logits[self.branches]
        alpha = self.alpha
        if isinstance(alpha, torch.nn.Linear):
            alpha = alpha(torch.cat([found['ids'], found['text']], dim=1)).squeeze(1).sigmoid()
        click = alpha * logits['ids'] + (1 - alpha) * logits['text'] + self.bias
        return Logits(click, branches=logits)

    def loss(self, output: Tensor | Logits, batch: ExposureBatch | JoinedBatch) -> Tensor:
        r"""The binary cross-entropy of the clicks, plus those that each branch predicts alone, plus
        the :obj:`regularization` of the embeddings, where ids are read.

        Args:
            output (torch.Tensor or Logits): What :meth:`forward` returned for the batch.
            batch (ExposureBatch or JoinedBatch): The exposures, with their labels.

        Raises:
            ValueError: If the batch has no labels.
        """
        logits = as_logits('FLIP', output)
        label = labels('FLIP', exposure_batch('FLIP', batch)).float()
        total = F.binary_cross_entropy_with_logits(logits.click.float(), label)
        for logit in (logits.branches or {}).values():
            total = total + F.binary_cross_entropy_with_logits(logit.float(), label)
        if self.branches != 'text' and self.regularization > 0:
            for table in (self.embedding, self.linear):
                squares = all_rows(table.weight).square().sum()
                total = total + self.regularization * squares
        return total

    def features(self, batch: ExposureBatch | JoinedBatch) -> Tensor:
        r"""What the projection heads make of ids and of text, one after the other, shape
        :obj:`[B, out_channels]`.

        Args:
            batch (ExposureBatch or JoinedBatch): Exposures; for the errors see :meth:`forward`.
        """
        known = self._known(batch)
        found = []
        if self.branches != 'text':
            found.append(self.id_projection(self._read_ids(known)))
        if self.branches != 'ids':
            found.append(self.text_projection(self.text(known)))
        return torch.cat(found, dim=1)

    def contrast(self, features: Tensor) -> Tensor:
        r"""The contrast of ids and text over the rows of all processes, a scalar, see
        :func:`~mag.losses.instance_contrast`.

        Args:
            features (torch.Tensor): What :meth:`features` gave.

        Raises:
            ValueError: If the model has one branch alone.
        """
        if self.branches != 'both':
            raise ValueError(
                f'FLIP contrasts ids with text, but was built with branches={self.branches!r}.'
            )
        of_ids, of_text = features.chunk(2, dim=1)
        return instance_contrast(gather_rows(of_ids), gather_rows(of_text))

    def pretraining_losses(
        self,
        batch: ExposureBatch | JoinedBatch,
        losses: Collection[str] = _LOSSES,
        generator: torch.Generator | None = None,
    ) -> dict[str, tuple[Tensor, int]]:
        r"""What pre-training minimises, without labels: each loss by its name, a scalar, and of
        how many rows, masked ids or masked tokens it is the mean.

        Of each row, :math:`\max(1, \lfloor 0.15 F \rfloor)` fields that have a value are masked for
        the ids, and as many that have tokens, drawn apart from them, for the text. Rows that share
        a sentence mask the same of it, or nothing.

        Args:
            batch (ExposureBatch or JoinedBatch): Exposures.
            losses (Collection[str], optional): Which of :obj:`"instance_contrast"`,
                :obj:`"masked_id"` and :obj:`"masked_token"`. (default: all of them)
            generator (torch.Generator, optional): What draws masks and noise, on the device of the
                model; by default the global one. (default: :obj:`None`)

        Raises:
            IndexError: If a field has no such value.
            TypeError: If the batch is of another kind.
            ValueError: If it has no features, or other columns, or there is no such loss.
        """
        check_choice(_LOSSES, **{f'losses[{place}]': name for place, name in enumerate(losses)})
        known = self._known(batch)
        found: dict[str, tuple[Tensor, int]] = {}
        if 'masked_id' in losses:
            reading = self.text.read(known)
            of_text = reading.summary
        elif 'instance_contrast' in losses:
            of_text = self.text(known)
        if 'instance_contrast' in losses or 'masked_token' in losses:
            of_ids = self._read_ids(known)
        if 'instance_contrast' in losses:
            contrast = instance_contrast(
                gather_rows(self.id_projection(of_ids)), gather_rows(self.text_projection(of_text))
            )
            found['instance_contrast'] = contrast, len(known)
        if 'masked_id' in losses:
            draw = torch.rand(known.shape, device=known.device, generator=generator)
            masked = self._first(draw, known > 0)
            hidden = self._recovered(known, masked, reading.states, reading.is_token)[masked]
            target = self.masked_ids.rows(known)[masked]
            found['masked_id'] = self.masked_ids.loss(hidden, target, generator), len(target)
        if 'masked_token' in losses:
            masked = self._first(self.text.draw(known, generator), self.text.told(known))
            row, state, target = self.text.read_masked(known, masked)
            logits = self.masked_tokens(torch.cat([state, of_ids.index_select(0, row)], dim=1))
            found['masked_token'] = masked_token_loss(logits, target), len(target)
        return found

    @torch.no_grad()
    def recover(
        self,
        batch: ExposureBatch | JoinedBatch,
        field: str,
        ids: bool = True,
        text: str = 'others',
    ) -> Tensor:
        r"""The scores of all values of a field whose id is masked, shape :obj:`[B, num_values]`:
        what pre-training has learned to recover it from.

        Args:
            batch (ExposureBatch or JoinedBatch): Exposures.
            field (str): The name of the field, the first column of it.
            ids (bool, optional): If set to :obj:`False`, the ids of all other fields are masked,
                too. (default: :obj:`True`)
            text (str, optional): Whose words are there: those of :obj:`"all"` fields, of all
                :obj:`"others"`, or of :obj:`"none"`; the rest is masked. (default: :obj:`"others"`)

        Raises:
            ValueError: If there is no such field.
        """
        check_choice(self.fields, field=field)
        check_booleans(ids=ids)
        check_choice(('all', 'others', 'none'), text=text)
        known = self._known(batch)
        own = torch.zeros(len(self.fields), dtype=torch.bool, device=known.device)
        own[self.fields.index(field)] = True
        words = {'all': None, 'others': own, 'none': torch.ones_like(own)}[text]
        reading = self.text.read(known, words)
        masked = (own if ids else torch.ones_like(own)).expand_as(known)
        hidden = self._recovered(known, masked, reading.states, reading.is_token)
        return self.masked_ids.scores(hidden[:, self.fields.index(field)], field)

    def _known(self, batch: Any) -> Tensor:
        return self.embedding.known(exposure_batch('FLIP', batch).sparse)

    def _read_ids(self, known: Tensor, masked: Tensor | None = None) -> Tensor:
        embedded = self.embedding(known)
        if masked is not None:
            embedded = torch.where(masked.unsqueeze(-1), self.mask.to(embedded.dtype), embedded)
        return self.id_encoder(embedded)

    def _first(self, draw: Tensor, allowed: Tensor) -> Tensor:
        r"""The fields that are masked, booleans, of those that may be: the first by a draw."""
        first = draw.masked_fill(~allowed, -1).topk(self.num_masked, dim=1).indices
        return torch.zeros_like(allowed).scatter_(1, first, True) & allowed

    def _recovered(self, known: Tensor, masked: Tensor, states: Tensor, is_token: Tensor) -> Tensor:
        r"""What the ids that are not masked, and the tokens that they attend to, say of each field,
        shape :obj:`[B, F, d]`."""
        of_ids = self._read_ids(known, masked)
        query = self.query(of_ids)
        score = torch.einsum('bc,blc->bl', query, states).float()
        attention = score.masked_fill(~is_token, -torch.inf).softmax(1).to(states.dtype)
        attended = torch.einsum('bl,blc->bc', attention, states)
        out = self.recovered(torch.cat([of_ids, attended], dim=1))
        return out.view(len(known), len(self.fields), -1)

    def extra_repr(self) -> str:
        return (
            f'fields={list(self.fields)}, sentence={self.text.sentence!r}, '
            f'branches={self.branches!r}, gate={self.gate!r}, alpha={self.alpha_start}, '
            f'regularization={self.regularization}, id_dropout={self.id_dropout}'
        )


def _check_encoder(name: str, encoder: Any, *attributes: str) -> None:
    r"""Raises unless it is a module that tells its sizes."""
    is_told = all(isinstance(getattr(encoder, attribute, None), int) for attribute in attributes)
    if not isinstance(encoder, torch.nn.Module) or not is_told:
        raise TypeError(
            f"'{name}' must be a torch.nn.Module with the integers {', '.join(attributes)}, but "
            f'got {type(encoder).__name__}.'
        )


def _text_of(caller: str, data: HeteroData, fields: tuple[str, ...]) -> Tokens:
    r"""The text of a log, which is that of all fields."""
    text = tokens(data, caller)
    if text.fields != fields:
        raise ValueError(
            f'{caller} found the text of {list(text.fields)}, but this data has the fields '
            f'{list(fields)}: apply FieldText after what adds fields.'
        )
    return text


def _count_values(features: ExposureFeatures) -> dict[str, Tensor]:
    r"""How often the exposures have each value of each field."""
    counts = {name: torch.zeros(num, dtype=torch.long) for name, num in features.num_values.items()}
    for rows in torch.arange(len(features)).split(_ROWS_AT_ONCE):
        sparse, _ = features.rows(features.exposures[rows])
        for name, column in zip(features.fields, sparse.t(), strict=True):
            counts[name] += column[column >= 0].bincount(minlength=len(counts[name]))
    return counts
