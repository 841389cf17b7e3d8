r"""Published models that read the paths of PathLoader, to compare SRJGraph with."""

import torch
from deepctr_torch.layers.sequence import AttentionSequencePoolingLayer
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn import GATConv, HeteroConv, HGTConv, LGConv
from torch_geometric.utils import to_dense_batch, to_undirected

from mag.nn import MLP
from mag.schema import CLICKS, REVERSE_CLICKS, categoricals

NODE_TYPES = ('user', 'item')
SIZE, TERM_SIZE = 48, 16
# How many vectors each adds to those of user, item and query.
ARCHITECTURES = {'dnn': 0, 'din': 1, 'gat': 2, 'hgt': 2, 'lightgcn': 2}


class PathModel(nn.Module):
    r"""Embeddings of ids, attributes and query terms, an architecture over the paths, and a head a
    domain, as SRJGraph has them.

    Args:
        data (HeteroData): A training part.
        architecture (str): :obj:`"dnn"` reads no path; :obj:`"din"` attends, by the target's item,
            to the clicks drawn from the user; :obj:`"gat"`, :obj:`"hgt"` and :obj:`"lightgcn"` are
            layers of PyG, one a depth, over all paths.
        num_layers (int): The depth of the paths.
    """

    def __init__(self, data: HeteroData, architecture: str, num_layers: int) -> None:
        super().__init__()
        clicks = data[CLICKS]
        self.architecture = architecture
        self.embedding = nn.ModuleDict({name: NodeEmbedding(data[name]) for name in NODE_TYPES})
        # Row 0 stands for a padding, -1.
        self.term_embedding = nn.EmbeddingBag(
            clicks.num_query + 1, TERM_SIZE, mode='sum', padding_idx=0
        )
        self.layers = nn.ModuleList()
        for _ in range(num_layers):
            if architecture == 'gat':
                convs = {
                    edge_type: GATConv(SIZE, SIZE, add_self_loops=False, residual=True)
                    for edge_type in (CLICKS, REVERSE_CLICKS)
                }
                self.layers.append(HeteroConv(convs))
            elif architecture == 'hgt':
                metadata = (list(NODE_TYPES), [CLICKS, REVERSE_CLICKS])
                self.layers.append(HGTConv(SIZE, SIZE, metadata, heads=2))
            elif architecture == 'lightgcn':
                self.layers.append(LGConv())
        if architecture == 'din':
            self.attention = AttentionSequencePoolingLayer((80, 40), embedding_dim=SIZE)
        width = 2 * SIZE + TERM_SIZE + ARCHITECTURES[architecture] * SIZE
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(clicks.num_domain))
        self.heads = nn.ModuleList(MLP([width, 256, 64, 1]) for _ in range(clicks.num_domain))
        # As SRJGraph's: PyTorch's default is so large that much of it is still there at the end.
        for module in self.modules():
            if isinstance(module, nn.Embedding | nn.EmbeddingBag):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, batch: HeteroData) -> Tensor:
        targets = batch[CLICKS]
        num_targets = targets.edge_label_index.size(1)
        x = {name: self.embedding[name](batch[name]) for name in NODE_TYPES}
        query = self.term_embedding(targets.edge_label_query + 1)
        own = [x[name][:num_targets] for name in NODE_TYPES]
        features = torch.cat([*own, query, *self._read_paths(batch, x, num_targets)], dim=1)
        logit = features.new_zeros(num_targets)
        for number, (norm, head) in enumerate(zip(self.norms, self.heads, strict=True)):
            rows = (targets.edge_label_domain == number).nonzero().view(-1)
            if self.training and rows.numel() == 1:
                logit = logit.index_put((rows,), head(norm(features))[rows].view(-1))
            elif rows.numel() > 0:
                logit = logit.index_put((rows,), head(norm(features[rows])).view(-1))
        return logit

    def _read_paths(
        self, batch: HeteroData, x: dict[str, Tensor], num_targets: int
    ) -> list[Tensor]:
        if self.architecture == 'dnn':
            return []
        if self.architecture == 'din':
            return [self._attend(batch, x, num_targets)]
        if self.architecture == 'lightgcn':
            x = self._propagate(batch, x)
        else:
            for layer in self.layers:
                following = layer(x, batch.edge_index_dict)
                x = {name: following[name].relu() for name in NODE_TYPES}
        return [x[name][:num_targets] for name in NODE_TYPES]

    def _attend(self, batch: HeteroData, x: dict[str, Tensor], num_targets: int) -> Tensor:
        edges = batch[REVERSE_CLICKS]
        child, user = edges.edge_index[:, : edges.num_sampled_edges[0]]
        if child.numel() == 0:
            return x['item'].new_zeros(num_targets, SIZE)
        keys, is_there = to_dense_batch(x['item'][child], user, batch_size=num_targets)
        # It divides by the number of what is there, so each user has one at least.
        length = is_there.sum(1, keepdim=True).clamp(min=1)
        target = x['item'][:num_targets].unsqueeze(1)
        return self.attention(target, keys, length).squeeze(1)

    def _propagate(self, batch: HeteroData, x: dict[str, Tensor]) -> dict[str, Tensor]:
        num_users = x['user'].size(0)
        edges = []
        for (source, _, target), edge_index in batch.edge_index_dict.items():
            offset = [[num_users * (source == 'item')], [num_users * (target == 'item')]]
            edges.append(edge_index + torch.tensor(offset, device=edge_index.device))
        edge_index = to_undirected(torch.cat(edges, dim=1))
        nodes = torch.cat([x['user'], x['item']])
        total = nodes
        for layer in self.layers:
            nodes = layer(nodes, edge_index)
            total = total + nodes
        total = total / (1 + len(self.layers))
        return {'user': total[:num_users], 'item': total[num_users:]}


class NodeEmbedding(nn.Module):
    r"""Ids and attributes of one node type as one vector of :obj:`SIZE`."""

    def __init__(self, store: HeteroData) -> None:
        super().__init__()
        sizes = categoricals(store)
        self.id = nn.Embedding(store.num_nodes, 16)
        self.attributes = nn.ModuleDict({name: nn.Embedding(n, 8) for name, n in sizes.items()})
        self.lin = nn.Linear(16 + 8 * len(sizes), SIZE)

    def forward(self, store: HeteroData) -> Tensor:
        parts = [self.id(store.n_id)]
        parts += [embedding(store[name]) for name, embedding in self.attributes.items()]
        return self.lin(torch.cat(parts, dim=1))
