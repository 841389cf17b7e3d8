r"""From a request to probabilities."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData

from mag.context_values import encode_context, for_each
from mag.loader import ExposureBatch, ExposureLoader, PairBatch
from mag.logits import as_logits, probabilities
from mag.online.replica import Replica
from mag.online.snapshot import Snapshot
from mag.schema import CLICKS, NEIGHBOR_TYPE

_MOST_ITEMS = 2000


class Answer(NamedTuple):
    r"""What is told of a request.

    Attributes:
        probabilities (dict[str, torch.Tensor]): Those that :func:`mag.logits.probabilities` makes
            of what the model returns, float64, each of shape :obj:`[B]`.
        position (int): The position in the log that was read.
        degraded (str or None): Why later events were not; :obj:`None` if the log could be read.
    """

    probabilities: dict[str, Tensor]
    position: int
    degraded: str | None


class Scorer:
    r"""Scores the candidates of a request by what a replica holds.

    .. code-block:: python

        model = pipeline.model
        model.load_state_dict(snapshot.weights())
        scorer = Scorer(snapshot, replica, model)
        scorer.score('ann', ['tea', 'rice'], {'device': 'phone'}).probabilities['click']

    A batch is what :meth:`Pipeline.batch <mag.pipeline.Pipeline.batch>` makes of the same request
    after the same events. Two things differ. What "now" is follows from the position in the log, so
    that events of the very second of the request are read, too. And users and items that came after
    the snapshot are unknown, also as recent neighbors, until there is a new one.

    Args:
        snapshot (Snapshot): Whose ids and attributes are read.
        replica (Replica): One that started from it.
        model (torch.nn.Module): The model, in evaluation mode, or the program that
            :meth:`Pipeline.export <mag.pipeline.Pipeline.export>` wrote.

    Raises:
        TypeError: If the model is no module.
        ValueError: If the replica started from another snapshot, the model is in training mode, or
            the snapshot is of a model that nothing here makes batches for.
    """

    def __init__(self, snapshot: Snapshot, replica: Replica, model: Module) -> None:
        if snapshot.path != replica.snapshot.path:
            raise ValueError(
                f"'replica' must have started from {snapshot!r}, but did from {replica.snapshot!r}."
            )
        if not isinstance(model, Module):
            raise TypeError(f"'model' must be a torch.nn.Module, but got {type(model).__name__}.")
        # A program has no mode, and says that it is in training.
        if model.training and not isinstance(model, torch.fx.GraphModule):
            raise ValueError(
                f"'model' must be in evaluation mode, but {type(model).__name__} is in training "
                f'mode: call model.eval().'
            )
        makers: dict[str, Callable[..., Any]] = {
            'count_net': self._exposures,
            'macgnn': self._pairs,
        }
        if snapshot.model not in makers:
            raise ValueError(
                f'Scorer makes batches for {" and ".join(makers)}, but {snapshot!r} is of '
                f'{snapshot.model!r}.'
            )
        self.snapshot, self.replica, self.model = snapshot, replica, model
        self._make = makers[snapshot.model]
        self._contexts: list[str] = snapshot.manifest['contexts']
        # At each resolution, the cluster of each node as a column, and that of who is in none at
        # its end.
        self._clusters = {
            node: [
                np.append(np.where(of < 0, number, of), number)
                for of, number in zip(snapshot.clusters[node], numbers, strict=True)
            ]
            for node, numbers in snapshot.layout.num_clusters.items()
        }
        if snapshot.model == 'count_net':
            self._loader = ExposureLoader(self._graph())

    def score(
        self, user: Any, items: Sequence[Any], context: Mapping[str, Any] | None = None
    ) -> Answer:
        r"""The probabilities of a request.

        Args:
            user (id): The raw id of the user.
            items (list): Raw ids of at most 2,000 candidates, shape :obj:`[B]`. Unknown ids have a
                score, too.
            context (dict, optional): By name, each context of the log, one for the request or one
                for each item. (default: :obj:`None`)

        Raises:
            TypeError: If an id is of a type that cannot be compared with those of the log.
            ValueError: If there is not one user, there are more candidates, or a context is missing
                or unknown.
        """
        batch = self.batch(user, items, context)
        position, degraded = self.replica.position, self.replica.degraded
        with torch.inference_mode():
            logits = as_logits(type(self.model).__name__, self.model(batch))
            return Answer(probabilities(logits), position, degraded)

    def batch(
        self, user: Any, items: Sequence[Any], context: Mapping[str, Any] | None = None
    ) -> Any:
        r"""What the model reads of a request, an :class:`~mag.loader.ExposureBatch` or a
        :class:`~mag.loader.PairBatch`.

        Args and errors are those of :meth:`score`.
        """
        maps = self.snapshot.id_maps
        item = maps['item'].encode(items)
        if item.ndim != 1 or len(item) > _MOST_ITEMS:
            raise ValueError(
                f"'items' must be a list of at most {_MOST_ITEMS} ids, but got shape "
                f'{list(item.shape)}.'
            )
        if not isinstance(user, (str, bytes)) and np.ndim(user) > 0:
            raise ValueError(f"'user' must be the id of one user, but got {user!r}.")
        return self._make(int(maps['user'].encode([user])[0]), item, self._read(context, len(item)))

    def _read(self, context: Mapping[str, Any] | None, number: int) -> dict[str, Tensor]:
        r"""The numbers of the names of a context."""
        if context is not None and not isinstance(context, Mapping):
            raise TypeError(f"'context' must be a dictionary of names, but got {context!r}.")
        given = dict(context or {})
        if set(given) != set(self._contexts):
            raise ValueError(
                f"'context' must tell {self._contexts or 'nothing'}, but told "
                f'{sorted(given) or "nothing"}.'
            )
        return {
            name: for_each(
                name, encode_context(self.snapshot.id_maps[name], given[name]), number
            ).contiguous()
            for name in self._contexts
        }

    def _pairs(self, user: int, item: np.ndarray, contexts: dict[str, Tensor]) -> PairBatch:
        nodes = {'user': np.array([user]), 'item': item}
        hops, recent = {}, {}
        for node, of_node in nodes.items():
            rows = self.replica.rows(node, of_node)
            number = self.snapshot.layout.num_clusters[NEIGHBOR_TYPE[node]][0]
            hops[node] = [_floats(rows['pairs'][:, :number])]
            if self.snapshot.hop_2:
                hops[node].append(_floats(self.replica.hop_2(node, of_node)))
            found = rows['recent']
            # The model knows nothing of who has come since.
            is_known = found < self.snapshot.num_nodes[NEIGHBOR_TYPE[node]]
            recent[node] = torch.from_numpy(np.where(is_known, found, -1).astype(np.int64))
        size = len(item)
        return PairBatch(
            torch.full((size,), user),
            torch.from_numpy(item),
            tuple(hop.repeat(size, 1) for hop in hops['user']),
            tuple(hops['item']),
            recent['user'].repeat(size, 1),
            recent['item'],
        )

    def _exposures(self, user: int, item: np.ndarray, contexts: dict[str, Tensor]) -> ExposureBatch:
        return self._loader.request(
            user, torch.from_numpy(item), counts=_floats(self._counts(user, item)), **contexts
        )

    def _counts(self, user: int, item: np.ndarray) -> np.ndarray:
        r"""The counts at the target, in the order of
        :func:`~mag.macro_graph.target_views`, shape :obj:`[B, C, 2]`."""
        layout = self.snapshot.layout
        of_user = self.replica.rows('user', np.array([user]))
        of_item = self.replica.rows('item', item)
        # That of an unknown node is the last, of who is in none.
        user_cluster = [of[user] for of in self._clusters['user']]
        item_cluster = [of[item] for of in self._clusters['item']]
        size = len(item)
        views = [
            [np.broadcast_to(total, size) for total in _totals(of_user, layout.columns('user', 0))],
            _totals(of_item, layout.columns('item', 0)),
        ]
        for t, column in enumerate(item_cluster):
            at = layout.columns('user', t).start + column
            views.append([of_user[name][0, at] for name in ('exposures', 'clicks')])
        for s, column in enumerate(user_cluster):
            at = layout.columns('item', s).start + column
            views.append([of_item[name][:, at] for name in ('exposures', 'clicks')])
        for s, row in enumerate(user_cluster):
            for t, column in enumerate(item_cluster):
                table = self.replica.cells[s, t][row, column]
                views.append([table[:, 0], table[:, 1]])
        counts = np.empty((size, len(views), 2))
        for place, (seen, clicked) in enumerate(views):
            counts[:, place, 0], counts[:, place, 1] = seen, clicked
        if not self.snapshot.shares_without_cluster:
            no_user, no_item = (
                [column == number for column, number in zip(found, layout.num_clusters[node])]
                for node, found in (('user', user_cluster), ('item', item_cluster))
            )
            both = [one | other for one in no_user for other in no_item]
            # The first two are of the nodes themselves.
            for place, is_without in enumerate([*no_item, *no_user, *both], 2):
                counts[np.broadcast_to(is_without, size), place] = 0
        return counts

    def _graph(self) -> HeteroData:
        r"""The users and items with their attributes, and no event, as a loader reads it."""
        snapshot, none = self.snapshot, torch.empty(0, dtype=torch.long)
        data = HeteroData()
        for node, attributes in snapshot.attributes.items():
            data[node].num_nodes = snapshot.num_nodes[node]
            for name, value in attributes.items():
                data[node][name] = torch.tensor(value)
                data[node][f'num_{name}'] = len(snapshot.id_maps[name])
        clicks = data[CLICKS]
        clicks.edge_index = clicks.edge_label_index = none.view(1, 0).expand(2, 0)
        clicks.edge_label, clicks.edge_label_time = none.float(), none
        for name in self._contexts:
            clicks[f'edge_label_{name}'] = none
            clicks[f'num_{name}'] = len(snapshot.id_maps[name])
        numbers = [len(of) for of in snapshot.layout.num_clusters.values()]
        num_views = 2 + sum(numbers) + numbers[0] * numbers[1]
        clicks.edge_label_counts = torch.empty(0, num_views, 2)
        return data

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.replica!r}, {type(self.model).__name__})'


def _floats(counts: np.ndarray) -> Tensor:
    return torch.from_numpy(counts.astype(np.float32))


def _totals(rows: np.ndarray, columns: slice) -> list[np.ndarray]:
    r"""All exposures and clicks of nodes, shape :obj:`[B]` each: any resolution has them all."""
    return [rows['seen'], rows['clicks'][:, columns].sum(axis=1)]
