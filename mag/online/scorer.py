r"""From a request to probabilities."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData

from mag.checks import check_integers
from mag.context_values import encode_context, for_each
from mag.loader import ExposureBatch, ExposureLoader, PairBatch
from mag.logits import Logits, as_logits, probabilities
from mag.macro_graph import target_views
from mag.online.id_register import IdRegister, NewIds
from mag.online.item_table import ItemTable, SplitBatch, SplitModel
from mag.online.replica import Replica
from mag.online.snapshot import Snapshot
from mag.schema import CLICKS, NEIGHBOR_TYPE

_LOGGER = logging.getLogger(__name__)
_MOST_ITEMS = 2000
# Of states of items.
_MAX_BYTES = 2**30


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
    after the same events. Three things differ. What "now" is follows from the position in the log,
    so that events of the very second of the request are read, too. Hop 2 of items is that of the
    snapshot and what their own clicks have added. And users and items that came after
    the snapshot are unknown to the model, also as recent neighbors, until there is a new one: where
    a register knows their ids, what was counted of them is read, and in which cluster they are is
    not known yet.

    Where the model scores in two steps, as :class:`~mag.models.MacGNN` does (see
    :class:`~mag.online.item_table.SplitModel`), what it reads of items alone is kept until their
    rows move: for MacGNN with :math:`M` macro users, 20 recent users and :math:`d = 10`, that are
    :math:`4 M + 1008` bytes for each item that was asked for.

    Args:
        snapshot (Snapshot): Whose ids and attributes are read.
        replica (Replica): One that started from it.
        model (torch.nn.Module): The model, in evaluation mode, the :class:`Program` that
            :func:`load_program` reads, or the one that
            :meth:`Pipeline.export <mag.pipeline.Pipeline.export>` wrote. Its weights stay as they
            are.
        register (IdRegister, optional): Where ids that came after the snapshot are found. It is
            read in the thread that asks. (default: :obj:`None`)
        max_bytes (int, optional): What the states of items may take; if all together took more,
            none is kept. (default: 1 GiB)

    Attributes:
        table (ItemTable or None): What is kept of items.
        asks_register (bool): Whether ids that nobody has asked for yet are looked for in the
            register, which may hang with the log.
        fields (tuple[str, ...]): The names of the categorical fields of a batch of exposures.
        views (tuple[str, ...]): Those of its counts at the target.

    Raises:
        TypeError: If the model is no module.
        ValueError: If the replica started from another snapshot, the model is in training mode, or
            the snapshot is of a model that nothing here makes batches for.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        replica: Replica,
        model: Module,
        register: IdRegister | None = None,
        max_bytes: int = _MAX_BYTES,
    ) -> None:
        check_integers(0, max_bytes=max_bytes)
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
        # Of the class, so that a copy reads its own replica.
        makers: dict[str, Callable[..., Any]] = {
            'ExposureBatch': Scorer._exposures,
            'PairBatch': Scorer._pairs,
        }
        if snapshot.batch not in makers:
            raise ValueError(
                f'Scorer makes an {" or a ".join(makers)}, but {snapshot!r} is of a model that '
                f'reads {snapshot.batch!r}.'
            )
        self.snapshot, self.replica, self.model = snapshot, replica, model
        self.register = register
        self.asks_register = True
        self._new_ids = None if register is None else NewIds(register, snapshot.num_nodes)
        # As of which position, after how many restarts, they were read.
        self._ids_as_of = (-1, 0)
        # What one more click would give a number, see after_click().
        self._clicked: dict[str, tuple[str, int]] = {}
        self._make = makers[snapshot.batch]
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
        self.fields: tuple[str, ...] = ()
        self.views: tuple[str, ...] = ()
        if snapshot.batch == 'ExposureBatch':
            self.views = tuple(view.name for view in target_views(**snapshot.resolutions))
            self._loader = ExposureLoader(self._graph())
            self.fields = self._loader.fields
        self.table: ItemTable | None = None
        if snapshot.batch == 'PairBatch' and isinstance(model, SplitModel):
            table = ItemTable(model, replica, self._rows)
            self.table = table if table.num_bytes <= max_bytes else None

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
        read = self.read(user, items, context)
        position, degraded = self.replica.position, self.replica.degraded
        with torch.inference_mode():
            return Answer(probabilities(self.logits(read)), position, degraded)

    def read(
        self, user: Any, items: Sequence[Any], context: Mapping[str, Any] | None = None
    ) -> Any:
        r"""What :meth:`logits` reads of a request, as of the position of the replica, in the thread
        that follows the log.

        Args and errors are those of :meth:`score`.

        Returns:
            What :meth:`batch` returns, or a :class:`~mag.online.item_table.SplitBatch` where states
            of items are kept. Nothing changes it.
        """
        if self.table is None:
            return self.batch(user, items, context)
        of_user, item, _ = self._encode(user, items, context)
        hops, recent = self._rows('user', np.array([of_user]))
        return SplitBatch(
            torch.from_numpy(self._known('user', np.array([of_user]))),
            torch.from_numpy(self._known('item', item)),
            hops,
            recent,
            self.table.states(item),
        )

    def logits(self, read: Any) -> Logits:
        r"""What the model says of a request, in any thread.

        Args:
            read: What :meth:`read` returned.
        """
        if isinstance(read, SplitBatch):
            user, _, hops, recent, state = read
            return Logits(self.model.score_request(user, hops, recent, state))  # type: ignore[operator]
        return as_logits(type(self.model).__name__, self.model(read))

    def batch(
        self, user: Any, items: Sequence[Any], context: Mapping[str, Any] | None = None
    ) -> Any:
        r"""What the model reads of a request, an :class:`~mag.loader.ExposureBatch` or a
        :class:`~mag.loader.PairBatch`.

        Args and errors are those of :meth:`score`.
        """
        return self._make(self, *self._encode(user, items, context))

    def nodes(self, user: Any, items: Sequence[Any]) -> tuple[int, np.ndarray]:
        r"""The numbers of a user and of items, shape :obj:`[B]`; :obj:`-1` for who is unknown.

        Args and errors are those of :meth:`score`.
        """
        item = self._numbers('item', items)
        if item.ndim != 1 or len(item) > _MOST_ITEMS:
            raise ValueError(
                f"'items' must be a list of at most {_MOST_ITEMS} ids, but got shape "
                f'{list(item.shape)}.'
            )
        return self._number('user', user), item

    def _encode(
        self, user: Any, items: Sequence[Any], context: Mapping[str, Any] | None
    ) -> tuple[int, np.ndarray, dict[str, Tensor]]:
        r"""The nodes of a request, and the numbers of the names of its context."""
        of_user, item = self.nodes(user, items)
        return of_user, item, self._read(context, len(item))

    def after_click(self, user: Any, item: Any) -> 'Scorer':
        r"""A scorer of what this one would score after one more click, which is recorded nowhere.
        It is asked before the replica of this one goes on, and keeps nothing of items.

        Args:
            user (id): The raw id of who clicks.
            item (id): That of what is clicked. Of one that is unknown, as of such a user, nothing
                else is known then.

        Raises:
            TypeError: If an id is of a type that cannot be compared with those of the log.
            ValueError: If there is not one user, or not one item.
        """
        after = copy.copy(self)
        numbers = {'user': self._number('user', user), 'item': self._number('item', item)}
        for node, raw in (('user', user), ('item', item)):
            if numbers[node] < 0:
                numbers[node] = self.replica.unused(node)
                # A register would give it a number.
                if self.register is not None:
                    after._clicked = {**after._clicked, node: (str(raw), numbers[node])}
        after.replica = self.replica.after_click(**numbers)
        after.table = None
        return after

    def _number(self, node_type: str, raw: Any) -> int:
        if not isinstance(raw, (str, bytes)) and np.ndim(raw) > 0:
            raise ValueError(f"'{node_type}' must be the id of one {node_type}, but got {raw!r}.")
        return int(self._numbers(node_type, [raw])[0])

    def _numbers(self, node_type: str, raw: Any) -> np.ndarray:
        r"""The numbers of raw ids, of the snapshot or of the register."""
        numbers = self.snapshot.id_maps[node_type].encode(raw)
        if self._new_ids is not None and numbers.ndim == 1 and (is_new := numbers < 0).any():
            if self.asks_register:
                self.follow_ids()
            new = np.array(raw, dtype=object)[is_new].tolist()
            found = self._new_ids.find(node_type, new)
            text, number = self._clicked.get(node_type, ('', -1))
            found[(found < 0) & (np.array(list(map(str, new)), dtype=object) == text)] = number
            numbers[is_new] = found
        return numbers

    def follow_ids(self) -> None:
        r"""Reads the ids that the register has got since, if the replica has gone on."""
        # An id without a new event has nothing to be read.
        as_of = (self.replica.position, self.replica.num_restarts)
        if self.register is None or self._new_ids is None or as_of == self._ids_as_of:
            return
        if as_of[1] != self._ids_as_of[1]:
            # A log that went back may have lost ids, too, whose numbers others have got.
            self._new_ids = NewIds(self.register, self.snapshot.num_nodes)
        self._ids_as_of = as_of
        try:
            self._new_ids.follow()
        # As of the log, each register has errors of its own, and what is known goes on.
        except Exception as error:
            _LOGGER.warning('failed to read ids', extra={'reason': str(error)})

    def _known(self, node_type: str, nodes: np.ndarray) -> np.ndarray:
        r"""Nodes as the model knows them: none that has come since."""
        return np.where(nodes < self.snapshot.num_nodes[node_type], nodes, -1)

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
        user_hops, user_recent = self._rows('user', np.array([user]))
        item_hops, item_recent = self._rows('item', item)
        size = len(item)
        return PairBatch(
            torch.from_numpy(self._known('user', np.array([user])).repeat(size)),
            torch.from_numpy(self._known('item', item)),
            tuple(hop.repeat(size, 1) for hop in user_hops),
            item_hops,
            user_recent.repeat(size, 1),
            item_recent,
        )

    def _rows(self, node: str, of_node: np.ndarray) -> tuple[tuple[Tensor, ...], Tensor]:
        r"""The counts of each hop, and the recent neighbors."""
        rows = self.replica.rows(node, of_node)
        neighbor = NEIGHBOR_TYPE[node]
        hops = [_floats(rows['pairs'][:, : self.snapshot.layout.num_clusters[neighbor][0]])]
        if self.snapshot.hop_2:
            hops.append(_floats(self.replica.hop_2(node, of_node)))
        recent = self._known(neighbor, rows['recent']).astype(np.int64)
        return tuple(hops), torch.from_numpy(recent)

    def _exposures(self, user: int, item: np.ndarray, contexts: dict[str, Tensor]) -> ExposureBatch:
        (known,) = self._known('user', np.array([user]))
        return self._loader.request(
            int(known),
            torch.from_numpy(self._known('item', item)),
            counts=_floats(self._counts(user, item)),
            **contexts,
        )

    def _counts(self, user: int, item: np.ndarray) -> np.ndarray:
        r"""The counts at the target, in the order of
        :func:`~mag.macro_graph.target_views`, shape :obj:`[B, C, 2]`."""
        layout = self.snapshot.layout
        of_user = self.replica.rows('user', np.array([user]))
        of_item = self.replica.rows('item', item)
        # That of an unknown node, and of one that has come since, is the last, of who is in none.
        user_cluster = [of[min(user, len(of) - 1)] for of in self._clusters['user']]
        item_cluster = [of[np.minimum(item, len(of) - 1)] for of in self._clusters['item']]
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
        clicks.edge_label_counts = torch.empty(0, len(self.views), 2)
        return data

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.replica!r}, {type(self.model).__name__})'


def _floats(counts: np.ndarray) -> Tensor:
    return torch.from_numpy(counts.astype(np.float32))


def _totals(rows: np.ndarray, columns: slice) -> list[np.ndarray]:
    r"""All exposures and clicks of nodes, shape :obj:`[B]` each: any resolution has them all."""
    return [rows['seen'], rows['clicks'][:, columns].sum(axis=1)]
