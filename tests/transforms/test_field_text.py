import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureFeatures
from mag.schema import CLICKS, tokens
from mag.transforms import FieldText, TemporalSplit

TITLES = ['Heat', 'Alien', '[MASK] Jaws', 'Heat']
SPECIAL = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']


def shop() -> HeteroData:
    r"""Three users with an age, four items, and exposures with a device and two terms."""
    data = HeteroData()
    data['user'].num_nodes = 3
    data['user'].age, data['user'].num_age = torch.tensor([1, -1, 0]), 2
    data['item'].num_nodes = 4
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.tensor([[0, 1, 2, 0, 1, 2], [0, 1, 2, 3, 0, 1]])
    clicks.edge_label = torch.ones(6)
    clicks.edge_label_time = torch.arange(6)
    clicks.edge_label_device, clicks.num_device = torch.tensor([0, 1, 0, -1, 1, 0]), 2
    clicks.edge_label_term = torch.tensor([[0, 1], [2, -1], [1, 0], [-1, -1], [2, 0], [0, -1]])
    clicks.num_term = 3
    clicks.edge_index, clicks.time = clicks.edge_label_index, clicks.edge_label_time
    return data


def text(**arguments: Any) -> FieldText:
    given: dict[str, Any] = {
        'names': {'age': ['young', 'very old'], 'device': ['phone', 'big screen'], 'behavior': []},
        'raw_ids': {'user': [10, 11, 12]},
        'descriptions': {'item': {'title': TITLES, 'genres': [['Crime', 'Drama'], [], None, '']}},
    }
    return FieldText(**{**given, **arguments})


def words(tokenizer: Tokenizer, token: Tensor, field: Tensor) -> list[list[tuple[str | None, int]]]:
    r"""The pieces of each row, and the field of each."""
    return [
        [(tokenizer.id_to_token(t), f) for t, f in zip(*row) if t >= 0]
        for row in zip(token.tolist(), field.tolist())
    ]


def plainly(tokenizer: Tokenizer, told: list[tuple[str, str, int]]) -> list[tuple[str, int]]:
    r"""The same from the fields one by one: words, value, and place."""
    pieces = []
    for name, value, place in told:
        encode = tokenizer.encode
        pieces += [(piece, -1) for piece in encode(f'{name} is', add_special_tokens=False).tokens]
        pieces += [(piece, place) for piece in encode(value, add_special_tokens=False).tokens]
    return pieces


def test_tables_hold_the_pieces_of_each_field() -> None:
    data = shop()
    transform = text().fit(data)
    out = transform(data)
    tokenizer = transform.tokenizer
    fields = ('user', 'user_age', 'item', 'item_genres', 'item_title', 'device', 'term', 'term')
    read = tokens(out, 'Reader')
    assert read.fields == fields == ExposureFeatures(out).fields
    assert read.num_tokens == tokenizer.get_vocab_size()
    assert read.special == {
        name: tokenizer.token_to_id(f'[{name.upper()}]') for name in read.special
    }
    assert [source.column for source in read.sources] == [0, 2, 5, 6, 7]
    user, item, device, *terms = (
        words(tokenizer, source.token, source.field) for source in read.sources
    )
    # Nothing is told of what has no value, and of none.
    told: list[list[tuple[str, str, int]]] = [
        [],
        [('user', '10', 0), ('user age', 'very old', 1)],
        [('user', '11', 0)],
        [('user', '12', 0), ('user age', 'young', 1)],
    ]
    assert user == [plainly(tokenizer, row) for row in told]
    told = [
        [],
        [('item', '0', 2), ('item genres', 'Crime, Drama', 3), ('item title', 'Heat', 4)],
        [('item', '1', 2), ('item title', 'Alien', 4)],
        [('item', '2', 2), ('item title', '[MASK] Jaws', 4)],
        [('item', '3', 2), ('item title', 'Heat', 4)],
    ]
    assert item == [plainly(tokenizer, row) for row in told]
    told = [[], [('device', 'phone', 5)], [('device', 'big screen', 5)]]
    assert device == [plainly(tokenizer, row) for row in told]
    for place, term in zip((6, 7), terms):
        told = [[], *([('term', str(value), place)] for value in range(3))]
        assert term == [plainly(tokenizer, row) for row in told]
    assert read.sources[0].token.dtype == torch.int32
    assert read.sources[0].field.dtype == torch.int16


