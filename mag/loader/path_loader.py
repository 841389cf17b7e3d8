import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.loader.path_sampler import PathSampler
from mag.loader.row_loader import RowLoader
from mag.schema import CLICKS, OTHER, REVERSE_CLICKS, require

_CHUNK = 4096


class PathLoader(RowLoader):
    r"""Loads the exposures of a log with the paths that :class:`PathSampler` draws for them, as two
    trees each, in batches that are :class:`~torch_geometric.data.HeteroData`.

    .. code-block:: python

        loader = PathLoader(train, batch_size=128, shuffle=True)
        for batch in loader:
            label = batch['user', 'clicks', 'item'].edge_label
            loss = binary_cross_entropy_with_logits(model(batch), label)

    A batch is laid out as one of :class:`torch_geometric.loader.LinkNeighborLoader` with
    :obj:`disjoint=True`, but a node is there once for every time that it was drawn, so that each
    has one precursor. It holds

    * for :obj:`'user'` and :obj:`'item'`: :obj:`n_id`, the node each copy is of; :obj:`batch`, the
      target it belongs to; :obj:`num_sampled_nodes`, how many there are at every depth, which they
      are ordered by: the first :math:`B` are the targets' own; and all attributes of the nodes;
    * for :obj:`('item', 'rev_clicks', 'user')` and :obj:`('user', 'clicks', 'item')`:
      :obj:`edge_index` from each child to its precursor, ordered by depth, by precursor and, the
      newest first, by time; :obj:`e_id`, the click it is, with its :obj:`time`, :obj:`query` and
      all other attributes of clicks; :obj:`num_sampled_edges` at every depth;
    * the targets: :obj:`edge_label_index`, which joins the first :math:`B` users and items,
      :obj:`edge_label`, :obj:`edge_label_time` and all other attributes of exposures, and
      :obj:`input_id`, their rows, in :obj:`batch['user', 'clicks', 'item']`.

    The paths of a batch depend on :obj:`seed` and the rows in it alone, so that they are the same
    for any number of workers, and others in another epoch of a shuffled loader, whose batches have
    other rows (but for those of a single row). An epoch begins with
    :obj:`loader.sampler.set_epoch(epoch)`, which Lightning calls.

    Args:
        data (HeteroData): The part whose exposures are loaded.
        batch_size (int, optional): Exposures a batch. (default: :obj:`128`)
        shuffle (bool, optional): If set to :obj:`True`, exposures are shuffled anew each epoch.
            (default: :obj:`False`)
        widths (dict[str, Sequence[int]], optional): See :class:`PathSampler`.
        attribute (str, optional): See :class:`PathSampler`. (default: :obj:`"category"`)
        replace (bool, optional): See :class:`PathSampler`. (default: :obj:`True`)
        history (HeteroData, optional): The clicks to draw from, such as those of the whole log, of
            which each exposure reads what came before itself. By default those of :obj:`data`,
            which end at the last cutoff. (default: :obj:`None`)
        fixed (bool, optional): If set to :obj:`True`, paths are drawn once, here, as the authors
            did, and are the same in every epoch. They take 4 bytes a place of a path, 1.4 kB an
            exposure with the default widths. (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling and of the paths. (default: :obj:`0`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        ValueError: If :obj:`history` is of another log, there are no times to compare, or an
            attribute of the exposures has another length than they.
    """

    dataset: '_Targets'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 128,
        shuffle: bool = False,
        widths: Mapping[str, Sequence[int]] | None = None,
        attribute: str | None = 'category',
        replace: bool = True,
        history: HeteroData | None = None,
        fixed: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        targets = _Targets(data, data if history is None else history, seed)
        targets.sampler = PathSampler(targets.history, widths, attribute, replace)
        if fixed:
            targets.draw_all()
        super().__init__(targets, batch_size, shuffle, seed, **kwargs)


