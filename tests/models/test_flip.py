import copy
import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import ExposureBatch, ExposureLoader, JoinedBatch
from mag.losses import instance_contrast
from mag.models import FLIP
from mag.nn import DeepCross, TextEncoder
from mag.schema import Tokens, TokenSource
from mag.transforms import FieldText

FIELDS = ('user', 'user_age', 'item', 'item_kind', 'query')
NUM_VALUES = {'user': 6, 'user_age': 3, 'item': 5, 'item_kind': 4, 'query': 7}
SPECIAL = {'cls': 2, 'sep': 3, 'mask': 4, 'pad': 0}
AGE, KIND = torch.arange(6) % 3, torch.arange(5) % 4
NUM_TOKENS = 40
# The words of the values of each field, and the word before each.
FIRST = {'user': 5, 'user_age': 12, 'item': 16, 'item_kind': 22, 'query': 27}
WORD = {'user': 34, 'user_age': 35, 'item': 36, 'item_kind': 37, 'query': 38}


def source(column: int, *values: tuple[int, Tensor]) -> TokenSource:
    r"""Sentences such as "word value word value", of which a title has one value more."""
    token, field = [], []
    for row in range(len(values[0][1])):
        pieces, places = [], []
        for place, of in values:
            name = FIELDS[place]
            value = FIRST[name] + int(of[row])
            pieces += [WORD[name], value] + ([value, 39] if name == 'item' and row % 2 else [])
            places += [-1, place] + ([place, place] if name == 'item' and row % 2 else [])
        pieces += [-1] * (8 - len(pieces))
        token.append(pieces)
        field.append(places + [-1] * (8 - len(places)))
    none = torch.full((1, 8), -1)
    return TokenSource(
        column,
        torch.cat([none, torch.tensor(token)]).int(),
        torch.cat([none, torch.tensor(field)]).short(),
    )


def make_tokens() -> Tokens:
    sources = (
        source(0, (0, torch.arange(6)), (1, AGE)),
        source(2, (2, torch.arange(5)), (3, KIND)),
        source(4, (4, torch.arange(7))),
    )
    return Tokens(FIELDS, sources, NUM_TOKENS, SPECIAL)