def test_descriptions_are_categoricals() -> None:
    data = shop()
    out = text()(data)
    assert out['item'].title.tolist() == [0, 1, 2, 0] and out['item'].num_title == 3
    assert out['item'].genres.tolist() == [0, -1, -1, -1] and out['item'].num_genres == 1
    # The input stays as it was.
    assert 'title' not in data['item'] and 'token' not in data['user']
    assert 'token' not in data[CLICKS]
    # A longer list keeps the codes of a shorter one.
    longer = shop()
    longer['item'].num_nodes = 6
    titles = {'item': {'title': [*TITLES, 'Alien', 'Ran']}}
    assert text(descriptions=titles)(longer)['item'].title.tolist() == [0, 1, 2, 0, 1, 3]


def test_fields_can_be_left_out() -> None:
    transform = text(without=('item_title', 'device', 'term', 'user_age'))
    out = transform(shop())
    assert ExposureFeatures(out).fields == ('user', 'item', 'item_genres')
    assert tokens(out, 'Reader').fields == ('user', 'item', 'item_genres')
    assert 'num_device' not in out[CLICKS] and 'edge_label_device' not in out[CLICKS]


def test_words_that_look_like_special_tokens_are_words() -> None:
    out = text().fit(shop())(shop())
    special = torch.tensor(list(out[CLICKS].token_special.values()))
    for source in tokens(out, 'Reader').sources:
        assert not torch.isin(source.token, special).any()


def test_a_tokenizer_that_knows_special_tokens_as_words() -> None:
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, 'item', 'title', 'is'])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, '[UNK]'))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    out = FieldText(tokenizer, descriptions={'item': {'title': ['[MASK] a', 'b', '[PAD]', '']}})(
        shop()
    )
    unknown, item, title, be = 1, 5, 6, 7
    assert out['item'].token[:, :3].tolist() == [[item, be, unknown]] * 4
    assert out['item'].token[:, 3:].tolist() == [
        [item, title, be, unknown],
        [item, title, be, unknown],
        [item, title, be, -1],
        [-1, -1, -1, -1],
    ]


def test_a_field_that_is_cut_is_no_field() -> None:
    data = shop()
    whole = text().fit(data)
    part = text(tokenizer=whole.tokenizer, max_length=6)(data)
    full = whole(data)
    for name in ('user', 'item'):
        token, field = full[name].token, full[name].token_field
        assert torch.equal(part[name].token, token[:, :6])
        for row, kept in enumerate(part[name].token_field):
            cut = set(field[row, 6:].tolist()) - {-1}
            expected = [-1 if f in cut else f for f in field[row, :6].tolist()]
            assert kept.tolist() == expected, (name, row)
    # 'user age is very old' was cut between the two words.
    assert part['user'].token_field[0].tolist() == [-1, -1, 0, -1, -1, -1]


def test_sentence() -> None:
    transform = text().fit(shop())
    sentence = transform.sentence(user=0, item=0, device=1, term=[2, -1])
    assert sentence == (
        'user is 10 user age is very old item is 0 item genres is crime, drama '
        'item title is heat device is big screen term is 2'
    )
    # In the order of the model's fields, whatever that of the arguments.
    assert transform.sentence(term=[2, -1], device=1, item=0, user=0) == sentence
    assert transform.sentence(-1, 2) == 'item is 2 item title is [ mask ] jaws'
    other = text(template='the {field}: {value};').fit(shop())
    assert other.sentence(1, 1) == 'the user : 11 ; the item : 1 ; the item title : alien ;'


