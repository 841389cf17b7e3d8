import torch
from torch import Tensor
from torch.nn.functional import pad

from mag.checks import check_choice, check_ids, check_keys, check_tensor
from mag.macro_graph.last_neighbors import last_neighbors
from mag.macro_graph.macro_edges import MacroEdges
from mag.macro_graph.macro_rows import MacroRow
from mag.schema import NEIGHBOR_TYPE
from mag.unknown import known_places, take_known


class MacroState:
    r"""The macro rows of all nodes as of now, which move with new clicks.

    .. code-block:: python

        state = coarsen.state(test)
        state.update(edge_index)
        (user_hops, user_recent), (item_hops, item_recent) = (
            state.rows('user', user), state.rows('item', item)
        )
        batch = PairBatch(user, item, user_hops, item_hops, user_recent, item_recent)

    Rows are those that :class:`MacroRows` reads of a part whose history ends now, to the last bit:
    counts move as :meth:`MacroEdges.update` moves them, and the recent lists of those who clicked,
    or were clicked, take in who was new to them.

    It holds the counts in float64, eight bytes each where :class:`MacroRows` takes one to four, as
    they are added to where they are; the clicks of each pair, from both sides, twelve bytes each
    time; and eight bytes for each place of a recent list. An update makes the clicks anew, and
    tables as large as those of the counts only where a quarter of the nodes or more is reached; a
    new node makes all tables of its type anew.

    Args:
        edges (MacroEdges): The counts of all clicks so far, which the state goes on with.
        recent (dict[str, torch.Tensor]): For :obj:`"user"` and :obj:`"item"`, the last neighbors of
            each node, int64, newest last, padded on the left with :obj:`-1`, shape
            :obj:`[N, R]`, see :class:`~mag.transforms.RecentNeighbors`.

    Raises:
        IndexError: If a recent list names a node that does not exist.
        TypeError: If one is no tensor of int64.
        ValueError: If there is not one for each node.
    """

    def __init__(self, edges: MacroEdges, recent: dict[str, Tensor]) -> None:
        check_keys(('user', 'item'), recent=recent)
        self._edges = edges
        num_nodes = self.num_nodes
        for node_type, lists in recent.items():
            name, other = f'recent[{node_type!r}]', NEIGHBOR_TYPE[node_type]
            check_tensor('MacroState', name, lists, (num_nodes[node_type], 'R'), torch.long)
            check_ids('MacroState', f'{other}s in {name}', lists, num_nodes[other], first=-1)
        # They are written in place, and whoever gave them may read them still.
        self._recent = {node_type: lists.clone() for node_type, lists in recent.items()}

    @property
    def num_nodes(self) -> dict[str, int]:
        r"""How many users and items there are."""
        return {node_type: len(cluster) for node_type, cluster in self._edges.cluster.items()}

    def rows(self, node_type: str, node: Tensor) -> MacroRow:
        r"""The macro rows of some nodes.

        Args:
            node_type (str): :obj:`"user"` or :obj:`"item"`.
            node (torch.Tensor): The nodes, int64, :obj:`-1` for an unknown one, whose counts are 0
                and who has no neighbors, shape :obj:`[B]`.

        Raises:
            IndexError: If a node does not exist.
            TypeError: If one is no integer.
            ValueError: If there is no such node type.
        """
        check_choice(NEIGHBOR_TYPE, node_type=node_type)
        check_tensor('MacroState', 'node', node, ('B',), torch.long)
        check_ids('MacroState', f'{node_type} ids', node, self.num_nodes[node_type], first=-1)
        known = known_places(node)
        tables = map(torch.from_numpy, self._edges.counts[node_type])
        return MacroRow(
            tuple(take_known(table, node, known, 0).float() for table in tables),
            take_known(self._recent[node_type], node, known, -1),
        )

    def update(
        self,
        edge_index: Tensor,
        user_cluster: Tensor | None = None,
        item_cluster: Tensor | None = None,
    ) -> None:
        r"""Adds new clicks. The rows are then those of all clicks, counted at once; what is refused
        leaves no trace.

        Args:
            edge_index (torch.Tensor): New clicks, users above items, in the order of time and none
                earlier than those that are known, shape :obj:`[2, E]`.
            user_cluster (torch.Tensor, optional): Clusters with new users, such as
                :meth:`MacroCoarsen.keep <mag.transforms.MacroCoarsen.keep>` finds: entries may be
                appended and :obj:`-1` may be filled in; a cluster that was set cannot change.
                (default: :obj:`None`)
            item_cluster (torch.Tensor, optional): The same for items. (default: :obj:`None`)

        Raises:
            IndexError: If a click names a node without an entry in the clusters.
            TypeError: If a click or a cluster is no integer.
            ValueError: If a cluster that was set is changed, or a clicked node has no cluster.
        """
        self._edges.update(edge_index, user_cluster, item_cluster)
        user, item = edge_index.long()
        for node_type, node, neighbor in (('user', user, item), ('item', item, user)):
            self._recent[node_type] = recent = _grown(
                self._recent[node_type], self.num_nodes[node_type]
            )
            touched, place = node.unique(return_inverse=True)
            # Who was there before comes first, as what is new is no earlier.
            old = recent[touched]
            is_there = old >= 0
            place, order = torch.cat([is_there.nonzero()[:, 0], place]).sort(stable=True)
            neighbor = torch.cat([old[is_there], neighbor])[order]
            recent[touched] = last_neighbors(place, neighbor, touched.numel(), recent.size(1))

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}({self._edges})'


def _grown(recent: Tensor, num_nodes: int) -> Tensor:
    r"""Recent lists with empty ones of new nodes."""
    more = num_nodes - recent.size(0)
    return pad(recent, (0, 0, 0, more), value=-1) if more > 0 else recent