def _has_length(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.size(0) == length


class _Targets(torch.utils.data.Dataset):
    r"""The exposures of a part, indexed by tensors of rows."""

    sampler: PathSampler

    def __init__(self, data: HeteroData, history: HeteroData, seed: int) -> None:
        require(data, 'PathLoader', 'edge_label_index', 'edge_label_time')
        require(history, 'PathLoader', 'edge_index', 'time')
        for node_type in ('user', 'item'):
            there, here = history[node_type].num_nodes, data[node_type].num_nodes
            if there != here:
                raise ValueError(
                    f"PathLoader expects 'history' of the same log, but it has {there} "
                    f'{node_type}s where the data has {here}.'
                )
        if 'position' in history[CLICKS]:
            raise ValueError(
                "PathLoader compares times, but the data was split by each user's own log, which "
                'leaves clicks in the history that happened later: pass '
                "history= the whole log, or split with by='global'."
            )
        self.data, self.history, self.seed = data, history, seed
        clicks = data[CLICKS]
        self.num_clicks = history[CLICKS].edge_index.size(1)
        self.label_attributes = [
            name
            for name in clicks.keys()
            if name.startswith('edge_label') and name != 'edge_label_index'
        ]
        for name in self.label_attributes:
            value = clicks[name]
            if not _has_length(value, len(self)):
                raise ValueError(
                    f"PathLoader expects '{name}' to be a tensor with an entry for each of "
                    f'{len(self)} exposures, but got '
                    f'{list(value.shape) if isinstance(value, Tensor) else type(value).__name__}.'
                )
        self.click_attributes = [
            name
            for name, value in history[CLICKS].items()
            if name not in ('edge_index', 'cutoff')
            and not name.startswith('edge_label')
            and _has_length(value, self.num_clicks)
        ]
        self.paths: dict[str, list[Tensor]] | None = None

    def __len__(self) -> int:
        return self.data[CLICKS].edge_label_index.size(1)

    def __getitem__(self, index: Tensor) -> HeteroData:
        if self.paths is None:
            paths = self._draw(index)
        else:
            paths = {
                root: [level[index].long() for level in levels]
                for root, levels in self.paths.items()
            }
        return self._to_batch(index, paths)

    def draw_all(self) -> None:
        r"""Draws the paths of all targets, in half the memory that clicks are numbered in."""
        dtype = torch.int32 if self.num_clicks < 2**31 else torch.int64
        paths = {
            root: [
                torch.empty(len(self), *widths[: depth + 1], dtype=dtype)
                for depth in range(len(widths))
            ]
            for root, widths in self.sampler.widths.items()
        }
        rows = torch.arange(len(self)).split(_CHUNK)
        for part in tqdm(rows, 'Drawing paths', disable=len(rows) < 20, leave=False):
            for root, levels in self._draw(part).items():
                for level, drawn in zip(paths[root], levels, strict=True):
                    level[part] = drawn.to(dtype)
        self.paths = paths

    def _draw(self, index: Tensor) -> dict[str, list[Tensor]]:
        # A seed of the rows: workers need not know the epoch, and a shuffled batch never returns.
        seed = zlib.crc32(index.numpy().tobytes(), self.seed)
        clicks = self.data[CLICKS]
        user, item = clicks.edge_label_index[:, index]
        return self.sampler.draw(
            user, item, clicks.edge_label_time[index], torch.Generator().manual_seed(seed)
        )

    def _to_batch(self, index: Tensor, paths: dict[str, list[Tensor]]) -> HeteroData:
        tree = _Tree(self.sampler, self.data[CLICKS].edge_label_index[:, index])
        for depth in range(self.sampler.depth):
            for root, levels in paths.items():
                tree.add(root, levels[depth])

        batch = HeteroData()
        for node_type in ('user', 'item'):
            store, source = batch[node_type], self.data[node_type]
            n_id = torch.cat(tree.node[node_type])
            for name, value in source.items():
                is_of_nodes = _has_length(value, source.num_nodes)
                store[name] = value.index_select(0, n_id) if is_of_nodes else value
            # Last, as the data may be a sample itself and so have attributes of these names.
            store.n_id = n_id
            store.batch = torch.cat(tree.target[node_type])
            store.num_sampled_nodes = [node.numel() for node in tree.node[node_type]]
            store.num_nodes = n_id.numel()
        for edge_type in (REVERSE_CLICKS, CLICKS):
            store = batch[edge_type]
            child = edge_type[0]
            e_id = torch.cat(tree.click[child])
            for name in self.click_attributes:
                store[name] = self.history[CLICKS][name].index_select(0, e_id)
            store.edge_index = torch.cat(tree.edge_index[child], dim=1)
            store.e_id = e_id
            store.num_sampled_edges = [click.numel() for click in tree.click[child]]
        clicks = batch[CLICKS]
        for name in self.label_attributes:
            clicks[name] = self.data[CLICKS][name][index]
        clicks.edge_label_index = torch.arange(index.numel()).repeat(2, 1)
        clicks.input_id = index
        return batch


class _Tree:
    r"""Numbers the drawn nodes of a batch, depth by depth."""

    def __init__(self, sampler: PathSampler, targets: Tensor) -> None:
        self.sampler = sampler
        rows = torch.arange(targets.size(1))
        self.node = {'user': [targets[0]], 'item': [targets[1]]}
        self.target = {'user': [rows], 'item': [rows]}
        # By the type of the child.
        self.edge_index: dict[str, list[Tensor]] = {'user': [], 'item': []}
        self.click: dict[str, list[Tensor]] = {'user': [], 'item': []}
        # The last level of the tree of each root: its type, and the number of each place in it.
        self.last = {root: (root, rows) for root in ('user', 'item')}
        self.size = {'user': rows.numel(), 'item': rows.numel()}

    def add(self, root: str, click: Tensor) -> None:
        parent_type, parent = self.last[root]
        child_type = OTHER[parent_type]
        # Places of the drawn clicks; several times faster than a mask, which is counted each time.
        place = (click.view(-1) >= 0).nonzero().view(-1)
        drawn = click.view(-1).index_select(0, place)
        child = torch.arange(place.numel()) + self.size[child_type]
        precursor = parent.view(-1).index_select(0, place // click.size(-1))
        self.size[child_type] += place.numel()
        self.click[child_type].append(drawn)
        self.node[child_type].append(self.sampler.neighbor[parent_type].index_select(0, drawn))
        self.target[child_type].append(place // math.prod(click.shape[1:]))
        self.edge_index[child_type].append(torch.stack([child, precursor]))
        number = torch.full_like(click, -1)
        number.view(-1)[place] = child
        self.last[root] = child_type, number
