r"""Models of the neighborhoods of user and item in the graph of clicks: PinSage over neighbors that
random walks find, and a graph transformer over the newest ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.utils import to_torch_csr_tensor, to_undirected

from accuracy.click_graph import NodeMap, Propagate, clicks_before
from accuracy.fields import Batch, Fields
from accuracy.pair_models import HIDDEN
from mag.click_index import take
from mag.nn import MLP

# One for each graph that tokens form.
NUM_HEADS = 2
# Steps of walks that are held in memory at once.
MAX_VISITS = 2**22


class PinSage(nn.Module):
    r"""The convolution of `"Graph Convolutional Neural Networks for Web-Scale Recommender Systems"
    <https://arxiv.org/abs/1806.01973>`_ over users and items.

    .. math::
        \mathbf{n}_v = \sum_{w \in \mathcal{N}(v)} \alpha_{vw} \, \mathrm{ReLU}(\mathbf{Q}
        \mathbf{h}_w + \mathbf{q}), \qquad
        \mathbf{h}'_v = \frac{\mathbf{z}}{\lVert \mathbf{z} \rVert}, \quad
        \mathbf{z} = \mathrm{ReLU}(\mathbf{W} [\mathbf{h}_v \Vert \mathbf{n}_v] + \mathbf{w})

    The neighborhood :math:`\mathcal{N}(v)` is the nodes that random walks from :math:`v` visit most
    often, and :math:`\alpha_{vw}` each one's share of their visits (Algorithm 1). What comes out
    for user and item is read by a head, beside the fields of the exposure.

    In training the walks go over the clicks before the first window of the training part, so that
    no labelled row is an edge; in evaluation over those of the part given to :meth:`read_history`.

    Args:
        train (HeteroData): The training part of a split.
        val (HeteroData): The part that the model is selected on.
        counts (bool): Whether the counts at the target are read.
        num_layers (int, optional): The number of convolutions. (default: :obj:`2`)
        num_neighbors (int, optional): Nodes of a neighborhood. (default: :obj:`20`)
        num_walks (int, optional): Random walks from each node. (default: :obj:`50`)
        walk_length (int, optional): Steps of each. (default: :obj:`4`)
    """

    def __init__(
        self,
        train: HeteroData,
        val: HeteroData,
        counts: bool,
        num_layers: int = 2,
        num_neighbors: int = 20,
        num_walks: int = 50,
        walk_length: int = 4,
    ) -> None:
        super().__init__()
        self.num_users, self.num_items = train['user'].num_nodes, train['item'].num_nodes
        self.num_neighbors, self.num_walks = num_neighbors, num_walks
        self.walk_length = walk_length
        self.fields = Fields(train, counts)
        dim = self.fields.embedding.embedding_dim
        self.neighbor = nn.ModuleList(nn.Linear(dim, dim) for _ in range(num_layers))
        self.join = nn.ModuleList(nn.Linear(2 * dim, dim) for _ in range(num_layers))
        self.head = MLP([self.fields.out_channels + 3 * dim, *HIDDEN, 1])
        # The weights of neighbors and their transpose, in training and in evaluation.
        self.graphs: dict[bool, tuple[NodeMap, NodeMap]] = {True: self.graph(train)}
        self.embedding: Tensor | None = None
        self.read_history(val)

    def read_history(self, data: HeteroData) -> None:
        r"""Walks over the clicks of :obj:`data` in evaluation from now on."""
        self.graphs[False] = self.graph(data)
        self.embedding = None

    def graph(self, data: HeteroData) -> tuple[NodeMap, NodeMap]:
        r"""The weight of each neighbor of each node at the first cutoff, and the transpose."""
        num_nodes = self.num_users + self.num_items
        edge_index = to_undirected(clicks_before(data), num_nodes=num_nodes)
        node, neighbor, weight = neighborhoods(
            edge_index, num_nodes, self.num_neighbors, self.num_walks, self.walk_length
        )
        size = (num_nodes, num_nodes)
        return (
            NodeMap(to_torch_csr_tensor(torch.stack([node, neighbor]), weight, size)),
            NodeMap(to_torch_csr_tensor(torch.stack([neighbor, node]), weight, size)),
        )

    def train(self, mode: bool = True) -> 'PinSage':
        self.embedding = None
        return super().train(mode)

    def nodes(self) -> Tensor:
        r"""Users and, after them, items, shape :obj:`[num_nodes, embedding_dim]`."""
        if self.embedding is not None:
            return self.embedding
        device = self.fields.offset.device
        h = torch.cat(
            [
                self.fields.embed(name, torch.arange(num, device=device))
                for name, num in (('user', self.num_users), ('item', self.num_items))
            ]
        )
        weights, transposed = (graph.on(device) for graph in self.graphs[self.training])
        for neighbor, join in zip(self.neighbor, self.join, strict=True):
            n = Propagate.apply(F.relu(neighbor(h)), weights.matmul, transposed.matmul)
            h = F.normalize(F.relu(join(torch.cat([h, n], dim=1))))
        # Weights do not change in evaluation, and a request should not pay for the whole graph.
        if not self.training and not torch.is_grad_enabled():
            self.embedding = h
        return h

    def forward(self, batch: Batch) -> Tensor:
        nodes = self.nodes()
        user, item = nodes[batch.user], nodes[batch.item + self.num_users]
        features = torch.cat([self.fields(batch.features), user, item, user * item], dim=1)
        return self.head(features).squeeze(-1)


def neighborhoods(
    edge_index: Tensor,
    num_nodes: int,
    num_neighbors: int,
    num_walks: int,
    walk_length: int,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The nodes that random walks from each node visit most often, see :class:`PinSage`.

    Walks are drawn with a seed of their own, so that those of a graph are the same in every run.

    Args:
        edge_index: Edges of both directions, sorted, shape :obj:`[2, E]`.
        num_nodes: The number of nodes.
        num_neighbors: How many at most.
        num_walks: Walks from each node.
        walk_length: Steps of each.

    Returns:
        Nodes, their neighbors and the weights of these, which sum to 1 for each node.
    """
    generator = torch.Generator().manual_seed(0)
    starts = edge_index[0].unique()
    found = []
    for some in starts.split(max(1, MAX_VISITS // (num_walks * walk_length))):
        visits = walk(edge_index, num_nodes, some.repeat(num_walks), walk_length, generator)
        node = some.repeat(walk_length * num_walks)
        found.append(most_visited(node, visits.flatten(), num_nodes, num_neighbors))
    # Nobody has clicked yet.
    none = torch.empty(0, dtype=torch.long)
    node, neighbor, count = (torch.cat([none, *column]) for column in zip(*found)) if found else (
        none, none, none
    )  # fmt: skip
    total = torch.zeros(num_nodes).index_add(0, node, count.float())
    return node, neighbor, count / total[node]


def walk(
    edge_index: Tensor, num_nodes: int, node: Tensor, length: int, generator: torch.Generator
) -> Tensor:
    r"""The nodes that random walks visit, one from each node, shape :obj:`[length, num_walks]`.

    Args:
        edge_index: Edges of both directions, sorted, shape :obj:`[2, E]`.
        num_nodes: The number of nodes.
        node: Where each walk starts, a node with an edge, shape :obj:`[num_walks]`.
        length: How many steps it takes.
        generator: What steps are drawn from.
    """
    degree = edge_index[0].bincount(minlength=num_nodes)
    first = degree.cumsum(0) - degree
    visits = []
    for _ in range(length):
        step = torch.rand(node.numel(), generator=generator, dtype=torch.double) * degree[node]
        node = edge_index[1][first[node] + step.long()]
        visits.append(node)
    return torch.stack(visits)


def most_visited(
    node: Tensor, visited: Tensor, num_nodes: int, num: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Of each node the other nodes visited most often from there, and how often; of equals the
    first.

    Args:
        node: Where a walk began, one entry a visit, shape :obj:`[V]`.
        visited: Which node it visited, shape :obj:`[V]`.
        num_nodes: The number of nodes.
        num: How many of each node at most.
    """
    is_other = node != visited
    pair, count = (node * num_nodes + visited)[is_other].unique(return_counts=True)
    order = count.argsort(descending=True, stable=True)
    order = order[(pair[order] // num_nodes).argsort(stable=True)]
    pair, count = pair[order], count[order]
    node = pair // num_nodes
    number = torch.arange(node.numel())
    is_first = torch.ones_like(node, dtype=torch.bool)
    is_first[1:] = node[1:] != node[:-1]
    rank = number - number.where(is_first, 0).cummax(0).values
    kept = rank < num
    return node[kept], pair[kept] % num_nodes, count[kept]


class MaskedLayer(nn.Module):
    r"""A layer of a transformer that normalises before it attends, of which only the first tokens
    are computed.

    Args:
        dim (int): Size of a token.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, NUM_HEADS, batch_first=True)
        self.forward_net = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, tokens: Tensor, mask: Tensor, num: int) -> Tensor:
        r"""
        Args:
            tokens: Shape :obj:`[B, T, dim]`.
            mask: What is added to the scores of each head, shape :obj:`[NUM_HEADS B, T, T]`.
            num: How many tokens are computed.
        """
        normed = self.norm(tokens)
        read, _ = self.attention(
            normed[:, :num], normed, normed, attn_mask=mask[:, :num], need_weights=False
        )
        tokens = tokens[:, :num] + read
        return tokens + self.forward_net(tokens)


class GraphTransformer(nn.Module):
    r"""A transformer over the target pair and the newest neighbors of both, after `"Neighbour
    Interaction based Click-Through Rate Prediction via Graph-Masked Transformer"
    <https://arxiv.org/abs/2201.13311>`_.

    Its tokens are the user, the item, the user's last items and the item's last users, as of the
    row's window. As there, each head sees a graph of its own over them, see :func:`graph_masks`:
    here one head the clicks and what is alike, the other all. In the first layer neighbors read
    each other, in the second user and item read them. What comes out for these two is read by a
    head, beside the fields of the exposure. The lists stand where the paper samples neighbors, and
    its consistency loss over two samples is left out.

    Args:
        data (HeteroData): A part of the log, after :class:`~mag.transforms.RecentNeighbors`.
        counts (bool): Whether the counts at the target are read.
        num_neighbors (int, optional): Neighbors of each of the two. (default: :obj:`10`)
    """

    def __init__(self, data: HeteroData, counts: bool, num_neighbors: int = 10) -> None:
        super().__init__()
        self.num_neighbors = num_neighbors
        self.fields = Fields(data, counts)
        dim = self.fields.embedding.embedding_dim
        # User, item, the user's items and the item's users.
        self.role = nn.Embedding(4, dim)
        nn.init.xavier_uniform_(self.role.weight)
        self.first, self.second = MaskedLayer(dim), MaskedLayer(dim)
        self.head = MLP([self.fields.out_channels + 2 * dim, *HIDDEN, 1])

    def forward(self, batch: Batch) -> Tensor:
        items, users = (
            recent[:, -self.num_neighbors :]
            for recent in (batch.pairs.user_recent, batch.pairs.item_recent)
        )
        item = torch.cat([batch.item.unsqueeze(1), items], dim=1)
        tokens = torch.cat(
            [
                self.fields.embed('user', batch.user.unsqueeze(1)),
                torch.stack(self.fields.embed_items(item)).sum(0),
                self.fields.embed('user', users),
            ],
            dim=1,
        )
        masks = graph_masks(take(self.fields.category, item + 1), item >= 0, users >= 0)
        tokens = tokens + self.roles(items.size(1), users.size(1))
        tokens = self.second(self.first(tokens, masks, tokens.size(1)), masks, 2)
        features = torch.cat([self.fields(batch.features), tokens.flatten(1)], dim=1)
        return self.head(features).squeeze(-1)

    def roles(self, num_items: int, num_users: int) -> Tensor:
        r"""What tells tokens of different roles apart, shape :obj:`[2 + num_items + num_users,
        dim]`."""
        user, item, items, users = self.role.weight.split(1)
        return torch.cat(
            [user, item, items.expand(num_items, -1), users.expand(num_users, -1)], dim=0
        )


def graph_masks(category: Tensor, has_item: Tensor, has_user: Tensor) -> Tensor:
    r"""What is added to the scores of two heads for each row, 0 where a token attends to another
    and minus infinity where it does not, shape :obj:`[2 B, 2 (1 + R), 2 (1 + R)]`.

    Tokens are the user, the target item, the user's :math:`R` items and the item's :math:`R` users.
    To the first head, neighbors are who clicked what, user and target among them, and items of one
    category; to the second all that are there. Each token also attends to itself.

    Args:
        category: That of the target item and of the user's items, :obj:`-1` where it is not known,
            shape :obj:`[B, 1 + R]`.
        has_item: Which of these are there, shape :obj:`[B, 1 + R]`.
        has_user: Which of the item's users are there, shape :obj:`[B, R]`.
    """
    num_rows, num_items = has_item.shape
    size = 1 + num_items + has_user.size(1)
    items, users = slice(1, 1 + num_items), slice(1 + num_items, size)
    edges = has_item.new_zeros(num_rows, 2, size, size)
    click, every = edges[:, 0], edges[:, 1]
    click[:, 0, items] = has_item
    click[:, items, 0] = has_item
    click[:, 1, users] = has_user
    click[:, users, 1] = has_user
    same = category.unsqueeze(2) == category.unsqueeze(1)
    click[:, items, items] = same & (has_item & (category >= 0)).unsqueeze(1)
    there = torch.cat([has_item.new_ones(num_rows, 1), has_item, has_user], dim=1)
    every[:] = there.unsqueeze(1)
    edges.diagonal(dim1=2, dim2=3).fill_(True)
    return torch.where(edges.flatten(0, 1), 0.0, -torch.inf)
