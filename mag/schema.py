r"""The data contract: names that datasets write and that transforms, loaders and models read."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

CLICKS = ('user', 'clicks', 'item')
REVERSE_CLICKS = ('item', 'rev_clicks', 'user')
OTHER = {'user': 'item', 'item': 'user'}
# By the type of the child: the edges by which PathLoader joins it to its precursor.
TO_PRECURSOR = {'user': CLICKS, 'item': REVERSE_CLICKS}


def require(data: Any, reader: str, *attributes: str) -> None:
    r"""Raises unless :obj:`data` is a micro graph whose clicks carry all :obj:`attributes`.

    Args:
        data: What the caller was given.
        reader: The name of the caller, for the message.
        *attributes: Attribute names of :obj:`data['user', 'clicks', 'item']`.

    Raises:
        TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`, or a time or an
            index holds no integers.
        ValueError: If the clicks, a node count or an attribute is missing, or has the wrong shape.
        IndexError: If a click or an exposure names a node that does not exist.
    """
    if not isinstance(data, HeteroData):
        raise TypeError(
            f'{reader} expects a HeteroData with the edge type {CLICKS}, '
            f'but got {type(data).__name__}.'
        )
    if CLICKS not in data.edge_types:
        raise ValueError(
            f'{reader} expects the edge type {CLICKS}, but the data has '
            f'{data.edge_types or "none"}.'
        )
    clicks = data[CLICKS]
    missing = [name for name in attributes if name not in clicks]
    if missing:
        raise ValueError(
            f'{reader} needs data{list(CLICKS)} to have {missing}, but it has '
            f'{list(clicks.keys())}.'
        )
    for node_type, row in (('user', 0), ('item', 1)):
        num_nodes = data[node_type].get('num_nodes') if node_type in data.node_types else None
        if num_nodes is None:
            raise ValueError(f"{reader} needs data['{node_type}'].num_nodes to be set.")
        for name in ('edge_index', 'edge_label_index'):
            if name in attributes:
                _check_index(reader, name, clicks[name], row, node_type, num_nodes)
    for name, index in (
        ('time', 'edge_index'),
        ('edge_label_time', 'edge_label_index'),
        ('edge_label_settled', 'edge_label_index'),
        ('edge_label', 'edge_label_index'),
    ):
        if name in attributes and index in attributes:
            _check_shape(reader, name, clicks[name], clicks[index].size(1))
            if name == 'edge_label':
                _check_label(reader, clicks[name])
            elif clicks[name].is_floating_point():
                raise TypeError(
                    f"{reader} expects '{name}' as int64 seconds, but got {clicks[name].dtype}: "
                    f'a float cannot hold unix seconds exactly.'
                )


def require_positive_integers(**values: Any) -> None:
    r"""Raises a :class:`ValueError` that names the argument unless all :obj:`values` are positive
    integers."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"'{name}' must be a positive integer, but got {value!r}.")


def require_sizes(**values: Any) -> None:
    r"""Raises unless all :obj:`values` are sequences of positive integers.

    Raises:
        TypeError: Names the argument that is no sequence.
        ValueError: Names the argument that holds something else.
    """
    for name, value in values.items():
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise TypeError(
                f"'{name}' must be a sequence of sizes such as (64, 32), but got {value!r}."
            )
        require_positive_integers(**{f'{name}[{i}]': size for i, size in enumerate(value)})


def require_integers(least: int, **values: Any) -> None:
    r"""Raises unless all :obj:`values` are integers of :obj:`least` or more.

    Raises:
        TypeError: Names the argument that is no integer.
        ValueError: Names the argument that is too small.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"'{name}' must be an integer, but got {value!r}.")
        if value < least:
            raise ValueError(f"'{name}' must be at least {least}, but got {value}.")


def require_booleans(**values: Any) -> None:
    r"""Raises a :class:`TypeError` that names the argument unless all :obj:`values` are booleans:
    a word such as :obj:`"no"` would be taken for true."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise TypeError(f"'{name}' must be True or False, but got {value!r}.")


def require_range(reader: Any, what: str, ids: Tensor, number: int, first: int = 0) -> None:
    r"""Raises an :class:`IndexError` unless all :obj:`ids` lie from :obj:`first` to
    :obj:`number - 1`.

    Args:
        reader: The caller, or its name, for the message.
        what: What the ids are of, for the message.
        ids: Integers of any shape.
        number: How many there are.
        first: The least id. (default: :obj:`0`)
    """
    if ids.numel() == 0:
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < first or high >= number:
        raise IndexError(
            f'{reader} found {what} from {low} to {high}, but expected them from {first} to '
            f'{number - 1}.'
        )


def require_cpu(data: HeteroData, reader: str) -> None:
    r"""Raises a :class:`ValueError` if the clicks of :obj:`data` are not in main memory."""
    device = data[CLICKS].edge_index.device
    if device.type != 'cpu':
        raise ValueError(
            f"{reader} works in main memory, but the clicks are on '{device}': apply it before "
            f"data.to('{device}')."
        )


def _check_index(
    reader: str, name: str, index: Any, row: int, node_type: str, num_nodes: int
) -> None:
    if not isinstance(index, Tensor) or index.dim() != 2 or index.size(0) != 2:
        raise ValueError(
            f"{reader} expects '{name}' of shape [2, num_edges], but got "
            f'{list(index.shape) if isinstance(index, Tensor) else type(index).__name__}.'
        )
    if index.dtype != torch.long:
        raise TypeError(f"{reader} expects '{name}' of dtype int64, but got {index.dtype}.")
    require_range(reader, f"{node_type} ids of '{name}'", index[row], num_nodes)


def _check_shape(reader: str, name: str, value: Any, num_edges: int) -> None:
    if not isinstance(value, Tensor) or value.shape != (num_edges,):
        shape = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{reader} expects '{name}' of shape [{num_edges}], but got {shape}.")


def _check_label(reader: str, label: Tensor) -> None:
    bad = (label != 0) & (label != 1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{reader} expects 'edge_label' of 1 for a click and 0 for none, but found "
            f'{int(bad.sum())} others, such as {label[row].item()} in row {row}.'
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


def history_clock(data: HeteroData) -> Tensor:
    r"""The clock that :obj:`cutoff` is measured on, one value a click, shape :obj:`[E]`:
    :obj:`position` in the user's own log if the split was made per user, else :obj:`time`."""
    return data[CLICKS][_clock_name(data)]


def window_of_click(data: HeteroData, reader: str) -> tuple[Tensor | None, int]:
    r"""The first window whose history holds each click.

    Returns:
        The window of each click, shape :obj:`[E]`, and the number of windows; or :obj:`None` and 1
        if the data does not roll: with one cutoff and no :obj:`edge_label_window`.

    Raises:
        ValueError: If a click lies at or after the last cutoff, the cutoffs do not ascend, or the
            windows of the exposures do not belong to them.
    """
    clicks = data[CLICKS]
    cutoff = clicks.get('cutoff')
    label_window = clicks.get('edge_label_window')
    if cutoff is None and label_window is None:
        return None, 1
    if cutoff is None:
        raise ValueError(
            f"{reader} found 'edge_label_window' but no 'cutoff' that tells when the windows "
            f'begin: pass the parts that TemporalSplit returns.'
        )
    if 'time' not in clicks and 'position' not in clicks:
        raise ValueError(
            f"{reader} found a 'cutoff' but no 'time' to compare with it in "
            f'data{list(CLICKS)}, which has {list(clicks.keys())}.'
        )
    clock = history_clock(data)
    _check_shape(reader, _clock_name(data), clock, clicks.edge_index.size(1))
    cutoff = _checked_cutoff(reader, cutoff)
    num_windows = cutoff.numel()
    if label_window is not None and label_window.numel() > 0:
        low, high = (int(bound) for bound in label_window.aminmax())
        if low < 0 or high >= num_windows:
            raise ValueError(
                f"{reader} found exposures of the windows {low} to {high}, but 'cutoff' has "
                f'{num_windows}: expected windows from 0 to {num_windows - 1}.'
            )
    if clock.numel() > 0 and bool(clock.max() >= cutoff.max()):
        raise ValueError(
            f'{reader} found clicks up to {clock.max().item()}, but the cutoff of this data is '
            f'{cutoff.max().item()}: the history must lie strictly before it. Was the data edited '
            f'after TemporalSplit?'
        )
    if num_windows == 1 and label_window is None:
        return None, 1
    if bool((cutoff[1:] <= cutoff[:-1]).any()):
        raise ValueError(f'{reader} expects ascending cutoffs, but got {cutoff.tolist()}.')
    return torch.bucketize(clock, cutoff, right=True), num_windows


class Cutoff(NamedTuple):
    r"""A moment on one of the two clocks that a log is split by."""

    #: :obj:`'time'`, or :obj:`'position'` in the user's own log.
    clock: str
    #: Infinite if nothing tells it.
    moment: float

    def __str__(self) -> str:
        return 'an unknown time' if self.moment == torch.inf else f'{self.clock} {self.moment}'


def first_cutoff(data: HeteroData, reader: str) -> Cutoff:
    r"""The moment as of which something is fitted on :obj:`data`: the first cutoff of a part. Of a
    log without one everything was seen, until after its last click.

    Args:
        data: What it is fitted on.
        reader: The name of the caller, for the message.

    Raises:
        ValueError: If the cutoff has a wrong shape.
    """
    clicks = data[CLICKS]
    if 'cutoff' in clicks:
        return Cutoff(_clock_name(data), _checked_cutoff(reader, clicks.cutoff).min().item())
    time = clicks.get('time')
    is_known = isinstance(time, Tensor) and time.numel() > 0
    return Cutoff('time', int(time.max()) + 1 if is_known else torch.inf)


def require_not_earlier(data: HeteroData, reader: str, fitted: Cutoff) -> None:
    r"""Raises a :class:`ValueError` if what was fitted on one part is used on an earlier one, whose
    future it knows. Data without a cutoff, such as a log to serve, is of any time.

    Args:
        data: What the caller was given.
        reader: The name of the caller, for the message.
        fitted: The :func:`first_cutoff` of what it was fitted on.
    """
    if 'cutoff' not in data[CLICKS]:
        return
    given = first_cutoff(data, reader)
    # So that NaN is refused, too.
    if given.clock == fitted.clock and given.moment >= fitted.moment:
        return
    reason = (
        'its rows may read their own future'
        if given.clock == fitted.clock
        else "a time and a position in a user's own log cannot be compared"
    )
    raise ValueError(
        f'{reader} was fitted as of {fitted}, but the first cutoff of this data is {given}, and '
        f'{reason}: fit it on the training part of the same split.'
    )


def _clock_name(data: HeteroData) -> str:
    return 'position' if 'position' in data[CLICKS] else 'time'


def _checked_cutoff(reader: str, cutoff: Any) -> Tensor:
    r"""The cutoffs of a part, shape :obj:`[num_windows]`."""
    cutoff = torch.as_tensor(cutoff)
    if cutoff.dim() > 1 or cutoff.numel() == 0:
        raise ValueError(
            f"{reader} expects 'cutoff' to be a scalar or of shape [num_windows], but got shape "
            f'{list(cutoff.shape)}.'
        )
    return cutoff.view(-1)
