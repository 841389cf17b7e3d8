import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.storage import EdgeStorage, NodeStorage
from tqdm import tqdm

from mag.checks import check_booleans, check_choice, described
from mag.cutoff import require_history
from mag.loader.exposures import Exposures
from mag.loader.path_sampler import PathSampler
from mag.loader.path_tree import PathTree
from mag.loader.row_loader import RowLoader, RowReader
from mag.loader.target_chance import TargetChance
from mag.schema import (
    CLICKS,
    NEIGHBOR_TYPE,
    TO_PRECURSOR,
    click_attributes,
    label_attributes,
    require,
)
from mag.unknown import known_places, take_known, unknown_row

# Targets whose paths are drawn at once.
_CHUNK = 1024


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

    An unknown user or item of a request, :obj:`-1`, has no paths. Of it whole numbers are
    :obj:`-1`, and other attributes their mean over all nodes.

    The paths of a batch depend on :obj:`seed` and on its rows alone. So any number of workers draws
    the same paths. A shuffled loader draws others in each epoch, because its batches hold other
    rows then; a batch of a single row is the exception. An epoch begins with
    :obj:`loader.sampler.set_epoch(epoch)`, which :func:`~mag.training.fit` and Lightning call.

    Args:
        data (HeteroData): The part whose exposures are loaded.
        batch_size (int, optional): Exposures a batch. (default: :obj:`128`)
        shuffle (bool, optional): If set to :obj:`True`, exposures are shuffled anew each epoch.
            (default: :obj:`False`)
        seed (int, optional): Seed of the shuffling and of the paths. (default: :obj:`0`)
        widths (dict[str, Sequence[int]], optional): See :class:`PathSampler`.
        attribute (str, optional): See :class:`PathSampler`. (default: :obj:`"category"`)
        replace (bool, optional): See :class:`PathSampler`. (default: :obj:`True`)
        history (HeteroData, optional): The clicks to draw from: with :obj:`history=train` the graph
            of a later part is frozen at the last cutoff of training, and with the whole log each
            exposure is served all clicks before itself. By default those of :obj:`data`, which end
            at the last cutoff. (default: :obj:`None`)
        fixed (bool, optional): If set to :obj:`True`, paths are drawn once, here, as the authors
            did. They are then the same in every epoch, and do not depend on the rows that come
            after. They take 4 bytes a place of a path, 1.4 kB an exposure with the default widths.
            (default: :obj:`False`)
        batch_attributes (Sequence[str], optional): The attributes of nodes and clicks that batches
            hold, such as :obj:`["category", "time", "query"]`. Copying all, above all wide ones,
            takes up to half of the time of a batch. Attributes of exposures are always there, and
            so are those without an entry for each node, such as :obj:`num_category`. By default
            all, as in batches of PyG's loaders. (default: :obj:`None`)
        **kwargs (optional): Arguments of :class:`torch.utils.data.DataLoader`, such as
            :obj:`num_workers`.

    Raises:
        TypeError: If :obj:`batch_attributes` is no sequence, :obj:`widths` are none, or a switch is
            no boolean.
        ValueError: If an argument is not as :class:`PathSampler` expects it, a label is neither 0
            nor 1, :obj:`history` is of another log, there are no times to compare, an attribute of
            the exposures has another length than they, or one of :obj:`batch_attributes` does not
            exist.
    """

    dataset: '_PathReader'

    def __init__(
        self,
        data: HeteroData,
        batch_size: int = 128,
        shuffle: bool = False,
        seed: int = 0,
        *,
        widths: Mapping[str, Sequence[int]] | None = None,
        attribute: str | None = 'category',
        replace: bool = True,
        history: HeteroData | None = None,
        fixed: bool = False,
        batch_attributes: Sequence[str] | None = None,
        **kwargs: Any,
    ) -> None:
        check_booleans(replace=replace, fixed=fixed)
        paths = _PathReader(data, data if history is None else history, seed)
        if batch_attributes is not None:
            paths.keep(batch_attributes)
        paths.sampler = PathSampler(paths.history, widths, attribute, replace)
        super().__init__(paths, batch_size, shuffle, seed, **kwargs)
        if fixed:
            paths.draw_all()

    def request(
        self, user: int | Tensor, items: Tensor, time: int | Tensor, **contexts: int | Tensor
    ) -> HeteroData:
        r"""Makes the batch of one request: one user and its candidate items. The paths of each
        depend on :obj:`seed`, its user, itself and the time alone, and not on the others.

        Args:
            user (int or torch.Tensor): The user, :obj:`-1` for an unknown one, or a user for each
                item, shape :obj:`[B]`.
            items (torch.Tensor): The candidates, :obj:`-1` for an unknown one, shape :obj:`[B]`.
            time (int or torch.Tensor): When, int64 seconds, or a time for each item, shape
                :obj:`[B]`.
            **contexts (int or torch.Tensor): Every categorical attribute that the exposures of the
                log have, such as :obj:`query`, one for the request or one for each item.

        Raises:
            IndexError: If the user, an item or the value of a context does not exist.
            TypeError: If an id, a time or a context is no integer.
            ValueError: If there is not one of each for the request, or one for each item, or a
                context is missing or unknown.
        """
        return self._request(user, items, time=time, contexts=contexts)


def _has_length(value: Any, length: int) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.size(0) == length


class _PathReader(RowReader):
    r"""Reads paths through clicks."""

    sampler: PathSampler

    def __init__(self, data: HeteroData, history: HeteroData, seed: int) -> None:
        require(data, 'PathLoader', 'edge_label_index', 'edge_label_time')
        require(history, 'PathLoader', 'edge_index', 'time')
        require_history(data, 'PathLoader', history)
        super().__init__(Exposures(data, 'PathLoader', needs=('edge_label_time',), outcomes=False))
        self.data, self.history, self.seed = data, history, seed
        clicks = data[CLICKS]
        self.num_clicks = history[CLICKS].edge_index.size(1)
        self.label_attributes = [
            name for name in label_attributes(data) if name != 'edge_label_index'
        ]
        for name in self.label_attributes:
            value = clicks[name]
            if not _has_length(value, len(self)):
                raise ValueError(
                    f"PathLoader expects '{name}' to be a tensor with an entry for each of "
                    f'{len(self)} exposures, but got {described(value)}.'
                )
        self.click_attributes = [name for name in click_attributes(history) if name != 'edge_index']
        self.node_attributes = {
            node_type: [
                name
                for name, value in data[node_type].items()
                if _has_length(value, data[node_type].num_nodes)
            ]
            for node_type in ('user', 'item')
        }
        self.paths: dict[str, list[Tensor]] | None = None

    def arguments(self) -> set[str]:
        return {'time', *self.exposures.context_names()}

    def batch(self, exposures: Exposures) -> HeteroData:
        rows = exposures.rows
        if rows is None:
            targets = exposures.user, exposures.item, exposures.time
            paths = self.sampler.draw(*targets, TargetChance(self.seed, *targets))
        elif self.paths is None:
            paths = self._draw(exposures, self._seed_of(rows))
        else:
            paths = {
                root: [level.index_select(0, rows).long() for level in levels]
                for root, levels in self.paths.items()
            }
        return self._to_batch(exposures, paths)

    def keep(self, names: Sequence[str]) -> None:
        r"""Leaves other attributes of nodes and clicks out of batches."""
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise TypeError(
                f"'batch_attributes' must be a sequence of names, such as ['time', 'query'], but "
                f'got {names!r}.'
            )
        groups = (*self.node_attributes.values(), self.click_attributes)
        existing = {name for group in groups for name in group}
        for name in names:
            check_choice(sorted(existing), batch_attributes=name)
        for group in groups:
            group[:] = [name for name in group if name in names]

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
        starts = range(0, len(self), _CHUNK)
        for start in tqdm(starts, 'Drawing paths', disable=len(starts) < 100, leave=False):
            # As if there were always more rows, on which the paths of these must not depend.
            rows = torch.arange(start, start + _CHUNK)
            targets = self.exposures[rows.clamp(max=len(self) - 1)]
            drawn_paths = self._draw(targets, self._seed_of(rows))
            for root, levels in drawn_paths.items():
                for level, drawn in zip(paths[root], levels, strict=True):
                    part = level[start : start + _CHUNK]
                    part.copy_(drawn[: part.size(0)])
        self.paths = paths

    def _seed_of(self, rows: Tensor) -> int:
        # Workers need not know the epoch, and a shuffled batch never returns.
        return zlib.crc32(rows.numpy().tobytes(), self.seed)

    def _draw(self, exposures: Exposures, seed: int) -> dict[str, list[Tensor]]:
        return self.sampler.draw(
            exposures.user,
            exposures.item,
            exposures.time,
            torch.Generator().manual_seed(seed),
        )

    def _to_batch(self, exposures: Exposures, paths: dict[str, list[Tensor]]) -> HeteroData:
        targets = {'user': exposures.user, 'item': exposures.item}
        size = targets['user'].numel()
        tree = PathTree(size)
        for depth in range(self.sampler.depth):
            for root, levels in paths.items():
                tree.add(root, levels[depth])

        batch = HeteroData()
        for child, edge_type in TO_PRECURSOR.items():
            e_id = torch.cat(tree.click[child])
            reached = self.sampler.neighbor[NEIGHBOR_TYPE[child]].index_select(0, e_id)
            nodes, edges = batch[child], batch[edge_type]
            self._copy_nodes(nodes, child, torch.cat([targets[child], reached]))
            nodes.batch = torch.cat(tree.target[child])
            nodes.num_sampled_nodes = [target.numel() for target in tree.target[child]]
            self._copy_clicks(edges, e_id)
            number = torch.arange(size, nodes.num_nodes)
            edges.edge_index = torch.stack([number, torch.cat(tree.precursor[child])])
            edges.num_sampled_edges = [click.numel() for click in tree.click[child]]
        clicks = batch[CLICKS]
        if exposures.rows is None:
            clicks.edge_label_time = exposures.time
            for name, value in exposures.contexts.items():
                clicks[f'edge_label_{name}'] = value
        else:
            # They are copied, and not read, so that only here anybody looks at them.
            self.exposures.check_outcomes()
            for name in self.label_attributes:
                clicks[name] = self.data[CLICKS][name].index_select(0, exposures.rows)
            clicks.input_id = exposures.rows
        clicks.edge_label_index = torch.arange(size).repeat(2, 1)
        return batch

    def _copy_nodes(self, store: NodeStorage, node_type: str, n_id: Tensor) -> None:
        source = self.data[node_type]
        for name, value in source.items():
            if not _has_length(value, source.num_nodes):
                store[name] = value
        known = known_places(n_id)
        for name in self.node_attributes[node_type]:
            table = source[name]
            unknown = 0 if known is None else unknown_row(table)
            store[name] = take_known(table, n_id, known, unknown)
        # Last, as the data may be a sample itself and so have attributes of these names.
        store.n_id, store.num_nodes = n_id, n_id.numel()

    def _copy_clicks(self, store: EdgeStorage, e_id: Tensor) -> None:
        source = self.history[CLICKS]
        for name in self.click_attributes:
            store[name] = source[name].index_select(0, e_id)
        store.e_id = e_id