def test_parts_share_tables_and_later_nodes_shape_no_vocabulary() -> None:
    data = shop()
    train, val, test = TemporalSplit(0.2, 0.5, 0.8, num_windows=1, keep_cold=True)(data)
    # Item 3 is first shown in validation.
    titles = [['Heat', 'Alien', 'Jaws', last] for last in ('Heat', 'zqx zqx zqx zqx')]
    one, other = (text(descriptions={'item': {'title': t}}).fit(train) for t in titles)
    assert one.tokenizer.get_vocab() == other.tokenizer.get_vocab()
    out = [other(part) for part in (train, val, test)]
    assert all(part['item'].token is out[0]['item'].token for part in out)
    with pytest.raises(
        ValueError, match='FieldText was fitted as of time .*, but the first cutoff'
    ):
        text().fit(val)(train)
    with pytest.raises(ValueError, match=r"TemporalSplit found data\['user'\].token"):
        TemporalSplit()(text()(data))


def test_fitted_state_survives_json() -> None:
    data = shop()
    one, other = text().fit(data), text()
    with pytest.raises(ValueError, match='no tokenizer yet'):
        other.fitted_state()
    other.load_fitted_state(json.loads(json.dumps(one.fitted_state())))
    assert repr(other) == repr(one)
    expected, out = tokens(one(data), 'Test'), tokens(other(data), 'Test')
    assert out.special == expected.special and out.num_tokens == expected.num_tokens
    for source, same in zip(out.sources, expected.sources, strict=True):
        assert torch.equal(source.token, same.token) and torch.equal(source.field, same.field)


def test_what_was_fitted_shows_in_repr() -> None:
    unfitted, fitted = text(), text().fit(shop())
    assert repr(unfitted) == repr(text()) != repr(fitted) == repr(text().fit(shop()))
    assert repr(text(descriptions={})) != repr(unfitted) != repr(text(max_length=5))
    # Called unfitted, it stays so.
    unfitted(shop())
    with pytest.raises(ValueError, match='no tokenizer yet'):
        _ = unfitted.tokenizer


def test_each_fit_trains_the_same_vocabulary() -> None:
    data = HeteroData()
    data['user'].num_nodes = data['item'].num_nodes = 400
    data[CLICKS].edge_index = torch.arange(400).expand(2, -1)
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(97, 105, (400, 12), generator=generator).tolist()
    titles = {'title': [''.join(map(chr, row)) for row in letters]}
    # The library's trainer numbers pieces by a hash that is another for each table.
    first, *others = (
        FieldText(descriptions={'item': titles}, vocab_size=500).fit(data) for _ in range(4)
    )
    for other in others:
        assert other.tokenizer.to_str() == first.tokenizer.to_str()
        assert repr(other) == repr(first)


def test_a_script_of_many_characters_leaves_room_for_words() -> None:
    data = shop()
    titles = [
        ''.join(map(chr, range(start, start + 200))) for start in (19968, 20500, 21000, 23000)
    ]
    transform = text(descriptions={'item': {'title': titles}}, vocab_size=128).fit(data)
    vocabulary = transform.tokenizer.get_vocab()
    assert len(vocabulary) <= 128 and 'title' in vocabulary


def test_given_tokenizers(tmp_path: Path) -> None:
    data = shop()
    trained = text().fit(data)
    whole = trained.tokenizer.to_str()
    expected = trained(data)
    trained.tokenizer.save(str(tmp_path / 'tokenizer.json'))
    padded = Tokenizer.from_str(whole)
    padded.enable_padding(length=50)
    padded.enable_truncation(2)
    for given in (tmp_path, str(tmp_path / 'tokenizer.json'), padded):
        out = text(tokenizer=given)(data)
        assert torch.equal(out['item'].token, expected['item'].token)
        assert out[CLICKS].token_special == expected[CLICKS].token_special
    # What was given stays as it was.
    assert padded.padding is not None and padded.truncation is not None