class Words(torch.nn.Module):
    r"""An encoder of words and their places, each of which looks at all others."""

    num_tokens = NUM_TOKENS

    def __init__(self, channels: int = 8, max_length: int = 30) -> None:
        super().__init__()
        self.channels, self.max_length = channels, max_length
        self.word = torch.nn.Embedding(NUM_TOKENS, channels)
        self.place = torch.nn.Embedding(max_length, channels)
        self.attention = torch.nn.MultiheadAttention(channels, 2, batch_first=True)
        self.seen: list[Tensor] = []

    def reset_parameters(self) -> None:
        self.word.reset_parameters()
        self.place.reset_parameters()
        self.attention._reset_parameters()

    def forward(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.seen.append(tokens.clone().masked_fill(~is_token, -1))
        x = self.word(tokens) + self.place.weight[: tokens.size(1)]
        return x + self.attention(x, x, x, key_padding_mask=~is_token, need_weights=False)[0]


def make(seed: int = 0, **kwargs: Any) -> FLIP:
    torch.manual_seed(seed)
    kwargs = {'text_encoder': Words(), 'embedding_dim': 4, **kwargs}
    return FLIP(NUM_VALUES, make_tokens(), **kwargs)


def spread(model: FLIP) -> FLIP:
    r"""With weights that are not near 0, so that all matters."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 3)
    return model


def make_batch(size: int = 12, seed: int = 0) -> ExposureBatch:
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int) -> Tensor:
        return torch.randint(high, (size,), generator=generator)

    user, item, query = draw(6), draw(5), draw(8) - 1
    sparse = torch.stack([user, AGE[user], item, KIND[item], query], dim=1)
    return ExposureBatch(user, item, sparse, torch.empty(size, 0), draw(2).float())


FORMS = {'row': {}, 'node': {'sentence': 'node'}}
each_form = pytest.mark.parametrize('options', FORMS.values(), ids=list(FORMS))
OPTIONS = {
    **FORMS,
    'ids': {'branches': 'ids'},
    'text': {'branches': 'text', 'sentence': 'node'},
    'sample': {'gate': 'sample', 'sentence': 'node'},
}
each_option = pytest.mark.parametrize('options', OPTIONS.values(), ids=list(OPTIONS))


def pieces_of(part: int, value: int) -> tuple[list[int], list[int]]:
    r"""The pieces of a user, an item or a query, :obj:`-1` for none, and their fields."""
    table = make_tokens().sources[part]
    token, field = table.token[value + 1], table.field[value + 1]
    return token[token >= 0].tolist(), field[token >= 0].tolist()


def sentences_of(batch: ExposureBatch, row: int, by_row: bool) -> list[tuple[list[int], list[int]]]:
    r"""The sentences of a row, and the field of each of their tokens."""
    parts = [pieces_of(part, int(batch.sparse[row, 2 * part])) for part in range(3)]
    if by_row:
        parts = [([t for token, _ in parts for t in token], [f for _, of in parts for f in of])]
    return [([2, *token, 3], [-1, *field, -1]) for token, field in parts]


def without_padding(seen: list[Tensor]) -> list[list[int]]:
    return [[token for token in row if token >= 0] for rows in seen for row in rows.tolist()]


@each_form
def test_an_encoder_reads_the_words_of_a_row(options: dict[str, Any]) -> None:
    model, batch = make(**options).eval(), make_batch()
    model(batch)
    expected = [
        tokens
        for row in range(12)
        for tokens, _ in sentences_of(batch, row, by_row=not options)
    ]  # fmt: skip
    read = without_padding(model.text.encoder.seen)
    assert {*map(tuple, read)} == {*map(tuple, expected)}
    # Sentences that rows share are read once, whole rows as they come.
    assert len(read) == (len({*map(tuple, expected)}) if options else 12)
    # Nothing is longer than it has to be.
    assert max(part.size(1) for part in model.text.encoder.seen) == max(map(len, expected))


@each_form
def test_masked_tokens_are_whole_fields_as_they_are_read_without_them(
    options: dict[str, Any],
) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    known = batch.sparse + 1
    told = model.text.told(known)
    # A query that there is none of has no words.
    assert torch.equal(told, (batch.sparse >= 0))
    masked = told & (torch.rand(told.shape, generator=torch.Generator().manual_seed(0)) < 0.4)
    row, state, target = model.text.read_masked(known, masked)
    expected = {}
    for place in range(12):
        for tokens, fields in sentences_of(batch, place, by_row=not options):
            hidden = [field >= 0 and bool(masked[place, field]) for field in fields]
            read = torch.tensor([[4 if h else t for t, h in zip(tokens, hidden)]])
            states = model.text.encoder(read, torch.ones_like(read, dtype=torch.bool))[0]
            for column, is_hidden in enumerate(hidden):
                if is_hidden:
                    key = (place, len(expected.get(place, [])))
                    expected.setdefault(place, []).append((tokens[column], states[column]))
                    assert key[0] == place
    found: dict[int, list[Any]] = {}
    for place, of, token in zip(row.tolist(), state, target.tolist()):
        found.setdefault(place, []).append((token, of))
    assert found.keys() == expected.keys()
    for place, entries in expected.items():
        assert [token for token, _ in found[place]] == [token for token, _ in entries]
        for (_, one), (_, other) in zip(found[place], entries):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@each_form
def test_what_pretraining_reads_is_what_is_read_for_clicks(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    known = batch.sparse + 1
    reading = model.text.read(known)
    torch.testing.assert_close(reading.summary, model.text(known))
    for row in range(12):
        of_row = sentences_of(batch, row, by_row=not options)
        assert int(reading.is_token[row].sum()) == sum(len(tokens) for tokens, _ in of_row)


def test_a_field_that_a_sentence_is_cut_in_is_never_masked() -> None:
    # Of "word 3 word 2 word 1" in brackets, six pieces of each row are read.
    batch = make_batch()
    known = batch.sparse + 1
    whole, cut = make().text.told(known), make(text_encoder=Words(max_length=8)).text.told(known)
    assert bool((whole[:, :4]).all()) and bool(cut[:, :2].all())
    has_three = batch.item % 2 == 1
    # The longer name of every second item does not fit in, nor what follows.
    assert torch.equal(cut[:, 2], ~has_three) and not bool(cut[:, 3:].any())
    model = make(text_encoder=Words(max_length=8))
    model(batch)
    assert {part.size(1) for part in model.text.encoder.seen} == {8}
    ends = torch.cat(model.text.encoder.seen)[:, -1]
    assert bool((ends == SPECIAL['sep']).all())


def test_golden_fusion() -> None:
    model, batch = make(alpha=0.3), make_batch()
    with torch.no_grad():
        for head, bias in ((model.id_head, 1.2), (model.text_head, -0.4)):
            head.weight.zero_()
            head.bias.fill_(bias)
        model.linear.weight.zero_()
    click, *_, branches, _ = model(batch)
    torch.testing.assert_close(click.sigmoid(), torch.full((12,), 0.5199893401555818))
    assert branches['ids'][0].item() == pytest.approx(1.2)
    with torch.no_grad():
        model.bias.fill_(0.5)
    torch.testing.assert_close(model(batch).click, click + 0.5)


@each_form
def test_alpha_of_1_and_of_0_are_one_branch(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    with torch.no_grad():
        model.bias.zero_()
    for alpha, name in ((1.0, 'ids'), (0.0, 'text')):
        with torch.no_grad():
            model.alpha.fill_(alpha)
        both = model(batch)
        assert torch.equal(both.click, both.branches[name])
        # One pre-training serves all forms: they have the same weights.
        one = make(1, branches=name, **options).eval()
        one.load_state_dict(model.state_dict())
        assert torch.equal(one(batch), both.click)


def test_alpha_starts_at_0_and_then_ids_learn_from_their_own_loss_alone() -> None:
    model, batch = make(), make_batch()
    assert model.alpha.item() == 0
    F.binary_cross_entropy_with_logits(model(batch).click, batch.label).backward()
    assert bool((model.embedding.weight.grad == 0).all())
    model.zero_grad()
    model.loss(model(batch), batch).backward()
    assert bool((model.embedding.weight.grad != 0).any())


def test_a_gate_may_be_of_each_row() -> None:
    model, batch = spread(make(gate='sample')).eval(), make_batch()
    known = batch.sparse + 1
    both = model(batch)
    said = torch.cat([model._read_ids(known), model.text(known)], dim=1)
    share = model.alpha(said).squeeze(1).sigmoid()
    assert share.unique().numel() > 5
    expected = share * both.branches['ids'] + (1 - share) * both.branches['text'] + model.bias
    torch.testing.assert_close(both.click, expected)


def test_the_loss_is_that_of_all_three_and_of_the_embeddings() -> None:
    model, batch = spread(make(regularization=0.1)), make_batch()
    click, *_, branches, _ = output = model(batch)
    losses = [
        F.binary_cross_entropy_with_logits(logit, batch.label)
        for logit in (click, branches['ids'], branches['text'])
    ]
    squares = model.embedding.weight.square().sum() + model.linear.weight.square().sum()
    torch.testing.assert_close(model.loss(output, batch), sum(losses) + 0.1 * squares)
    one = spread(make(branches='text', regularization=0.1))
    expected = F.binary_cross_entropy_with_logits(one(batch), batch.label)
    torch.testing.assert_close(one.loss(one(batch), batch), expected)


def test_the_logit_of_ids_has_a_weight_for_each() -> None:
    model, batch = spread(make(branches='ids')).eval(), make_batch()
    logit = model(batch)
    with torch.no_grad():
        model.linear.weight[model.linear.starts['item'] + 1 + 3] += 2
    torch.testing.assert_close(model(batch), logit + 2 * (batch.item == 3))


LOSSES = ('instance_contrast', 'masked_id', 'masked_token')


@each_form
@pytest.mark.parametrize('name', LOSSES)
def test_a_gradient_of_each_loss_reaches_both_encoders(name: str, options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)), make_batch()
    found = model.pretraining_losses(batch, [name])
    assert list(found) == [name]
    found[name][0].backward()
    of_ids = (model.embedding.weight, model.id_encoder.cross.u[0], model.id_encoder.tower[0].weight)
    encoder = model.text.encoder
    of_text = (encoder.word.weight, encoder.place.weight, encoder.attention.in_proj_weight)
    for weight in (*of_ids, *of_text):
        assert bool((weight.grad != 0).any())
    # What predicts clicks alone starts fine-tuning as it was.
    for weight in (model.linear.weight, model.alpha, model.bias, model.id_head.weight):
        assert weight.grad is None


@each_form
def test_the_contrast_is_that_of_both_projections(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    loss, number = model.pretraining_losses(batch)['instance_contrast']
    features = model.features(batch)
    assert features.shape == (12, 256) == (12, model.out_channels)
    torch.testing.assert_close(loss, instance_contrast(*features.chunk(2, dim=1)))
    assert torch.equal(model.contrast(features), loss) and number == 12
    one = make(branches='text', **options).eval()
    one.load_state_dict(model.state_dict())
    assert one.out_channels == 128
    assert torch.equal(one.features(batch), features[:, 128:])


@each_form
def test_masked_ids_are_those_of_one_field_a_row_and_of_no_missing_one(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make(**options), make_batch(500)
    masks: list[Tensor] = []
    read = model._recovered

    def spy(known: Tensor, masked: Tensor, *args: Tensor) -> Tensor:
        masks.append(masked)
        return read(known, masked, *args)

    monkeypatch.setattr(model, '_recovered', spy)
    for _ in range(2):
        assert model.pretraining_losses(batch, ['masked_id'])['masked_id'][1] == 500
    for masked in masks:
        assert bool((masked.sum(1) == 1).all())
        assert not bool((masked & (batch.sparse < 0)).any())
        # Each of the fields of a row is as likely as another.
        is_whole = (batch.sparse >= 0).all(1)
        share = masked[is_whole].float().mean(0)
        assert bool(((share - 0.2).abs() < 0.06).all())
    assert not torch.equal(*masks)


@pytest.mark.parametrize(('num_fields', 'number'), [(5, 1), (8, 1), (13, 1), (14, 2), (15, 2)])
def test_golden_number_of_masked_fields(num_fields: int, number: int) -> None:
    fields = ('user', 'item', *(f'user_{place}' for place in range(num_fields - 2)))
    tokens = Tokens(fields, make_tokens().sources[:2], NUM_TOKENS, SPECIAL)
    model = FLIP({**dict.fromkeys(fields, 4)}, tokens, Words(), embedding_dim=2)
    assert model.num_masked == number
    masked = model._first(torch.rand(30, num_fields), torch.ones(30, num_fields).bool())
    assert bool((masked.sum(1) == number).all())


@each_form
def test_masked_words_are_drawn_apart_from_masked_ids(options: dict[str, Any]) -> None:
    model, batch = make(**options), make_batch(2000)
    known = batch.sparse + 1
    told = model.text.told(known)
    draws = [model._first(model.text.draw(known, None), told) for _ in range(200)]
    # A row alone masks each of its fields as often as another.
    share = torch.stack(draws).float().mean(0)[0, told[0]]
    assert bool(((share - 1 / told[0].sum()).abs() < 0.12).all())
    of_ids = model._first(torch.rand(known.shape), known > 0)
    both = (draws[0] & of_ids).any(1).float().mean().item()
    assert both == pytest.approx(1 / 5, abs=0.06)
    if options:
        # In one form a user is read in one way, or not at all.
        users = torch.cat([batch.user.unsqueeze(1), draws[0][:, :2].long()], 1)
        masked_users = users[draws[0][:, :2].any(1)].unique(dim=0)
        assert len(masked_users) == masked_users[:, 0].unique().numel()


@each_form
def test_a_mask_is_an_id_of_its_own(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)), make_batch()
    known = batch.sparse + 1
    all_masked = torch.ones_like(known, dtype=torch.bool)
    said = model._read_ids(known, all_masked)
    torch.testing.assert_close(said, said[:1].expand_as(said))
    assert not torch.allclose(said[0], model._read_ids(torch.zeros_like(known))[0])
    model.pretraining_losses(batch, ['masked_id'])['masked_id'][0].backward()
    assert bool((model.mask.grad != 0).all())


@each_form
def test_padding_is_not_attended_to(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    reading = model.text.read(batch.sparse + 1)
    masked = torch.zeros_like(batch.sparse, dtype=torch.bool)
    masked[:, 1] = True
    arguments = batch.sparse + 1, masked
    out = model._recovered(*arguments, reading.states, reading.is_token)
    noisy = reading.states + 100 * (~reading.is_token).unsqueeze(-1)
    assert torch.equal(model._recovered(*arguments, noisy, reading.is_token), out)
    # By the formula, of one row.
    of_ids = model._read_ids(*arguments)
    states = reading.states[3][reading.is_token[3]]
    attention = (states @ model.query(of_ids)[3]).softmax(0)
    both = torch.cat([of_ids[3], attention @ states])
    torch.testing.assert_close(out[3], model.recovered(both).view(5, 4), atol=1e-5, rtol=1e-4)


def test_noise_is_drawn_by_the_counts_of_all_fields_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {name: torch.arange(num) * 10 for name, num in NUM_VALUES.items()}
    model = make(value_counts=counts)
    head = model.masked_ids
    noises: list[tuple[Any, ...]] = []
    monkeypatch.setattr('mag.models._masked_ids.masked_id_loss', lambda *args: noises.append(args))
    head.loss(torch.zeros(4000, 4), torch.zeros(4000).long(), None)
    _, _, noise, weight, bias, probability = noises[0]
    assert noise.shape == (4000, 25)
    # What never was, and none of each field, counts as seen once.
    expected = torch.cat(
        [torch.cat([torch.ones(1), of.float()]).clamp(min=1) for of in counts.values()]
    )
    torch.testing.assert_close(probability, expected / expected.sum())
    found = noise.flatten().bincount(minlength=len(expected)) / noise.numel()
    assert bool(((found - probability).abs() < 0.003).all())
    torch.testing.assert_close(bias, probability.log() + math.log(len(expected)))
    assert weight.abs().max().item() <= 0.5 < 0.55 + weight.abs().max().item()
    # A value stands in the row of its field.
    rows = head.rows(torch.tensor([[1, 0, 1, 2, 7]]))
    assert rows.tolist() == [[1, 7, 12, 19, 29]]


def test_a_batch_without_masked_tokens_contributes_nothing() -> None:
    nobody = ExposureBatch(
        torch.full((3,), -1), torch.full((3,), -1), torch.full((3, 5), -1), torch.empty(3, 0)
    )
    for options in FORMS.values():
        model = make(**options)
        found = model.pretraining_losses(nobody)
        assert [number for _, number in found.values()] == [3, 0, 0]
        assert found['masked_id'][0] == found['masked_token'][0] == 0
        sum(loss for loss, _ in found.values()).backward()
        assert all(
            bool(parameter.grad.isfinite().all())
            for parameter in model.parameters()
            if parameter.grad is not None
        )


@each_form
def test_masks_are_those_of_a_generator(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()

    def values(generator: torch.Generator | None) -> list[float]:
        found = model.pretraining_losses(batch, generator=generator)
        return [loss.item() for loss, _ in found.values()]

    fixed = [values(torch.Generator().manual_seed(3)) for _ in range(2)]
    assert fixed[0] == fixed[1]
    drawn = [values(None) for _ in range(2)]
    assert drawn[0][0] == drawn[1][0] and drawn[0][1:] != drawn[1][1:]


def test_what_is_recovered_reads_what_it_is_told_to() -> None:
    model, batch = spread(make(sentence='node')).eval(), make_batch()
    for field, num in NUM_VALUES.items():
        assert model.recover(batch, field).shape == (12, num)
    other = make_batch(12, 1)
    # Neither ids nor words of others: the same for all that have as many words.
    alone = model.recover(batch, 'query', ids=False, text='none')
    lengths = model.text.read(batch.sparse + 1).is_token
    for row in range(1, 12):
        if torch.equal(lengths[row], lengths[0]):
            torch.testing.assert_close(alone[row], alone[0])
    # The masked field's own id is never read, and its words if they are asked for.
    changed = batch._replace(sparse=batch.sparse.clone())
    changed.sparse[:, 4] = (batch.sparse[:, 4].clamp(min=0) + 1) % 7
    whole = changed._replace(sparse=changed.sparse.clone())
    whole.sparse[:, 4] = (changed.sparse[:, 4] + 1) % 7
    for text, same in (('others', True), ('none', True), ('all', False)):
        one, two = (model.recover(b, 'query', text=text) for b in (changed, whole))
        assert torch.allclose(one, two, atol=1e-5) is same
    assert not torch.allclose(model.recover(other, 'query'), model.recover(batch, 'query'))


@pytest.mark.parametrize('name', ['node', 'text', 'sample'])
def test_precomputed_scores_are_the_same_and_read_nothing(name: str) -> None:
    model, batch = spread(make(**OPTIONS[name])).eval(), make_batch()
    expected = model(batch)
    features = model.features(batch)
    assert model.precompute(batch_size=3) is model
    model.text.encoder.seen.clear()
    torch.testing.assert_close(model(batch), expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model.features(batch), features, atol=1e-6, rtol=1e-6)
    assert not model.text.encoder.seen


def step(model: FLIP) -> None:
    # In evaluation: nothing but the step says that weights have changed.
    optimizer = torch.optim.SGD(model.text.encoder.parameters(), 0.1)
    model.pretraining_losses(make_batch())['masked_token'][0].backward()
    optimizer.step()


def load(model: FLIP) -> None:
    model.load_state_dict(spread(make(5, sentence='node')).state_dict())


@pytest.mark.parametrize(
    'change',
    [
        step,
        load,
        lambda model: model.train().eval(),
        lambda model: model.reset_parameters(),
        lambda model: model.load_state_dict(
            {name: value + 1 for name, value in model.state_dict().items()}, assign=True
        ),
    ],
)
def test_what_was_precomputed_is_dropped_where_weights_may_change(
    change: Callable[[FLIP], Any],
) -> None:
    model, batch = spread(make(sentence='node')).eval(), make_batch()
    model.precompute()
    change(model)
    model.text.encoder.seen.clear()
    out = model(batch)
    assert model.text.encoder.seen
    plain = make(sentence='node').eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(out, plain(batch))


class SelfAttention(torch.nn.Module):
    r"""AutoInt's encoder: what fields make of each other."""

    def __init__(self, num_fields: int, embedding_dim: int) -> None:
        super().__init__()
        self.attention = torch.nn.MultiheadAttention(embedding_dim, 2, batch_first=True)
        self.out_channels = num_fields * embedding_dim

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.attention(x, x, x, need_weights=False)[0]).relu().flatten(1)


