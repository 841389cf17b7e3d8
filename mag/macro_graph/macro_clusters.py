from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import (
    check_booleans,
    check_choice,
    check_ids,
    check_integers,
    check_keys,
    check_tensor,
)
from mag.macro_graph.grouping import Grouping, macro_behavior, raw_behavior
from mag.schema import CLICKS, NEIGHBOR_TYPE, categoricals


class MacroClusters:
    r"""The cluster of every user and item of a log, learned from its first window and kept in later
    ones.

    Clusters are learned by :meth:`fit` from the clicks of the first window. A node that appears
    later is assigned to the nearest centroid, by its clicks up to the first cutoff that knows it,
    and stays there, so that no later click decides about an earlier row. Node types whose
    behavior is made of the clusters of the others come last.

    Args:
        groups (dict[str, int or str]): For :obj:`"user"` and :obj:`"item"`, a number of clusters to
            learn, or the name of a categorical attribute whose values are the clusters.
        behavior (str or dict[str, str], optional): What is clustered, :obj:`"macro"` or
            :obj:`"raw"`, see :class:`~mag.transforms.MacroCoarsen`. (default: :obj:`None`)
        binary (bool, optional): If set to :obj:`False`, repeated clicks of a pair add up.
            (default: :obj:`True`)
        spherical (bool, optional): Cosine k-means. (default: :obj:`False`)
        projection_dim (int, optional): Width of the :obj:`"raw"` projection. (default: :obj:`256`)
        seed (int, optional): Seed of k-means and of the projection. (default: :obj:`0`)

    Attributes:
        groupings (dict[str, Grouping]): Those that were fitted, by node type.
        cluster (dict[str, torch.Tensor]): The clusters as of fit, shape :obj:`[N]` each.
        behaviors (dict[str, str]): Of each node type whose clusters are learned, what is clustered.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, or :obj:`behavior` does not fit :obj:`groups`.
    """

    def __init__(
        self,
        groups: dict[str, int | str],
        behavior: str | dict[str, str] | None = None,
        *,
        binary: bool = True,
        spherical: bool = False,
        projection_dim: int = 256,
        seed: int = 0,
    ) -> None:
        check_keys(('user', 'item'), groups=groups)
        numbers = {name: group for name, group in groups.items() if not isinstance(group, str)}
        check_integers(1, **{f'groups[{name!r}]': number for name, number in numbers.items()})
        check_integers(1, projection_dim=projection_dim)
        check_integers(0, below=2**31, seed=seed)
        check_booleans(binary=binary, spherical=spherical)
        self.groups = groups
        self.behaviors = resolve_behavior(groups, behavior)
        self.binary = binary
        self.spherical = spherical
        self.projection_dim = projection_dim
        self.seed = seed
        self.groupings: dict[str, Grouping] = {}
        self.cluster: dict[str, Tensor] = {}
        self._columns: dict[str, np.ndarray] = {}

    def fit(self, data: HeteroData, window: Tensor | None = None) -> 'MacroClusters':
        r"""Learns the clusters.

        Args:
            data (HeteroData): A training part.
            window (torch.Tensor, optional): The first window that knows each click, shape
                :obj:`[E]`, if the part rolls, see :func:`~mag.cutoff.window_of_click`.

        Raises:
            IndexError: If an attribute that groups are made of is out of its range.
            TypeError: If it holds no integers.
            ValueError: If it is missing or has another shape, or there are fewer nodes with a click
                than clusters.
        """
        self.groupings = {
            node_type: Grouping(group, spherical=self.spherical, seed=self.seed)
            for node_type, group in self.groups.items()
            if isinstance(group, int)
        }
        self.cluster = {}
        first = data[CLICKS].edge_index
        first = first if window is None else first[:, window == 0]
        # Nodes that only come later are no columns yet, though the data may have them.
        user, item = (row.bincount().nonzero().view(-1).numpy() for row in first)
        self._columns = {'user': item, 'item': user}
        cluster = self._start(data)
        for node_type in self._order():
            embedding, is_clicked = self._embed(
                data, node_type, first, cluster[NEIGHBOR_TYPE[node_type]]
            )
            cluster[node_type][is_clicked] = self.groupings[node_type].fit(embedding[is_clicked])
        self.cluster = cluster
        self.cluster = self.assign(data, window)
        return self

    def assign(self, data: HeteroData, window: Tensor | None = None) -> dict[str, Tensor]:
        r"""The clusters of all nodes of a part, :obj:`-1` for one of a learned grouping that has no
        click yet, shape :obj:`[N]` each.

        Args:
            data (HeteroData): A part of the log that was fitted.
            window (torch.Tensor, optional): As for :meth:`fit`.

        Raises:
            ValueError: If the part has fewer nodes than were fitted.
        """
        cluster = self._start(data)
        edge_index = data[CLICKS].edge_index
        for node_type in self._order():
            node = edge_index[0 if node_type == 'user' else 1]
            new = cluster[node_type][node] < 0
            if not bool(new.any()):
                continue
            if window is not None:
                first = window.new_full((data[node_type].num_nodes,), torch.iinfo(torch.long).max)
                first.scatter_reduce_(0, node, window, 'amin')
                new &= window == first[node]
            embedding, is_clicked = self._embed(
                data, node_type, edge_index[:, new], cluster[NEIGHBOR_TYPE[node_type]]
            )
            cluster[node_type] = cluster[node_type].clone()
            cluster[node_type][is_clicked] = self.groupings[node_type].assign(embedding[is_clicked])
        return cluster

    def num_clusters(self, data: HeteroData, node_type: str) -> int:
        r"""The number of clusters of a node type."""
        group = self.groups[node_type]
        if isinstance(group, int):
            return group
        numbers = categoricals(data[node_type])
        return numbers[group] if group in numbers else int(data[node_type][group].max()) + 1

    def _order(self) -> list[str]:
        return sorted(self.behaviors, key=lambda node_type: self.behaviors[node_type] == 'macro')

    def _start(self, data: HeteroData) -> dict[str, Tensor]:
        r"""Clusters as far as attributes and :meth:`fit` tell them, :obj:`-1` elsewhere."""
        cluster = {}
        for node_type, group in self.groups.items():
            num_nodes = data[node_type].num_nodes
            if isinstance(group, str):
                cluster[node_type] = self._attribute(data, node_type, group)
                continue
            fitted = self.cluster.get(node_type, torch.empty(0, dtype=torch.long))
            grown = num_nodes - fitted.numel()
            if grown < 0:
                raise ValueError(
                    f'MacroCoarsen was fitted on {fitted.numel()} {node_type}s, but this data has '
                    f'only {num_nodes}: parts of one log share their nodes.'
                )
            cluster[node_type] = torch.nn.functional.pad(fitted, (0, grown), value=-1)
        return cluster

    def _attribute(self, data: HeteroData, node_type: str, group: str) -> Tensor:
        store, name = data[node_type], f"data['{node_type}'].{group}"
        if group not in store:
            raise ValueError(
                f"'groups' names the attribute '{group}' of '{node_type}', but "
                f"data['{node_type}'] has {list(store.keys())}."
            )
        check_tensor('MacroCoarsen', name, store[group], (store.num_nodes,), torch.long)
        number = categoricals(store).get(group, 2**63)
        check_ids('MacroCoarsen', f'clusters in {name}', store[group], number)
        return store[group]

    def _embed(
        self, data: HeteroData, node_type: str, edge_index: Tensor, other_cluster: Tensor
    ) -> tuple[Tensor, Tensor]:
        r"""Behavior embeddings from :obj:`edge_index`, and which nodes have any click in it."""
        other = NEIGHBOR_TYPE[node_type]
        row, column = edge_index if node_type == 'user' else edge_index.flip(0)
        num_nodes = data[node_type].num_nodes
        clicks = scipy.sparse.csr_matrix(
            (np.ones(row.numel(), dtype=np.float32), (row.numpy(), column.numpy())),
            shape=(num_nodes, data[other].num_nodes),
        )
        if self.binary:
            clicks.data[:] = 1
        is_clicked = torch.from_numpy(np.diff(clicks.indptr) > 0)
        if self.behaviors[node_type] == 'raw':
            columns = self._columns[node_type]
            return raw_behavior(clicks, self.projection_dim, self.seed, columns), is_clicked
        counts = scipy.sparse.csr_matrix(
            (clicks.data, other_cluster.numpy()[clicks.indices], clicks.indptr),
            shape=(num_nodes, self.num_clusters(data, other)),
        )
        return macro_behavior(torch.from_numpy(counts.toarray())), is_clicked