def test_bad_input(tmp_path: Path) -> None:
    data = shop()
    (tmp_path / 'tokenizer.json').write_text('{')
    bare = Tokenizer(models.WordLevel({'a': 0}, 'a'))
    for arguments, error, message in (
        ({'template': 3}, TypeError, "'template' must be a str, but got 3"),
        ({'template': 'is {value}'}, ValueError, r"once each, as in .*, but got 'is \{value\}'"),
        ({'without': 'item'}, TypeError, "a sequence of fields .*, but got 'item'"),
        ({'max_length': 0}, ValueError, "'max_length' must be at least 1, but got 0"),
        ({'vocab_size': 8.0}, TypeError, "'vocab_size' must be an integer, but got 8.0"),
        ({'names': ['a']}, TypeError, r"'names' must be a dictionary .*, but got \['a'\]"),
        ({'names': {'age': 'a'}}, TypeError, r"'names\['age'\]' must be a sequence .* got 'a'"),
        ({'raw_ids': {'query': []}}, ValueError, "'raw_ids' must be of .*, but got 'query'"),
        ({'descriptions': {'shop': {}}}, ValueError, "'descriptions' must be .* got 'shop'"),
        (
            {'descriptions': {'item': {'title': ['a', '\ud800']}}},
            ValueError,
            r"'descriptions\['item'\]\['title'\]' must be Unicode, but that of place 1 is not",
        ),
        ({'tokenizer': 3}, TypeError, "'tokenizer' must be a tokenizers.Tokenizer.* but got int"),
        ({'tokenizer': tmp_path / 'no'}, FileNotFoundError, "there is no file '.*no'"),
        ({'tokenizer': tmp_path}, ValueError, r"tokenizer.json' holds no tokenizer \("),
        ({'tokenizer': bare}, ValueError, r'must have the token \[CLS\] or <s>, but has none'),
    ):
        with pytest.raises(error, match=message):
            text(**arguments)
    for arguments, message in (
        ({'names': {'age': ['young']}}, "each of the 2 values of 'user_age', but got 1"),
        ({'raw_ids': {'user': [1, 2]}}, r"'raw_ids\['user'\]' must hold a text .* 3, but got 2"),
        ({'descriptions': {'item': {'title': ['a']}}}, 'a text for each of 4, but got 1'),
        ({'descriptions': {'item': {'title': ['', None, '', '']}}}, 'all of its texts are empty'),
        ({'descriptions': {'user': {'age': ['a'] * 3}}}, 'an attribute of that name'),
        ({'without': ['item']}, "'without' must name fields among .*, but got 'item'"),
    ):
        with pytest.raises(ValueError, match=message):
            text(**arguments).fit(data)
    transform = text().fit(data)
    for arguments, error, message in (
        ({'user': 3, 'item': 0}, IndexError, "values of 'user' from 3 to 3, but .* -1 to 2"),
        ({'user': 0, 'item': 0.5}, TypeError, "'item' of integers, but got torch.float32"),
        ({'user': 0, 'item': 0, 'page': 1}, ValueError, "but was asked for 'page'"),
    ):
        with pytest.raises(error, match=message):
            transform.sentence(**arguments)
    empty = shop()
    for name in ('edge_index', 'edge_label_index'):
        empty[CLICKS][name] = torch.empty(2, 0, dtype=torch.long)
    for name in ('time', 'edge_label', 'edge_label_time', 'edge_label_device', 'edge_label_term'):
        empty[CLICKS][name] = empty[CLICKS][name][:0]
    with pytest.raises(ValueError, match='but it has none: fit it on a training part'):
        text().fit(empty)
    with pytest.raises(ValueError, match='Reader reads the text of a log, but .* apply FieldText'):
        tokens(data, 'Reader')
    with pytest.raises(TypeError, match='FieldText expects a HeteroData .* got str'):
        text()('data')


def test_reader_refuses_what_is_no_text_of_this_log() -> None:
    for change, error, message in (
        (lambda out: out['user'].update(token=out['user'].token[:2]), ValueError, r'\[3, T\]'),
        (lambda out: out['item'].update(token=out['item'].token.float()), TypeError, 'integers'),
        (lambda out: out['item'].update(token=out['item'].token + 10**6), IndexError, 'from '),
        (lambda out: out['user'].update(token_field=out['user'].token_field + 99), IndexError, ''),
    ):
        out = text()(shop())
        change(out)
        with pytest.raises(error, match=f'Reader .*{message}'):
            tokens(out, 'Reader')