def test_ids_may_be_read_by_any_encoder() -> None:
    model, batch = make(id_encoder=SelfAttention(5, 4), sentence='node'), make_batch()
    assert model.id_head.in_features == 20
    model.loss(model(batch), batch).backward()
    found = model.pretraining_losses(batch)
    sum(loss for loss, _ in found.values()).backward()
    assert bool((model.id_encoder.attention.in_proj_weight.grad != 0).any())


def test_joined_batches_are_read() -> None:
    model, batch = make().eval(), make_batch()
    joined = JoinedBatch(batch.user, batch.item, batch.label, features=batch)
    torch.testing.assert_close(model(joined), model(batch))
    torch.testing.assert_close(model.loss(model(joined), joined), model.loss(model(batch), batch))


@each_option
def test_compiled_and_exported_scores_are_the_same(options: dict[str, Any]) -> None:
    model, batch = spread(make(**options)).eval(), make_batch()
    if options.get('sentence') == 'node':
        model.precompute()
    expected = model(batch)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend='eager')
        torch.testing.assert_close(compiled(batch), expected)
    size = torch.export.Dim('batch', min=2)
    shapes = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: {0: size}, batch)
    program = torch.export.export(model, (batch,), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    scorer = torch.export.load(file).module(check_guards=False)
    for other in (batch, make_batch(30, 1)):
        torch.testing.assert_close(scorer(other), model(other), atol=1e-5, rtol=1e-5)


@each_option
def test_bfloat16(options: dict[str, Any]) -> None:
    model, batch = make(**options).eval(), make_batch()
    expected = model(batch)
    with torch.autocast('cpu', torch.bfloat16):
        logits = model(batch)
        found = model.pretraining_losses(batch)
    expected, logits = (
        value if isinstance(value, Tensor) else value.click for value in (expected, logits)
    )
    torch.testing.assert_close(logits.float(), expected, atol=0.03, rtol=0.05)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss, _ in found.values())


