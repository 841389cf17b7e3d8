from collections.abc import Mapping, Sequence
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
from mag.click_index import first_click
from mag.macro_graph.grouping import Grouping, cluster_counts, macro_behavior, raw_behavior
from mag.schema import CLICKS, NEIGHBOR_TYPE, Resolution, categoricals

Group = int | str | Sequence[int | str]


class MacroClusters:
    r"""The cluster of every user and item of a log, learned from its first window and kept in later
    ones.

    Clusters are learned by :meth:`fit` from the clicks of the first window. A node that appears
    later is assigned to the nearest centroid, by its clicks up to the first cutoff that knows it,
    and stays there, so that no later click decides about an earlier row. Node types whose
    behavior is made of the clusters of the others come last. All resolutions of a node type are
    learned from the same behavior embeddings, which are made once.

    Args:
        groups (dict[str, int or str or list]): For :obj:`"user"` and :obj:`"item"`, a number of
            clusters to learn, or the name of a categorical attribute whose values are the clusters,
            or a list of these, one a resolution.
        behavior (str or dict[str, str], optional): What is clustered, :obj:`"macro"` or
            :obj:`"raw"`, see :class:`~mag.transforms.MacroCoarsen`. (default: :obj:`None`)
        binary (bool, optional): If set to :obj:`False`, repeated clicks of a pair add up.
            (default: :obj:`True`)
        spherical (bool, optional): Cosine k-means. (default: :obj:`False`)
        projection_dim (int, optional): Width of the :obj:`"raw"` projection. (default: :obj:`256`)
        seed (int, optional): Seed of k-means and of the projection. (default: :obj:`0`)

    Attributes:
        resolutions (list[Resolution]): All of users, and then all of items.
        groupings (dict[str, Grouping]): Those that were fitted, by the name of the resolution, such
            as :obj:`"user"` and :obj:`"user_200"`.
        cluster (dict[str, torch.Tensor]): The clusters as of fit, shape :obj:`[N]` each, likewise.
        behaviors (dict[str, str]): Of each node type whose clusters are learned, what is clustered.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range, or :obj:`behavior` does not fit :obj:`groups`.
    """

    def __init__(
        self,
        groups: Mapping[str, Group],
        behavior: str | dict[str, str] | None = None,
        *,
        binary: bool = True,
        spherical: bool = False,
        projection_dim: int = 256,
        seed: int = 0,
    ) -> None:
        self.resolutions = resolutions(groups)
        check_integers(1, projection_dim=projection_dim)
        check_integers(0, below=2**31, seed=seed)
        check_booleans(binary=binary, spherical=spherical)
        self.groups = groups
        self._first = {node.node_type: node for node in self.resolutions if not node.suffix}
        self.behaviors = resolve_behavior(groups, self.resolutions, behavior)
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
            name: grouping
            for node_type in NEIGHBOR_TYPE
            for name, grouping in self.unfitted(node_type).items()
        }
        self.cluster = {}
        first = data[CLICKS].edge_index
        first = first if window is None else first[:, window == 0]
        # Nodes that only come later are no columns yet, though the data may have them.
        user, item = (row.bincount().nonzero().view(-1).numpy() for row in first)
        self._columns = {'user': item, 'item': user}
        cluster = self._start(data)
        for node_type in self.order():
            embedding, is_clicked = self._embed(
                data, node_type, first, cluster[NEIGHBOR_TYPE[node_type]]
            )
            for name in self.unfitted(node_type):
                cluster[name][is_clicked] = self.groupings[name].fit(
                    embedding[is_clicked], is_clicked.nonzero().view(-1)
                )
        self.cluster = cluster
        self.cluster = self.assign(data, window)
        return self

    def assign(self, data: HeteroData, window: Tensor | None = None) -> dict[str, Tensor]:
        r"""The clusters of all nodes of a part, :obj:`-1` for one of a learned grouping that has no
        click yet, shape :obj:`[N]` each, by the name of the resolution.

        Args:
            data (HeteroData): A part of the log that was fitted.
            window (torch.Tensor, optional): As for :meth:`fit`.

        Raises:
            ValueError: If the part has fewer nodes than were fitted.
        """
        cluster = self._start(data)
        edge_index = data[CLICKS].edge_index
        for node_type in self.order():
            node = edge_index[0 if node_type == 'user' else 1]
            names = [*self.unfitted(node_type)]
            # All resolutions know the same nodes.
            new = cluster[names[0]][node] < 0
            if not bool(new.any()):
                continue
            if window is not None:
                new &= window == first_click(window, node, data[node_type].num_nodes)[node]
            embedding, is_clicked = self._embed(
                data, node_type, edge_index[:, new], cluster[NEIGHBOR_TYPE[node_type]]
            )
            for name in names:
                cluster[name] = cluster[name].clone()
                cluster[name][is_clicked] = self.groupings[name].assign(embedding[is_clicked])
        return cluster

    def num_clusters(self, data: HeteroData, of: Resolution) -> int:
        r"""The number of clusters of a resolution."""
        if isinstance(of.group, int):
            return of.group
        store = data[of.node_type]
        numbers = categoricals(store)
        return numbers[of.group] if of.group in numbers else int(store[of.group].max()) + 1

    def unfitted(self, node_type: str) -> dict[str, Grouping]:
        r"""What learns the clusters of a node type, by the name of the resolution."""
        return {
            of.name: Grouping(of.group, spherical=self.spherical, seed=self.seed)
            for of in self.resolutions
            if of.node_type == node_type and isinstance(of.group, int)
        }

    def order(self) -> list[str]:
        r"""The node types whose clusters are learned, one that waits for the other last."""
        first = {name: of.group for name, of in self._first.items()}
        return sorted(self.behaviors, key=lambda name: _waits(name, self.behaviors, first))

    def _start(self, data: HeteroData) -> dict[str, Tensor]:
        r"""Clusters as far as attributes and :meth:`fit` tell them, :obj:`-1` elsewhere."""
        cluster = {}
        for of in self.resolutions:
            node_type = of.node_type
            num_nodes = data[node_type].num_nodes
            if isinstance(of.group, str):
                cluster[of.name] = self._attribute(data, node_type, of.group)
                continue
            fitted = self.cluster.get(of.name, torch.empty(0, dtype=torch.long))
            grown = num_nodes - fitted.numel()
            if grown < 0:
                raise ValueError(
                    f'MacroCoarsen was fitted on {fitted.numel()} {node_type}s, but this data has '
                    f'only {num_nodes}: parts of one log share their nodes.'
                )
            cluster[of.name] = torch.nn.functional.pad(fitted, (0, grown), value=-1)
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
        num_clusters = self.num_clusters(data, self._first[other])
        centroids = self.groupings[next(iter(self.unfitted(node_type)))].centroids
        # The attribute may have got values since fit, of which no centroid knows.
        width = num_clusters if centroids is None else centroids.size(1)
        counts = cluster_counts(clicks, other_cluster.numpy(), max(num_clusters, width))
        return macro_behavior(counts)[:, :width], is_clicked


