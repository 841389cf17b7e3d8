import warnings

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import (
    check_booleans,
    check_choice,
    check_integers,
    check_numbers,
    check_tensor,
)
from mag.click_index import first_click
from mag.cutoff import require_whole_log
from mag.schema import (
    CLICKS,
    SEES,
    categoricals,
    click_attributes,
    label_attributes,
    require,
    require_cpu,
)
from mag.transforms._clock import user_position

_NEEDED = ('edge_index', 'time', 'edge_label_index', 'edge_label', 'edge_label_time')
# By node type, what transforms have made where these are there.
_LEARNED = ('recent', 'cluster', 'interest', 'hyperedge_index', 'token')
# A part that loses a larger share of its exposures is not what was asked for.
_LOST_SHARE = 0.2


@functional_transform('temporal_split')
class TemporalSplit(BaseTransform):
    r"""Splits exposures by time into training, validation and test parts, each with the clicks
    that happened strictly before it, after the `"Macro Graph Neural Networks for Online
    Billion-Scale Recommender Systems" <https://doi.org/10.1145/3589334.3645517>`_ paper
    (functional name: :obj:`temporal_split`).

    The paper trains on one window, the exposures between the 80 % and the 90 % quantile of time,
    read against the clicks before the 80 % quantile:
    :obj:`TemporalSplit(train_start=0.8, num_windows=1)`.
    By default training rolls over :obj:`num_windows` windows that follow each other, each row read
    against the clicks before its own window, so that no label is wasted and none is leaked.

    Each part is a shallow copy whose :obj:`data['user', 'clicks', 'item']` holds

    * :obj:`edge_index`, :obj:`time` and other click attributes: the history before the (last)
      cutoff, in the order of time;
    * :obj:`edge_label_index`, :obj:`edge_label`, ...: the exposures to predict;
    * :obj:`cutoff`: of shape :obj:`[1]`, or one cutoff a window of shape :obj:`[S]`, and then
      :obj:`edge_label_window` of shape :obj:`[L]`: the history of window :math:`s` is what lies
      strictly before :obj:`cutoff[s]`;
    * :obj:`num_dropped`: how many exposures were left out because their user or item had no click
      in the history;
    * :obj:`num_unsettled`: how many were left out because their labels were known too late.

    Each part also holds the exposures before the (last) cutoff, clicked or not:
    :obj:`data['user', 'sees', 'item']` with :obj:`edge_index`, :obj:`time`, :obj:`clicked`, the
    categorical attributes of exposures under their names, and :obj:`settled` where the log tells
    when a label was known.

    Some logs tell when all labels of an exposure were known, :obj:`edge_label_settled`, in seconds:
    a click or a purchase may come long after what it followed. Training and validation leave out
    the exposures of which that was not before the next part begins, as nobody could have learned
    from them then. With :obj:`by="user"` the next part begins with the user's first exposure there.

    Args:
        train_start (float, optional): Share of the log before the first training label.
            (default: :obj:`0.3`)
        val_start (float, optional): Share before the first validation label.
            (default: :obj:`0.88`)
        test_start (float, optional): Share before the first test label. (default: :obj:`0.9`)
        num_windows (int, optional): Number of training windows, at equal quantiles. More windows
            leave less of a row's recent past unread and take more memory, a macro row each;
            :obj:`benchmarks/accuracy/clicks.md` finds nothing to gain beyond 12.
            (default: :obj:`12`)
        by (str, optional): :obj:`"global"` cuts at quantiles of the exposures' time.
            :obj:`"user"` cuts each user's own log at these shares, for logs too short for a global
            cut: then clicks of *other* users may be in the history although they happened later.
            The cutoffs are then measured on :obj:`position` (and :obj:`edge_label_position`), the
            share of the user's exposures that came strictly before. (default: :obj:`"global"`)
        keep_cold (bool, optional): If set to :obj:`True`, exposures of a user or an item without a
            click in the history are kept, for models that read other features than history.
            (default: :obj:`False`)

    Raises:
        TypeError: If an argument, times or the data are of another type.
        ValueError: If the shares do not ascend, there are more windows than exposures, a part holds
            no exposure, or the data is a part already or has features made from the whole log,
            which would tell of the future.

    Warns if a part loses more than a fifth of its exposures, and says why and what to change.
    """

    def __init__(
        self,
        train_start: float = 0.3,
        val_start: float = 0.88,
        test_start: float = 0.9,
        num_windows: int = 12,
        by: str = 'global',
        keep_cold: bool = False,
    ) -> None:
        check_numbers('(0, 1)', train_start=train_start, val_start=val_start, test_start=test_start)
        if not train_start < val_start < test_start:
            shares = f'{train_start}, {val_start}, {test_start}'
            raise ValueError(
                f"'train_start', 'val_start' and 'test_start' must ascend, but got {shares}."
            )
        check_integers(1, num_windows=num_windows)
        check_booleans(keep_cold=keep_cold)
        check_choice(('global', 'user'), by=by)
        self.train_start = train_start
        self.val_start = val_start
        self.test_start = test_start
        self.num_windows = num_windows
        self.by = by
        self.keep_cold = keep_cold

    def forward(self, data: HeteroData) -> tuple[HeteroData, HeteroData, HeteroData]:
        require(data, 'TemporalSplit', *_NEEDED)
        if 'edge_label_settled' in data[CLICKS]:
            require(data, 'TemporalSplit', 'edge_label_index', 'edge_label_settled')
        require_cpu(data, 'TemporalSplit')
        require_whole_log(data, 'TemporalSplit')
        _require_untouched(data)
        num_exposures = data[CLICKS].edge_label.numel()
        if self.num_windows > num_exposures:
            raise ValueError(
                f"'num_windows' must be at most the number of exposures, which is "
                f'{num_exposures}, but got {self.num_windows}.'
            )
        data = self._in_order(data)
        clicks = data[CLICKS]
        if self.by == 'user':
            clicks.position, clicks.edge_label_position = user_position(data)
        clock, label_clock = (
            (clicks.position, clicks.edge_label_position)
            if self.by == 'user'
            else (clicks.time, clicks.edge_label_time)
        )
        first = {
            node_type: first_click(clock, clicks.edge_index[row], data[node_type].num_nodes)
            for row, node_type in enumerate(('user', 'item'))
        }
        train_cutoff = self._cutoffs(
            label_clock,
            np.linspace(self.train_start, self.val_start, self.num_windows, endpoint=False),
        ).unique()
        val_cutoff, test_cutoff = self._cutoffs(label_clock, [self.val_start, self.test_start])
        end = torch.full_like(test_cutoff, torch.inf if self.by == 'user' else 2**63 - 1)
        return (
            self._part(
                data,
                'training',
                clock,
                label_clock,
                first,
                train_cutoff if self.num_windows > 1 else train_cutoff[0],
                val_cutoff,
            ),
            self._part(data, 'validation', clock, label_clock, first, val_cutoff, test_cutoff),
            self._part(data, 'test', clock, label_clock, first, test_cutoff, end),
        )

    def _cutoffs(self, label_clock: Tensor, shares: list[float] | np.ndarray) -> Tensor:
        if self.by == 'user':
            return torch.tensor(np.asarray(shares), dtype=torch.float64)
        # The paper's history is t <= quantile: for integer times, t < floor(quantile) + 1.
        quantile = np.quantile(label_clock.numpy(), shares)
        return torch.from_numpy(np.floor(quantile).astype(np.int64) + 1)

    @staticmethod
    def _in_order(data: HeteroData) -> HeteroData:
        r"""Sorts clicks by time, which most logs are already, so that a part's history is a slice
        and takes no memory."""
        clicks = data[CLICKS]
        if bool((clicks.time[1:] >= clicks.time[:-1]).all()):
            return data
        order = clicks.time.argsort(stable=True)
        for name in click_attributes(data):
            clicks[name] = clicks[name][:, order] if name == 'edge_index' else clicks[name][order]
        return data

    def _part(
        self,
        data: HeteroData,
        name: str,
        clock: Tensor,
        label_clock: Tensor,
        first: dict[str, Tensor],
        cutoff: Tensor,
        end: Tensor,
    ) -> HeteroData:
        history: Tensor | slice
        if self.by == 'global':
            history = slice(0, int(torch.searchsorted(clock, cutoff.max())))
        else:
            history = clock < cutoff.max()
        labels = (label_clock >= cutoff.min()) & (label_clock < end)
        num_labels = int(labels.sum())
        if 'edge_label_settled' in data[CLICKS]:
            labels &= data[CLICKS].edge_label_settled < self._next_start(data, label_clock, end)
        labels = labels.nonzero().view(-1)
        num_unsettled = num_labels - labels.numel()
        window = None
        label_cutoff = cutoff
        if cutoff.dim() == 1:
            window = torch.bucketize(label_clock[labels], cutoff, right=True) - 1
            label_cutoff = cutoff[window]
        warm = torch.ones(labels.numel(), dtype=torch.bool)
        for row, node_type in enumerate(() if self.keep_cold else ('user', 'item')):
            node = data[CLICKS].edge_label_index[row, labels]
            warm &= first[node_type][node] < label_cutoff
        if not bool(warm.any()):
            advice = " A short log can be split with by='user'." if self.by == 'global' else ''
            raise ValueError(
                f'{self!r} leaves no {name} exposure: of {num_labels} in the range, '
                f'{num_unsettled} have labels that are known only when the next part begins, and '
                f'{labels.numel()} have a user or an item without an earlier click.{advice}'
            )

        num_cold = labels.numel() - int(warm.sum())
        if num_cold + num_unsettled > _LOST_SHARE * num_labels:
            self._warn_of_loss(name, num_labels, num_cold, num_unsettled)

        part = data.__copy__()
        source, store = data[CLICKS], part[CLICKS]
        for attribute in click_attributes(data):
            value = source[attribute]
            store[attribute] = value[:, history] if attribute == 'edge_index' else value[history]
        for attribute in label_attributes(data):
            value = source[attribute]
            rows = labels[warm]
            store[attribute] = value[:, rows] if attribute == 'edge_label_index' else value[rows]
        # Of shape [1], not []: T.ToUndirected asks every tensor of an edge store for its length.
        store.cutoff = cutoff.view(-1)
        if window is not None:
            store.edge_label_window = window[warm]
        store.num_dropped = num_cold
        store.num_unsettled = num_unsettled
        _add_exposures(part, data, label_clock, cutoff.max())
        return part

    def _warn_of_loss(self, name: str, num_labels: int, num_cold: int, num_unsettled: int) -> None:
        reasons, advice = [], []
        if num_cold > 0:
            reasons.append(f'{num_cold:,} have a user or an item without an earlier click')
            advice.append('keep_cold=True for models that read other features')
            if self.by == 'global':
                advice.append("by='user' to split each user's own log")
        if num_unsettled > 0:
            reasons.append(
                f'{num_unsettled:,} have labels that are known only when the next part begins'
            )
            advice.append('shares further apart')
        warnings.warn(
            f'TemporalSplit leaves out {num_cold + num_unsettled:,} of the {num_labels:,} {name} '
            f'exposures: {" and ".join(reasons)}. To keep more, pass {", or ".join(advice)}.',
            # Above are _part, forward, and the call of PyG's base class.
            stacklevel=5,
        )

    def _next_start(self, data: HeteroData, label_clock: Tensor, end: Tensor) -> Tensor:
        r"""When the next part begins, in seconds: one number, or one for each exposure."""
        if self.by == 'global':
            return end
        clicks, later = data[CLICKS], label_clock >= end
        user = clicks.edge_label_index[0]
        start = first_click(clicks.edge_label_time[later], user[later], data['user'].num_nodes)
        return start[user]

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(train_start={self.train_start}, '
            f'val_start={self.val_start}, test_start={self.test_start}, '
            f'num_windows={self.num_windows}, by={self.by!r}, keep_cold={self.keep_cold})'
        )