def resolve_behavior(groups: dict[str, int | str], behavior: Any) -> dict[str, str]:
    r"""What is clustered of each node type whose clusters are learned: by default
    :obj:`"macro"` where the neighbors are grouped by an attribute, else :obj:`"raw"`."""
    learned = [node_type for node_type, group in groups.items() if isinstance(group, int)]
    given = behavior if isinstance(behavior, dict) else {}
    if behavior is not None and not isinstance(behavior, dict):
        given = dict.fromkeys(learned or NEIGHBOR_TYPE, behavior)
    if not given.keys() <= set(learned):
        raise ValueError(
            f"'behavior' is {behavior!r}, but with 'groups' {groups} clusters are learned for "
            f'{learned or "none"} only.'
        )
    behaviors = {
        name: given.get(name, 'macro' if isinstance(groups[NEIGHBOR_TYPE[name]], str) else 'raw')
        for name in learned
    }
    for node_type, value in behaviors.items():
        check_choice(('macro', 'raw'), **{f'behavior[{node_type!r}]': value})
    if behaviors == {'user': 'macro', 'item': 'macro'}:
        raise ValueError(
            f"'behavior' cannot be 'macro' for both users and items with 'groups' {groups}: the "
            f'counts of the one need the clusters of the other. Group one side by an attribute, or '
            f"set its behavior to 'raw'."
        )
    return behaviors