@each_option
def test_copies_agree_and_a_reset_starts_over(options: dict[str, Any]) -> None:
    model, batch = make(**options).eval(), make_batch()
    other = make(1, **options).eval()
    assert not same(other(batch), model(batch))
    other.load_state_dict(model.state_dict())
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(twin(batch), model(batch))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.reset_parameters()
    assert all(bool((parameter != 7).all()) for parameter in model.parameters())


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return torch.equal(one.click, other.click)


@pytest.fixture
def told(click_log: HeteroData) -> HeteroData:
    r"""A log with a context of three columns, told in words."""
    clicks, generator = click_log['user', 'clicks', 'item'], torch.Generator().manual_seed(0)
    clicks.edge_label_query = torch.randint(-1, 9, (800, 3), generator=generator)
    clicks.num_query = 9
    return FieldText(vocab_size=100)(click_log)


def from_data(data: HeteroData, **kwargs: Any) -> FLIP:
    torch.manual_seed(0)
    encoder = TextEncoder(data['user', 'clicks', 'item'].num_tokens, 8, 1, 2, 8)
    return FLIP.from_data(data, **{'text_encoder': encoder, 'embedding_dim': 4, **kwargs})


@each_form
def test_sizes_and_noise_are_those_of_the_log(told: HeteroData, options: dict[str, Any]) -> None:
    model, loader = from_data(told, **options).eval(), ExposureLoader(told, 800)
    assert model.fields == loader.fields
    assert model.fields == ('user', 'user_group', 'item', 'item_category', *['query'] * 3)
    batch = next(iter(loader))
    count, starts = model.masked_ids.count, model.masked_ids.table.starts
    items = batch.item.bincount(minlength=15).clamp(min=1)
    assert torch.equal(count[starts['item'] + 1 : starts['item'] + 16], items)
    # Columns of one name share their values.
    queries = batch.sparse[:, 4:]
    terms = queries[queries >= 0].bincount(minlength=9)
    assert torch.equal(count[starts['query'] + 1 : starts['query'] + 10], terms)
    request = loader.request(batch.user[:50], batch.item[:50], query=queries[:50])
    spread(model)
    few = ExposureBatch(*(None if value is None else value[:50] for value in batch))
    torch.testing.assert_close(model(request).click, model(few).click)
    assert all(loss.isfinite() for loss, _ in model.pretraining_losses(batch).values())


