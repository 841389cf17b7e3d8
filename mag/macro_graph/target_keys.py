import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_ids, check_tensor
from mag.macro_graph.target_view import TargetView
from mag.schema import categoricals


class TargetKeys:
    r"""Numbers, for each view, what a user, an item and an exposure agree in.

    A macro node is read as of the moment at which it became known, where
    :obj:`data['user'].<name>_since` tells it: before, a node is of none, so that no later click
    decides about an earlier count.

    Args:
        data (HeteroData): A graph with the attributes of users and items that the views name.
        views (Sequence[TargetView]): The views.
        num_values (Mapping[str, int]): The number of values of each attribute of exposures.
        caller (str): Who asks, for messages.

    Attributes:
        num_keys (list[int]): How many keys each view has.

    Raises:
        IndexError: If an attribute is out of its range.
        TypeError: If an attribute holds no integers.
        ValueError: If an attribute is missing or has another shape, there are no nodes to count by,
            or views have more keys than int64 can number.
    """

    def __init__(
        self,
        data: HeteroData,
        views: Sequence[TargetView],
        num_values: Mapping[str, int],
        caller: str,
    ) -> None:
        self.views, self._caller = views, caller
        self._num_nodes = {name: data[name].num_nodes for name in ('user', 'item')}
        self._contexts = sorted({view.exposure for view in views if view.exposure is not None})
        self._num_contexts = {name: number + 1 for name, number in num_values.items()}
        # By node type and name: the value of an unknown node, which is of none, 0, and then that of
        # each node after 0 for none, if it is not the node itself, their number, and since when
        # each is known.
        self._attributes: dict[tuple[str, str], tuple[Tensor | None, int, Tensor | None]] = {}
        self.num_keys = []
        for view in views:
            sizes = [
                self._read(data, node_type, name, caller)
                for node_type, name in (('user', view.user), ('item', view.item))
                if name is not None
            ]
            if view.exposure is not None:
                if view.exposure not in num_values:
                    raise ValueError(
                        f'{caller} counts by {view.name!r}, but exposures have no categorical '
                        f'attribute {view.exposure!r}, only {sorted(num_values)}.'
                    )
                sizes.append(self._num_contexts[view.exposure])
            self.num_keys.append(math.prod(sizes))
            if sum(self.num_keys) >= 2**63:
                raise ValueError(
                    f'{caller} numbers the combinations of {view.name!r}, of which there are '
                    f'{self.num_keys[-1]}, too many for int64.'
                )

    def __call__(
        self, user: Tensor, item: Tensor, clock: Tensor | None, contexts: Mapping[str, Tensor]
    ) -> list[Tensor]:
        r"""The keys of exposures, shape :obj:`[E]` for each view.

        Args:
            user (torch.Tensor): Their users, :obj:`-1` for an unknown one, shape :obj:`[E]`.
            item (torch.Tensor): Their items, likewise.
            clock (torch.Tensor or None): When each was, or what is known by then, shape
                :obj:`[E]`; :obj:`None` if all is known that the graph knows.
            contexts (Mapping[str, torch.Tensor]): The attributes of exposures that views name,
                :obj:`-1` for none, shape :obj:`[E]`.

        Raises:
            IndexError: If a user, an item or a value of an attribute does not exist.
            TypeError: If one is no integer.
            ValueError: If an attribute is missing, or has another shape.
        """
        for node_type, node in (('user', user), ('item', item)):
            check_ids(self._caller, f'{node_type}s', node, self._num_nodes[node_type], first=-1)
        for name in self._contexts:
            value: Any = contexts.get(name)
            check_tensor(self._caller, name, value, (user.numel(),), 'integers')
            number = self._num_contexts[name] - 1
            check_ids(self._caller, f"values of '{name}'", value, number, first=-1)
        values: dict[tuple[str, str], Tensor] = {}
        for (node_type, name), (table, _, since) in self._attributes.items():
            node = user if node_type == 'user' else item
            value = node + 1 if table is None else table[node + 1]
            if since is not None and clock is not None:
                value = value.where(since[node.clamp(min=0)] <= clock, 0)
            values[node_type, name] = value
        keys = []
        for view in self.views:
            key = torch.zeros_like(user)
            for node_type, attribute in (('user', view.user), ('item', view.item)):
                if attribute is not None:
                    part = node_type, attribute
                    key = key * self._attributes[part][1] + values[part]
            if view.exposure is not None:
                key = key * self._num_contexts[view.exposure] + contexts[view.exposure] + 1
            keys.append(key)
        return keys

    def require_known(self, user: Tensor, item: Tensor) -> None:
        r"""Raises an :class:`IndexError` unless all users and items are known, shape :obj:`[E]`."""
        for node_type, node in (('user', user), ('item', item)):
            check_ids(self._caller, f'{node_type}s', node, self._num_nodes[node_type])

    def _read(self, data: HeteroData, node_type: str, name: str, caller: str) -> int:
        r"""Reads an attribute of nodes, and returns how many values it has, none among them."""
        if (node_type, name) in self._attributes:
            return self._attributes[node_type, name][1]
        store = data[node_type]
        num_nodes = self._num_nodes[node_type]
        if num_nodes == 0:
            raise ValueError(
                f'{caller} counts by {name!r} of {node_type}s, but the graph has no {node_type}s.'
            )
        if name == 'id':
            self._attributes[node_type, name] = None, num_nodes + 1, None
            return num_nodes + 1
        if name not in store:
            raise ValueError(
                f"{caller} counts by '{name}' of {node_type}s, but data['{node_type}'] has "
                f'{list(store.keys())}.'
            )
        value, since = store[name], store.get(f'{name}_since')
        check_tensor(caller, name, value, (num_nodes,), 'integers')
        if since is not None:
            check_tensor(caller, f'{name}_since', since, (num_nodes,), 'numbers')
        number = categoricals(store).get(name, int(value.max()) + 1)
        check_ids(caller, f"values of data['{node_type}'].{name}", value, number, first=-1)
        # Narrow integers have no room for none.
        value = value.long()
        table = torch.cat([value.new_zeros(1), value + 1])
        self._attributes[node_type, name] = table, number + 1, since
        return number + 1
