import copy
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_ids, check_integers, check_tensor, check_unicode
from mag.cutoff import Cutoff, first_cutoff, require_not_earlier
from mag.lineage import id_maps, require_same_ids
from mag.loader import ExposureFeatures
from mag.schema import CLICKS, NEIGHBOR_TYPE, SEES, categoricals, require, require_cpu
from mag.transforms._fitted import fitted
from mag.transforms._vocabulary import Pieces, Vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class _Table(NamedTuple):
    r"""What is told of each node of a type, or of each value of a context."""

    #: The ids of the fields that are told, shape :obj:`[N, F]`.
    ids: Tensor
    #: The places of these fields.
    places: tuple[int, ...]
    #: The pieces, shape :obj:`[N, T]`.
    token: Tensor
    #: The place of the field whose value each is part of, shape :obj:`[N, T]`.
    field: Tensor


@functional_transform('field_text')
class FieldText(BaseTransform):
    r"""Writes the categorical fields of each exposure as a sentence, and tells which of its tokens
    are the value of which field, after the `"FLIP: Fine-grained Alignment between ID-based Models
    and Pretrained Language Models for CTR Prediction" <https://arxiv.org/abs/2310.19453>`_ paper
    (functional name: :obj:`field_text`).

    A sentence is joined from that of the user, that of the item, and that of each context, such as
    :obj:`"user is 7 user age is 25-34 item is 50 item title is Star Wars (1977)"`. Users, items and
    values of contexts are tokenized once, and exposures share their pieces.

    .. code-block:: python

        train, val, test = TemporalSplit()(dataset[0])
        text = FieldText(**dataset.field_text()).fit(train)
        train, val, test = text(train), text(val), text(test)

    >>> import torch
    >>> from torch_geometric.data import HeteroData
    >>> edge_index = torch.tensor([[0, 1, 1], [0, 0, 1]])
    >>> data = HeteroData({
    ...     'user': {'num_nodes': 2, 'age': torch.tensor([1, 0]), 'num_age': 2},
    ...     'item': {'num_nodes': 2},
    ...     ('user', 'clicks', 'item'): {'edge_index': edge_index},
    ... })
    >>> data
    HeteroData(
      user={
        num_nodes=2,
        age=[2],
        num_age=2,
      },
      item={ num_nodes=2 },
      (user, clicks, item)={ edge_index=[2, 3] }
    )
    >>> titles = ['Heat (1995)', 'Alien']
    >>> text = FieldText(names={'age': ['young', 'old']}, descriptions={'item': {'title': titles}})
    >>> text.fit(data)(data)
    HeteroData(
      user={
        num_nodes=2,
        age=[2],
        num_age=2,
        token=[2, 7],
        token_field=[2, 7],
      },
      item={
        num_nodes=2,
        title=[2],
        num_title=2,
        token=[2, 10],
        token_field=[2, 10],
      },
      (user, clicks, item)={
        edge_index=[2, 3],
        token={},
        token_field={},
        token_names=[4],
        token_special={
          cls=2,
          sep=3,
          mask=4,
          pad=0,
        },
        num_tokens=76,
      }
    )
    >>> text.sentence(user=1, item=0)
    'user is 1 user age is young item is 0 item title is heat ( 1995 )'

    It adds, read by :func:`mag.schema.tokens`,

    * :obj:`data['user'].token` and :obj:`data['item'].token`, int32 of shape :obj:`[N, T]`: the
      pieces of the part of the sentence that tells of each node, :obj:`-1` for padding; and
      :obj:`token_field`, int16 of that shape: the place among the fields, in the order of
      :attr:`ExposureFeatures.fields <mag.loader.ExposureFeatures>`, of the one whose value a piece
      is part of, :obj:`-1` for the words around values;
    * among the clicks :obj:`token` and :obj:`token_field`, dictionaries of such tables for each
      context, with a row a value; :obj:`token_names`, the names of the fields;
      :obj:`token_special`, the ids of four tokens; and :obj:`num_tokens`, the size of the
      vocabulary;
    * each of the :obj:`descriptions` as one more categorical of users or items, the codes of its
      distinct texts in the order of the nodes, so that a longer list keeps the codes of a shorter.

    What has no value, :obj:`-1` or an empty text, is not told, and nothing is told of an unknown
    user or item. A sentence that is longer than :obj:`max_length` is cut there; what is left of the
    field that is cut belongs to no field, so that no model masks a half of it. A text such as
    :obj:`"[MASK]"` is read as the word, and never as the token.

    No time says when a text was written: descriptions have to be what was known when a node
    appeared, such as a title. The vocabulary is learned from the users, items and values that
    occur in the part it is fitted on alone, so that no later one shapes it.

    Args:
        tokenizer (tokenizers.Tokenizer, PreTrainedTokenizerFast or str, optional): A tokenizer that
            was trained already, or the path of a :obj:`tokenizer.json` or of its folder; nothing is
            downloaded. By default a WordPiece is trained on the part it is fitted on.
            (default: :obj:`None`)
        names (Mapping[str, Sequence[str]], optional): The name of each code of a categorical
            attribute, such as :attr:`ClickDataset.names <mag.datasets.ClickDataset>`; the code
            itself is told of others. (default: :obj:`None`)
        raw_ids (Mapping[str, Sequence], optional): What the ids of :obj:`"user"` and :obj:`"item"`
            are told as; by default their places. (default: :obj:`None`)
        descriptions (Mapping[str, Mapping[str, Sequence]], optional): For :obj:`"user"` and
            :obj:`"item"`, by name, what is written about each node, in node order: a text,
            a list of texts or :obj:`None`. (default: :obj:`None`)
        without (Sequence[str], optional): Fields that are taken out of the graph, such as
            :obj:`"item_year"` where the title tells the year. (default: :obj:`()`)
        template (str, optional): How a field is told. (default: :obj:`"{field} is {value}"`)
        max_length (int, optional): The most pieces of the sentence of a user, an item or a context.
            (default: :obj:`100`)
        vocab_size (int, optional): The most tokens of a vocabulary that is trained.
            (default: :obj:`4096`)

    Raises:
        FileNotFoundError: If there is no such tokenizer.
        ModuleNotFoundError: If :obj:`tokenizers` is not installed.
        TypeError: If an argument has another type.
        ValueError: If an argument is out of range, texts are not one a node or a code, a
            description is empty or has the name of an attribute, or the tokenizer lacks a token.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        names: Mapping[str, Sequence[str]] | None = None,
        raw_ids: Mapping[str, Sequence[Any]] | None = None,
        descriptions: Mapping[str, Mapping[str, Sequence[Any]]] | None = None,
        without: Sequence[str] = (),
        template: str = '{field} is {value}',
        max_length: int = 100,
        vocab_size: int = 4096,
    ) -> None:
        if not isinstance(template, str):
            raise TypeError(f"'template' must be a str, but got {template!r}.")
        if template.count('{field}') != 1 or template.count('{value}') != 1:
            raise ValueError(
                f"'template' must hold {{field}} and {{value}} once each, as in "
                f"'{{field}} is {{value}}', but got {template!r}."
            )
        if not isinstance(without, Sequence) or isinstance(without, str):
            raise TypeError(
                f"'without' must be a sequence of fields such as ('item_year',), but got "
                f'{without!r}.'
            )
        check_integers(1, max_length=max_length)
        check_integers(64, vocab_size=vocab_size)
        self.names = _texts_by_name('names', names)
        self.raw_ids = _texts_by_name('raw_ids', raw_ids)
        self.descriptions = {
            node_type: _texts_by_name(f'descriptions[{node_type!r}]', texts)
            for node_type, texts in _mapping('descriptions', descriptions).items()
        }
        self._coded = {
            node_type: {name: _coded(texts) for name, texts in texts_of.items()}
            for node_type, texts_of in self.descriptions.items()
        }
        for name, given in (('raw_ids', self.raw_ids), ('descriptions', self.descriptions)):
            others = [key for key in given if key not in NEIGHBOR_TYPE]
            if others:
                raise ValueError(f"'{name}' must be of 'user' and 'item', but got {others[0]!r}.")
        self.without, self.template = tuple(without), template
        self.max_length, self.vocab_size = max_length, vocab_size
        self._given = None if tokenizer is None else Vocabulary.of(tokenizer)
        self._learned = self._given
        self._cutoff: Cutoff | None = None
        self._id_maps: dict[str, str] = {}
        self._pieces: dict[str, Pieces] = {}
        self._tables: dict[str, _Table] = {}

    @property
    def tokenizer(self) -> 'Tokenizer':
        r"""The tokenizer, without padding, truncation and tokens around a sentence.

        Raises:
            ValueError: If none was given, and none trained yet.
        """
        return self._vocabulary.tokenizer

    @property
    def _vocabulary(self) -> Vocabulary:
        if self._learned is None:
            raise ValueError('FieldText has no tokenizer yet: fit it on a training part.')
        return self._learned

    def fit(self, data: HeteroData) -> 'FieldText':
        r"""Trains a tokenizer, where none was given, on what is told of the users, items and values
        of contexts that occur in a training part.

        Args:
            data (HeteroData): The part.

        Raises:
            ValueError: If texts are not those of this graph, or nothing occurs in the part.
        """
        features = self._features(copy.copy(data))
        texts = {name: self._texts(name, features) for name in features.fields}
        if self._given is None:
            self._learned = Vocabulary.trained(
                self._sentences(data, features, texts), self.vocab_size
            )
        self._pieces, self._tables = {}, {}
        self._cutoff = first_cutoff(data, 'FieldText')
        self._id_maps = id_maps(data)
        self._write(features)
        return self

    def forward(self, data: HeteroData) -> HeteroData:
        if self._cutoff is None:
            return copy.copy(self).fit(data).forward(data)
        features = self._features(data)
        require_same_ids('FieldText was fitted on', self._id_maps, id_maps(data))
        require_not_earlier(data, 'FieldText', self._cutoff)
        self._write(features)
        for node_type in NEIGHBOR_TYPE:
            table = self._tables[node_type]
            data[node_type].token, data[node_type].token_field = table.token, table.field
        clicks, tables = data[CLICKS], {name: self._tables[name] for name in features.names}
        clicks.token = {name: table.token for name, table in tables.items()}
        clicks.token_field = {name: table.field for name, table in tables.items()}
        clicks.token_names = list(features.fields)
        clicks.token_special = dict(self._vocabulary.special)
        clicks.num_tokens = self.tokenizer.get_vocab_size()
        return data

    def sentence(self, user: int, item: int, **contexts: int | Sequence[int]) -> str:
        r"""The sentence of an exposure as a model reads it, without special tokens.

        Args:
            user (int): The user, :obj:`-1` for an unknown one.
            item (int): The item, :obj:`-1` for an unknown one.
            **contexts (int or Sequence[int]): The value of each context that is told, or a value a
                column.

        Raises:
            IndexError: If there is no such user, item or value.
            ValueError: If nothing was fitted, or the log has no such context.
        """
        given = {'user': user, 'item': item, **contexts}
        for name in given:
            if name not in self._tables:
                raise ValueError(
                    f'FieldText tells of {list(self._tables) or "nothing before it is fitted"}, '
                    f'but was asked for {name!r}.'
                )
        pieces: list[int] = []
        for name in (name for name in self._tables if name in given):
            token, row = self._tables[name].token, torch.as_tensor(given[name]).view(-1)
            check_tensor('FieldText.sentence', name, row, ('F',), 'integers')
            check_ids('FieldText.sentence', f'values of {name!r}', row, len(token), -1)
            told = token[row[row >= 0]]
            pieces += told[told >= 0].tolist()
        return self.tokenizer.decode(pieces)

    def fitted_state(self) -> dict[str, Any]:
        r"""What was fitted, as values of JSON, for :meth:`load_fitted_state`.

        Raises:
            ValueError: If nothing was.
        """
        return {
            'tokenizer': self.tokenizer.to_str(),
            'special': self._vocabulary.special,
            'cutoff': self._cutoff,
            'id_maps': self._id_maps,
        }

    def load_fitted_state(self, values: Mapping[str, Any]) -> None:
        r"""Takes what :meth:`fitted_state` gave for a transform with the same arguments."""
        self._learned = Vocabulary.from_text(values['tokenizer'], values['special'])
        self._cutoff = None if values['cutoff'] is None else Cutoff(*values['cutoff'])
        self._id_maps = dict(values['id_maps'])
        self._pieces, self._tables = {}, {}

    def _features(self, data: HeteroData) -> ExposureFeatures:
        r"""The fields of a graph, to which the descriptions are added."""
        require(data, 'FieldText', 'edge_index')
        require_cpu(data, 'FieldText')
        for node_type, num_nodes in ((name, data[name].num_nodes) for name in NEIGHBOR_TYPE):
            store = data[node_type]
            texts_of = self.descriptions.get(node_type, {})
            for name, texts in texts_of.items():
                _check_number(f"descriptions['{node_type}']['{name}']", texts, num_nodes)
                if name in store or f'num_{name}' in store:
                    raise ValueError(
                        f'FieldText was given the description {name!r} of {node_type}s, but '
                        f"data['{node_type}'] has an attribute of that name: give it another."
                    )
                values, codes = self._coded[node_type][name]
                if not values:
                    raise ValueError(
                        f'FieldText was given the description {name!r} of {node_type}s, but all of '
                        f'its texts are empty: leave it out.'
                    )
                store[name], store[f'num_{name}'] = codes, len(values)
            if node_type in self.raw_ids:
                _check_number(f"raw_ids['{node_type}']", self.raw_ids[node_type], num_nodes)
        stores = {f'{name}_': (data[name], '') for name in NEIGHBOR_TYPE}
        stores[''] = (data[CLICKS], 'edge_label_')
        known = {
            f'{field}{name}': (store, prefix, name)
            for field, (store, prefix) in stores.items()
            for name in categoricals(store, prefix)
        }
        for field in self.without:
            if field not in known:
                raise ValueError(
                    f"'without' must name fields among {sorted(known)}, but got {field!r}."
                )
            store, prefix, name = known[field]
            del store[f'{prefix}{name}'], store[f'num_{name}']
        return ExposureFeatures(data, caller='FieldText')

    def _attribute_texts(self, field: str) -> list[str] | None:
        r"""How the values of a field are named, if something says it."""
        if field in self.raw_ids:
            return self.raw_ids[field]
        for node_type in NEIGHBOR_TYPE:
            name = field.removeprefix(f'{node_type}_')
            if name != field:
                described = self._coded.get(node_type, {})
                return described[name][0] if name in described else self.names.get(name)
        return self.names.get(field)

    def _texts(self, field: str, features: ExposureFeatures) -> list[str]:
        r"""How each value of a field is told."""
        number = features.num_values[field]
        texts = self._attribute_texts(field)
        if texts is None:
            return list(map(str, range(number)))
        if len(texts) < number:
            raise ValueError(
                f'FieldText needs a name for each of the {number} values of {field!r}, but got '
                f'{len(texts)}.'
            )
        return texts[:number]

    def _words(self, field: str) -> tuple[str, str]:
        r"""What is written before and after the values of a field."""
        before, after = self.template.split('{value}')
        words = field.replace('_', ' ')
        return before.replace('{field}', words), after.replace('{field}', words)

    def _sentences(
        self, data: HeteroData, features: ExposureFeatures, texts: Mapping[str, list[str]]
    ) -> list[str]:
        r"""What is told of the users, items and values of contexts that occur in a part."""
        edges = [data[CLICKS].edge_index, data[CLICKS].get('edge_label_index')]
        edges.append(data[SEES].edge_index if SEES in data.edge_types else None)
        index = torch.cat([edge for edge in edges if edge is not None], dim=1)
        sentences = []
        for name, ids, places in self._sources(features):
            if name in NEIGHBOR_TYPE:
                occurs = index[list(NEIGHBOR_TYPE).index(name)].unique()
            else:
                occurs = features.exposures.context(name).unique()
                occurs = occurs[occurs >= 0]
            sentence: Any = ''
            for column, place in enumerate(places):
                field = features.fields[place]
                before, after = self._words(field)
                told = [f'{before}{text}{after} ' if text else '' for text in texts[field]]
                # Which -1, for none, is the place of.
                told.append('')
                sentence = sentence + np.array(told, dtype=object)[ids[occurs, column].numpy()]
            sentences += np.atleast_1d(sentence).tolist()
        if index.size(1) == 0:
            raise ValueError(
                "FieldText learns words from the users and items of a part's clicks and exposures, "
                'but it has none: fit it on a training part, or pass a tokenizer.'
            )
        return sentences

    def _sources(self, features: ExposureFeatures) -> list[tuple[str, Tensor, tuple[int, ...]]]:
        r"""By name, the ids of the fields that are told of each user, item and value of a context,
        and the places of these fields."""
        fields, sources, first = features.fields, [], 0
        for name, ids in features.sparse.items():
            sources.append((name, ids, tuple(range(first, first + ids.size(1)))))
            first += ids.size(1)
        for name in features.names:
            ids = torch.arange(features.num_values[name]).unsqueeze(1)
            sources.append((name, ids, (fields.index(name),)))
        return sources

    def _write(self, features: ExposureFeatures) -> None:
        r"""Makes the tables of a graph that are not made yet."""
        for name, ids, places in self._sources(features):
            table = self._tables.get(name)
            # All parts of a log share them.
            if table is None or table.places != places or not torch.equal(table.ids, ids):
                names = [features.fields[place] for place in places]
                pieces = [self._encoded(field, features) for field in names]
                token, field = _joined(ids, places, pieces, self.max_length)
                self._tables[name] = _Table(ids, places, token, field)

    def _encoded(self, field: str, features: ExposureFeatures) -> Pieces:
        pieces = self._pieces.get(field)
        if pieces is None or pieces.length.numel() != features.num_values[field]:
            before, after = self._words(field)
            texts = self._texts(field, features)
            pieces = self._pieces[field] = self._vocabulary.encode(before, texts, after)
        return pieces

    def __repr__(self) -> str:
        texts = (self.names, self.raw_ids, self.descriptions)
        learned = ''
        if self._learned is not None:
            learned = f', {fitted((), f"{self.tokenizer.to_str()} {self._cutoff}")}'
        return (
            f'{self.__class__.__name__}(texts={zlib.crc32(repr(texts).encode()):08x}, '
            f'without={self.without}, template={self.template!r}, max_length={self.max_length}, '
            f'vocab_size={self.vocab_size}{learned})'
        )


def _joined(
    ids: Tensor, places: Sequence[int], pieces: Sequence[Pieces], max_length: int
) -> tuple[Tensor, Tensor]:
    r"""The pieces of several fields, one after the other, as a table of a row each.

    Args:
        ids: The value of each field, shape :obj:`[N, F]`, :obj:`-1` for none.
        places: The place of each field.
        pieces: The pieces of all values of each field.
        max_length: Where a row is cut.

    Returns:
        The pieces and the field of each, shape :obj:`[N, T]`.
    """
    lengths = [torch.cat([p.length, p.length.new_zeros(1)])[i] for p, i in zip(pieces, ids.t())]
    total = torch.stack(lengths, dim=1).cumsum(1)
    width = min(max_length, int(total[:, -1].max()) if len(ids) else 0)
    token = torch.full((len(ids), width), -1, dtype=torch.int32)
    field = torch.full((len(ids), width), -1, dtype=torch.int16)
    for column, (place, part, length) in enumerate(zip(places, pieces, lengths)):
        first = total[:, column] - length
        kept = length.minimum((width - first).clamp(min=0))
        row = torch.arange(len(ids)).repeat_interleave(kept)
        step = torch.arange(row.numel()) - (kept.cumsum(0) - kept)[row]
        start = torch.cat([part.length.cumsum(0) - part.length, part.length.new_zeros(1)])
        source = start[ids[row, column]] + step
        token[row, first[row] + step] = part.token[source]
        is_value = part.is_value[source] & (kept == length)[row]
        field[row, first[row] + step] = torch.where(is_value, place, -1).to(field.dtype)
    return token, field


def _coded(texts: Sequence[str]) -> tuple[list[str], Tensor]:
    r"""The distinct texts in the order in which they first come, and which of them each is; an
    empty one is none of them, :obj:`-1`."""
    values = list(dict.fromkeys(filter(None, texts)))
    codes = {text: code for code, text in enumerate(values)}
    return values, torch.tensor([codes.get(text, -1) for text in texts])


def _mapping(name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"'{name}' must be a dictionary of texts by name, but got {value!r}.")
    return value


def _texts_by_name(name: str, value: Any) -> dict[str, list[str]]:
    texts_of = {}
    for key, values in _mapping(name, value).items():
        what = f'{name}[{key!r}]'
        if not isinstance(values, Iterable) or isinstance(values, (str, Mapping)):
            raise TypeError(f"'{what}' must be a sequence of texts, but got {values!r}.")
        texts_of[key] = [_text(text) for text in values]
        check_unicode(what, texts_of[key])
    return texts_of


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple, np.ndarray)):
        return ', '.join(map(str, value))
    # What a table has where there is nothing.
    return '' if value is None or value != value else str(value)


def _check_number(name: str, texts: Sequence[str], number: int) -> None:
    if len(texts) != number:
        raise ValueError(f"'{name}' must hold a text for each of {number}, but got {len(texts)}.")