def _add_exposures(part: HeteroData, data: HeteroData, clock: Tensor, cutoff: Tensor) -> None:
    r"""Adds the exposures before a cutoff, which are a slice where the log is in order."""
    seen: Tensor | slice = clock < cutoff
    if bool((clock[1:] >= clock[:-1]).all()):
        # A clock may be a column of a table, which searchsorted would copy with a warning.
        seen = slice(0, int(torch.searchsorted(clock.contiguous(), cutoff)))
    source, store = data[CLICKS], part[SEES]
    store.edge_index = source.edge_label_index[:, seen]
    names = {'edge_label_time': 'time', 'edge_label': 'clicked'}
    names |= {f'edge_label_{name}': name for name in ('position', 'settled')}
    for name, number in categoricals(source, 'edge_label_').items():
        names[f'edge_label_{name}'] = name
        store[f'num_{name}'] = number
    for name in names.keys() & source.keys():
        store[names[name]] = source[name][seen]


def _require_untouched(data: HeteroData) -> None:
    r"""Raises unless :obj:`data` is a log as a dataset gives it."""
    clicks = data[CLICKS]
    made = [
        f"data['{name}']"
        for name in data.node_types
        # Whatever is made of clusters, at any resolution.
        if name.startswith('macro_') or name == 'behavior'
    ]
    made += [
        f"data['{node_type}'].{name}"
        for node_type in ('user', 'item')
        for name in _LEARNED
        if name in data[node_type]
    ]
    if made:
        raise ValueError(
            f'TemporalSplit found {", ".join(made)}, made from the whole log: every part would '
            f'read its own future. Split first, then transform each part.'
        )
    for name, value in clicks.items():
        if isinstance(value, np.ndarray):
            raise TypeError(
                f"'{name}' of data{list(CLICKS)} must be a tensor, as parts are cut from tensors "
                f'alone, but got a NumPy array: pass it through torch.from_numpy.'
            )
    num_exposures = clicks.edge_label.numel()
    for name in label_attributes(data):
        if name != 'edge_label_index':
            shape = (num_exposures, *getattr(clicks[name], 'shape', ())[1:])
            check_tensor('TemporalSplit', name, clicks[name], shape, 'numbers')