def resolutions(groups: Mapping[str, Group]) -> list[Resolution]:
    r"""All resolutions of users, and then all of items.

    Raises:
        TypeError: If a group is neither an integer nor a string.
        ValueError: If a number is below 1, or a list is empty or names a group twice.
    """
    check_keys(('user', 'item'), groups=groups)
    found = []
    for node_type in NEIGHBOR_TYPE:
        given = groups[node_type]
        is_list = isinstance(given, Sequence) and not isinstance(given, str)
        several: list[Any] = list(given) if is_list else [given]  # type: ignore[arg-type]
        name = f'groups[{node_type!r}]'
        if not several:
            raise ValueError(
                f"'{name}' must name a group, or a list of one or more, but got {given!r}."
            )
        for place, group in enumerate(several):
            if not isinstance(group, str):
                check_integers(1, **{f'{name}[{place}]' if is_list else name: group})
            if str(group) in map(str, several[:place]):
                raise ValueError(f"'{name}' must name each group once, but got {given!r}.")
            if place > 0 and str(group).endswith('since'):
                raise ValueError(
                    f"'{name}' cannot name {group!r} after another group, as names that end in "
                    f"'since' tell when a cluster was known: put it first, or rename the attribute."
                )
            found.append(Resolution(node_type, group, f'_{group}' if place > 0 else ''))
    return found


def resolve_behavior(
    groups: Mapping[str, Group], found: list[Resolution], behavior: Any
) -> dict[str, str]:
    r"""What is clustered of each node type whose clusters are learned: by default
    :obj:`"macro"` where the neighbors are grouped by an attribute, at the first resolution, else
    :obj:`"raw"`."""
    first = {of.node_type: of.group for of in found if not of.suffix}
    is_learned = {of.node_type for of in found if isinstance(of.group, int)}
    learned = [node_type for node_type in groups if node_type in is_learned]
    given = behavior if isinstance(behavior, dict) else {}
    if behavior is not None and not isinstance(behavior, dict):
        given = dict.fromkeys(learned or NEIGHBOR_TYPE, behavior)
    if not given.keys() <= set(learned):
        raise ValueError(
            f"'behavior' is {behavior!r}, but with 'groups' {groups} clusters are learned for "
            f'{learned or "none"} only.'
        )
    behaviors = {
        name: given.get(name, 'macro' if isinstance(first[NEIGHBOR_TYPE[name]], str) else 'raw')
        for name in learned
    }
    for node_type, value in behaviors.items():
        check_choice(('macro', 'raw'), **{f'behavior[{node_type!r}]': value})
    if all(_waits(node_type, behaviors, first) for node_type in NEIGHBOR_TYPE):
        raise ValueError(
            f"'behavior' cannot be 'macro' for both users and items with 'groups' {groups}: the "
            f'counts of the one need the clusters of the other. Group one side by an attribute, or '
            f"set its behavior to 'raw'."
        )
    return behaviors


def _waits(node_type: str, behaviors: dict[str, str], first: Mapping[str, int | str]) -> bool:
    r"""Whether the behavior of a node type is made of clusters that are learned."""
    is_macro = behaviors.get(node_type) == 'macro'
    return is_macro and isinstance(first[NEIGHBOR_TYPE[node_type]], int)
