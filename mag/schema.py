r"""The data contract: names that datasets write and that transforms, loaders and models read."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.typing import EdgeType

from mag.checks import check_ids, check_tensor, check_values

CLICKS = ('user', 'clicks', 'item')
REVERSE_CLICKS = ('item', 'rev_clicks', 'user')
# Exposures that a part may read, clicked or not.
SEES = ('user', 'sees', 'item')
# By the type of a node, that of the nodes it shares clicks with.
NEIGHBOR_TYPE = {'user': 'item', 'item': 'user'}
MACRO = {'user': 'macro_user', 'item': 'macro_item'}
# By the type of the child: the edges by which PathLoader joins it to its precursor.
TO_PRECURSOR = {'user': CLICKS, 'item': REVERSE_CLICKS}
# What follows an exposure, and may be counted beside it, is no feature.
OUTCOMES = ('behavior', 'conversion')


def require(data: Any, caller: str, *attributes: str) -> None:
    r"""Raises unless :obj:`data` is a micro graph whose clicks carry all :obj:`attributes`.

    Args:
        data: What the caller was given.
        caller: Whose name the message begins with.
        *attributes: Attribute names of :obj:`data['user', 'clicks', 'item']`.

    Raises:
        TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`, or a time or an
            index holds no integers.
        ValueError: If the clicks, a node count or an attribute is missing, or has the wrong shape.
        IndexError: If a click or an exposure names a node that does not exist.
    """
    if not isinstance(data, HeteroData):
        raise TypeError(
            f'{caller} expects a HeteroData with the edge type {CLICKS}, '
            f'but got {type(data).__name__}.'
        )
    if CLICKS not in data.edge_types:
        raise ValueError(
            f'{caller} expects the edge type {CLICKS}, but the data has '
            f'{data.edge_types or "none"}.'
        )
    clicks = data[CLICKS]
    missing = [name for name in attributes if name not in clicks]
    if missing:
        raise ValueError(
            f'{caller} needs data{list(CLICKS)} to have {missing}, but it has '
            f'{list(clicks.keys())}.'
        )
    for node_type in NEIGHBOR_TYPE:
        if node_type not in data.node_types or 'num_nodes' not in data[node_type]:
            raise ValueError(f"{caller} needs data['{node_type}'].num_nodes to be set.")
    for name in ('edge_index', 'edge_label_index'):
        if name in attributes:
            check_tensor(caller, name, clicks[name], (2, 'num_edges'), torch.long)
            for node_type, ids in zip(NEIGHBOR_TYPE, clicks[name], strict=True):
                check_ids(caller, f"{node_type} ids of '{name}'", ids, data[node_type].num_nodes)
    for name, index, kind in (
        # A float cannot hold unix seconds exactly.
        ('time', 'edge_index', 'int64 seconds'),
        ('edge_label_time', 'edge_label_index', 'int64 seconds'),
        ('edge_label_settled', 'edge_label_index', 'int64 seconds'),
        ('edge_label', 'edge_label_index', 'numbers'),
    ):
        if name in attributes and index in attributes:
            check_tensor(caller, name, clicks[name], (clicks[index].size(1),), kind)
    if {'edge_label', 'edge_label_index'} <= set(attributes):
        label = clicks.edge_label
        is_good = (label == 0) | (label == 1)
        check_values(caller, 'edge_label', label, is_good, '1 for a click and 0 for none')


def require_cpu(data: HeteroData, caller: str) -> None:
    r"""Raises a :class:`ValueError` if the clicks of :obj:`data` are not in main memory."""
    device = data[CLICKS].edge_index.device
    if device.type != 'cpu':
        raise ValueError(
            f"{caller} works in main memory, but the clicks are on '{device}': apply it before "
            f"data.to('{device}')."
        )


def label_attributes(data: HeteroData) -> list[str]:
    r"""Names of the attributes of :obj:`data['user', 'clicks', 'item']` with one entry an
    exposure."""
    return [name for name in data[CLICKS].keys() if name.startswith('edge_label')]


def click_attributes(data: HeteroData) -> list[str]:
    r"""Names of the attributes of :obj:`data['user', 'clicks', 'item']` with one entry a click."""
    clicks = data[CLICKS]
    num_clicks = clicks.edge_index.size(1)
    # There can be as many cutoffs or exposures as clicks.
    others = {'cutoff', *label_attributes(data)}
    return [
        name
        for name, value in clicks.items()
        if name == 'edge_index'
        or (
            name not in others
            and isinstance(value, Tensor)
            and value.dim() > 0
            and value.size(0) == num_clicks
        )
    ]


def categoricals(store: Any, prefix: str = '') -> dict[str, int]:
    r"""From the names of the categorical attributes of a node or edge type, those with a number of
    values beside them, to that number, in the order of the store.

    Args:
        store: Such as :obj:`data['user']`.
        prefix: What stands before the names: :obj:`"edge_label_"` for those of exposures.
    """
    names = [name.removeprefix(prefix) for name in store.keys() if name.startswith(prefix)]
    return {
        name: int(store[f'num_{name}'])
        for name in names
        if f'num_{name}' in store and name not in OUTCOMES
    }


def contents(store: Any) -> dict[str, str]:
    r"""From the modalities of dense features, such as :obj:`"visual"`, to the names of the
    attributes that hold them, such as :obj:`"x_visual"`; features without a modality,
    :obj:`"x"`, are those of :obj:`""`."""
    return {
        name.removeprefix('x').removeprefix('_'): name
        for name in store.keys()
        if name == 'x' or name.startswith('x_')
    }


class TokenSource(NamedTuple):
    r"""The text of all values of one column of ids: of users, of items or of a context."""

    #: The place of that column among the fields.
    column: int
    #: The pieces of no value in row 0, which are none, and of value :obj:`i` in row :obj:`i + 1`,
    #: shape :obj:`[num_values + 1, T]`, :obj:`-1` for padding.
    token: Tensor
    #: The place of the field whose value a piece is part of, :obj:`-1` for words around values and
    #: for padding, shape :obj:`[num_values + 1, T]`.
    field: Tensor


class Tokens(NamedTuple):
    r"""The text of a log, as :class:`~mag.transforms.FieldText` writes it."""

    #: The fields in the order of :class:`~mag.loader.ExposureFeatures`.
    fields: tuple[str, ...]
    #: What a row's sentence is joined from, in that order.
    sources: tuple[TokenSource, ...]
    #: The size of the vocabulary.
    num_tokens: int
    #: The ids of the tokens :obj:`"cls"`, :obj:`"sep"`, :obj:`"mask"` and :obj:`"pad"`.
    special: dict[str, int]


def tokens(data: HeteroData, caller: str) -> Tokens:
    r"""The text of a log.

    Args:
        data: The log, or a part of it.
        caller: Whose name the message begins with.

    Raises:
        IndexError: If a piece is none of the vocabulary, or belongs to no field.
        TypeError: If pieces are no integers.
        ValueError: If there is no text, or not one of every value.
    """
    require(data, caller)
    clicks = data[CLICKS]
    if 'num_tokens' not in clicks:
        raise ValueError(
            f'{caller} reads the text of a log, but data{list(CLICKS)} has none: apply FieldText '
            f'to each part, after TemporalSplit.'
        )
    fields, number = tuple(clicks.token_names), int(clicks.num_tokens)
    num_values = {name: data[name].num_nodes for name in NEIGHBOR_TYPE}
    num_values |= categoricals(clicks, 'edge_label_')
    sources = []
    for column, name in enumerate(fields):
        if name in NEIGHBOR_TYPE:
            place, token, field = f"data['{name}'].", data[name].token, data[name].token_field
        elif name in clicks.token:
            place, token, field = f'{name}: ', clicks.token[name], clicks.token_field[name]
            # Each column of a context with several holds a field of its own.
            first = fields.index(name)
            field = field + (column - first) * (field >= 0).to(field.dtype)
        else:
            continue
        for what, table, most in (('token', token, number), ('token_field', field, len(fields))):
            check_tensor(caller, f'{place}{what}', table, (num_values[name], 'T'), 'integers')
            check_ids(caller, f"'{place}{what}'", table, most, -1)
        padded = (F.pad(table, (0, 0, 1, 0), value=-1) for table in (token, field))
        sources.append(TokenSource(column, *padded))
    return Tokens(fields, tuple(sources), number, dict(clicks.token_special))


class Resolution(NamedTuple):
    r"""One grouping of the nodes of a type, and the names that it goes by."""

    node_type: str
    #: A number of clusters to learn, or the name of an attribute.
    group: int | str
    #: Empty for the first of a node type, else such as :obj:`"_200"`.
    suffix: str = ''

    @property
    def name(self) -> str:
        r"""Such as :obj:`"user"` or :obj:`"user_200"`."""
        return f'{self.node_type}{self.suffix}'

    @property
    def macro(self) -> str:
        r"""The type of the macro nodes, such as :obj:`"macro_user_200"`."""
        return f'{MACRO[self.node_type]}{self.suffix}'

    @property
    def cluster(self) -> str:
        r"""The attribute that holds the macro node of each node, such as
        :obj:`"cluster_200"`."""
        return f'cluster{self.suffix}'


def reached(node_type: str, hop: int) -> str:
    r"""The node type that so many hops from :obj:`node_type` arrive at."""
    return node_type if hop % 2 == 0 else NEIGHBOR_TYPE[node_type]


def hop_type(node_type: str, hop: int) -> EdgeType:
    r"""The type of the macro edges that reach a node type in so many hops, such as
    :obj:`('macro_item', 'hop1', 'user')`."""
    return MACRO[reached(node_type, hop)], f'hop{hop}', node_type


def hops(data: HeteroData, node_type: str) -> list[EdgeType]:
    r"""The types of the macro edges of a node type, of hop 1 first. Those of further resolutions,
    such as :obj:`('macro_item_500', 'hop1', 'user')`, are none of them: no table is made of
    these."""
    found = {
        int(relation[3:]): (source, relation, target)
        for source, relation, target in data.edge_types
        if source in MACRO.values()
        and target == node_type
        and relation.startswith('hop')
        and relation[3:].isdecimal()
    }
    return [found[hop] for hop in sorted(found)]


def cutoffs(data: HeteroData, caller: str) -> Tensor:
    r"""When the history of each window of a part ends, shape :obj:`[num_windows]`.

    Raises:
        ValueError: If the cutoff has another shape.
    """
    cutoff = torch.as_tensor(data[CLICKS].cutoff)
    if cutoff.dim() > 1 or cutoff.numel() == 0:
        raise ValueError(
            f"{caller} expects 'cutoff' to be a scalar or of shape [num_windows], but got shape "
            f'{list(cutoff.shape)}.'
        )
    return cutoff.view(-1)


class Windows(NamedTuple):
    r"""The windows that the rows of a part roll over."""

    #: When the history of each ends, shape :obj:`[num]`; :obj:`None` of a log that was not split.
    cutoff: Tensor | None
    num: int
    #: That of each exposure, shape :obj:`[L]`; :obj:`None` if all read the same history.
    of_label: Tensor | None


def windows(data: HeteroData, caller: str) -> Windows:
    r"""The windows of a part.

    Args:
        data: The part.
        caller: Whose name the message begins with.

    Raises:
        ValueError: If there are windows without cutoffs, or the cutoffs have a wrong shape or do
            not ascend.
    """
    clicks = data[CLICKS]
    of_label = clicks.get('edge_label_window')
    if 'cutoff' not in clicks:
        if of_label is not None:
            raise ValueError(
                f"{caller} found 'edge_label_window' but no 'cutoff' that tells when the windows "
                f'begin: pass the parts that TemporalSplit returns.'
            )
        return Windows(None, 1, None)
    cutoff = cutoffs(data, caller)
    if bool((cutoff[1:] <= cutoff[:-1]).any()):
        raise ValueError(f'{caller} expects ascending cutoffs, but got {cutoff.tolist()}.')
    return Windows(cutoff, cutoff.numel(), of_label)