def test_the_default_encoder_is_small_and_reads_all_words(told: HeteroData) -> None:
    model = FLIP.from_data(told)
    encoder = model.text.encoder
    assert isinstance(encoder, TextEncoder) and isinstance(model.id_encoder, DeepCross)
    assert (encoder.channels, len(encoder.layers)) == (128, 2)
    assert encoder.num_tokens == told['user', 'clicks', 'item'].num_tokens
    assert model.embedding.weight.std().item() == pytest.approx(1e-4, rel=0.1)


def test_a_log_that_grew_is_told_as_before(told: HeteroData) -> None:
    model = spread(from_data(told, sentence='node').eval()).precompute()
    batch = next(iter(ExposureLoader(told, 50)))
    expected = model(batch).click
    grown = copy.copy(told)
    for name in ('user', 'item'):
        store = grown[name]
        for attribute in ('token', 'token_field', 'group' if name == 'user' else 'category'):
            store[attribute] = torch.cat([store[attribute], store[attribute][:2]])
        store.num_nodes += 2
    model.grow(grown)
    torch.testing.assert_close(model(batch).click, expected, atol=1e-6, rtol=1e-6)
    # Who is new is told by words, but for the id as another.
    last = batch._replace(sparse=batch.sparse.clone())
    last.sparse[:, 0] = 26
    assert model(last).click.isfinite().all()
    count = model.masked_ids.count
    assert len(count) == len(model.masked_ids.bias) == model.embedding.num_embeddings
    assert all(loss.isfinite() for loss, _ in model.pretraining_losses(last).values())
    other = copy.copy(grown)
    other['item'].token = other['item'].token.flip(0)
    with pytest.raises(ValueError, match="another text of 'item': apply the FieldText that was"):
        model.grow(other)


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: make(sentence='words'), ValueError, "'sentence' must be one of 'row', 'node'"),
        (lambda: make(branches='id'), ValueError, "'branches' must be one of 'both', 'ids', "),
        (lambda: make(gate='row'), ValueError, "'gate' must be one of 'global', 'sample'"),
        (lambda: make(alpha='0'), TypeError, "'alpha' must be a number in .* but got '0'"),
        (lambda: make(regularization=-1), ValueError, r"'regularization' must be .* \[0, inf\)"),
        (lambda: make(id_dropout=1), ValueError, r"'id_dropout' must be a number in \[0, 1\)"),
        (lambda: make(embedding_dim=0), ValueError, "'embedding_dim' must be at least 1"),
        (lambda: few_words(), ValueError, 'must know the 40 tokens of the data, but knows 39: '),
        (lambda: make().eval().precompute(), ValueError, "build it with sentence='node'"),
        (
            lambda: make(sentence='node').precompute(),
            ValueError,
            r'FLIP.precompute keeps what a model says: call model.eval\(\) first',
        ),
        (
            lambda: make(sentence='node').precompute(0),
            ValueError,
            "'batch_size' must be at least 1",
        ),
        (lambda: make(branches='ids').contrast(torch.ones(2, 128)), ValueError, "branches='ids'"),
        (lambda: make().recover(make_batch(), 'tag'), ValueError, "'field' must be one of 'user'"),
        (lambda: make().recover(make_batch(), 'user', text='no'), ValueError, "'text' must be one"),
        (lambda: make()(3), TypeError, 'FLIP expects an ExposureBatch or a JoinedBatch, but got'),
        (
            lambda: make().loss(torch.ones(12), make_batch()._replace(label=None)),
            ValueError,
            'batch.label is None',
        ),
        (
            lambda: FLIP.from_data(SyntheticMarket(20, 10, 500, log=False)[0]),
            ValueError,
            'FLIP.from_data reads the text of a log, .* has none: apply FieldText',
        ),
        (lambda: FLIP({'user': 3}, make_tokens()), ValueError, "'num_values' must .* lacks"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()


def few_words() -> FLIP:
    encoder = Words()
    encoder.num_tokens = 39
    return make(text_encoder=encoder)


def test_a_part_that_gained_a_field_is_refused(told: HeteroData) -> None:
    told['item'].color, told['item'].num_color = torch.zeros(15).long(), 1
    with pytest.raises(ValueError, match='found the text of .*: apply FieldText after what adds'):
        FLIP.from_data(told)
