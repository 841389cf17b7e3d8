r"""Published models from maintained libraries, as modules that read :class:`~mag.loader.PairBatch`.

Wide & Deep, DeepFM, AFM, NFM, DCN V2, DIN and DIEN come from DeepCTR-Torch, LightGCN from PyTorch
Geometric. Each is ``model(batch) -> logits [batch_size]``, so that :mod:`mag.training` trains it on
the rows, with the optimizer and with the early stopping of every other model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat, get_dense_input
from deepctr_torch.layers.sequence import AGRUCell, AUGRUCell
from deepctr_torch.models import AFM, DCN, DIEN, DIN, NFM, WDL, DeepFM
from torch import Tensor, nn
from torch_geometric.data import HeteroData
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.nn.models import LightGCN as PyGLightGCN
from torch_geometric.utils import to_torch_csr_tensor, to_undirected

from accuracy.click_graph import NodeMap, Propagate, clicks_before
from accuracy.fields import Batch
from mag.loader import PairBatch
from mag.schema import categoricals

HIDDEN = (200, 80)
Columns = list[SparseFeat | VarLenSparseFeat | DenseFeat]


def afm(plain: Columns, history: Columns, dnn_hidden_units: Sequence[int], **kwargs: Any) -> AFM:
    # It has no hidden layers, and dense columns in its linear part alone.
    return AFM(plain, [one for one in plain if not isinstance(one, DenseFeat)], **kwargs)


def din(plain: Columns, history: Columns, **kwargs: Any) -> DIN:
    model = DIN(plain + history, attended(history), **kwargs)

    def dense_columns(x: Tensor, columns: Columns, *rest: Any) -> tuple[list, list[Tensor]]:
        return [], get_dense_input(x, model.feature_index, columns)

    # It embeds and pools every column a second time, only to throw the result away.
    model.input_from_feature_columns = dense_columns
    return model


def dien(plain: Columns, history: Columns, **kwargs: Any) -> DIEN:
    return DIEN(plain + history, attended(history), gru_type='AUGRU', **kwargs)


def attended(history: Columns) -> list[str]:
    r"""The names of the target's columns that those of the history are compared with."""
    return [column.name.removeprefix('hist_') for column in history]


ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    'wide_deep': lambda plain, history, **kwargs: WDL(plain, plain, **kwargs),
    'deepfm': lambda plain, history, **kwargs: DeepFM(plain, plain, **kwargs),
    'afm': afm,
    'nfm': lambda plain, history, **kwargs: NFM(plain, plain, **kwargs),
    'dcn_v2': lambda plain, history, **kwargs: DCN(
        plain, plain, cross_parameterization='matrix', **kwargs
    ),
    'din': din,
    'dien': dien,
}
HISTORY_READERS = ('din', 'dien')


def make_library(architecture: str, plain: Columns, history: Columns) -> Any:
    r"""A model of `DeepCTR-Torch <https://github.com/shenweichen/DeepCTR-Torch>`_ without the last
    sigmoid.

    Weights start as torch and MacGNN start them (Xavier for embeddings, zero for the wide part):
    the library draws them all with a standard deviation of :math:`10^{-4}`, from which hidden
    layers learn slowly.

    Args:
        architecture: A name in :obj:`ARCHITECTURES`.
        plain: The columns of one number each.
        history: The columns of lists, which DIN and DIEN read.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"'architecture' must be one of {sorted(ARCHITECTURES)}, but got '{architecture}'."
        )
    model = ARCHITECTURES[architecture](
        plain,
        history,
        dnn_hidden_units=HIDDEN,
        task='regression',
        # The library seeds torch's generator; any fixed number would undo the caller's seed.
        seed=torch.initial_seed(),
    )
    reset_library(model)
    return model


def reset_library(library: nn.Module) -> None:
    for module in library.modules():
        if isinstance(module, nn.Embedding):
            if module.embedding_dim == 1:
                nn.init.zeros_(module.weight)
            else:
                nn.init.xavier_uniform_(module.weight)
        elif isinstance(module, (AGRUCell, AUGRUCell)):
            bound = module.hidden_size**-0.5
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        elif isinstance(module, (nn.Linear, nn.GRU)):
            module.reset_parameters()


def left_aligned(recent: Tensor) -> tuple[Tensor, Tensor]:
    r"""Lists with their paddings behind and no longer before, and how long each is, shape
    :obj:`[B, 1]`."""
    length = (recent >= 0).sum(dim=1, keepdim=True)
    place = torch.arange(recent.size(1), device=recent.device)
    return recent.gather(1, (place - length) % recent.size(1)), length


class DeepCTR(nn.Module):
    r"""A model of `DeepCTR-Torch <https://github.com/shenweichen/DeepCTR-Torch>`_.

    Its features are the user, every categorical attribute of the user, the item and the item's
    category. DIN and DIEN also read the user's recent items and their categories. DIEN runs
    without its auxiliary loss, which needs sampled negatives that no other model here sees.

    Args:
        architecture: A name in :obj:`ARCHITECTURES`.
        user_features: The user's id and attributes, ``[num_users, num_features]``.
        item_features: The item's id and category, ``[num_items, 2]``.
        user_sizes: For each user feature its name and its number of values.
        num_categories: The number of categories.
        num_recent: The length of the recent lists.
        embedding_dim: The size of each feature's embedding.

    Raises:
        ValueError: If the architecture is unknown, or float32 cannot hold the ids.
    """

    user_features: Tensor
    item_features: Tensor
    library: Any

    def __init__(
        self,
        architecture: str,
        user_features: Tensor,
        item_features: Tensor,
        user_sizes: dict[str, int],
        num_categories: int,
        num_recent: int,
        embedding_dim: int = 10,
    ) -> None:
        super().__init__()
        self.reads_history = architecture in HISTORY_READERS
        num_items = item_features.size(0)
        # One row more stands for "no item": a user without history has a history of that alone,
        # because DIEN fails on a batch in which nobody has any.
        nothing = torch.tensor([[num_items, num_categories]])
        # DeepCTR-Torch takes ids as one float matrix; float32 holds integers up to 2**24.
        largest = max(num_items, num_categories, *user_sizes.values())
        if largest > 2**24:
            raise ValueError(
                f'DeepCTR-Torch reads ids as float32, exact up to 2**24, but there are {largest}.'
            )
        self.register_buffer('user_features', user_features.float(), persistent=False)
        self.register_buffer(
            'item_features', torch.cat([item_features, nothing]).float(), persistent=False
        )
        item_sizes = {'item': num_items + 1, 'category': num_categories + 1}
        plain = [
            SparseFeat(name, size, embedding_dim)
            for name, size in (user_sizes | item_sizes).items()
        ]
        history = [
            VarLenSparseFeat(
                SparseFeat(f'hist_{name}', size, embedding_dim, embedding_name=name),
                num_recent,
                length_name='length',
            )
            for name, size in item_sizes.items()
        ]
        self.library = make_library(architecture, plain, history)

    @classmethod
    def from_data(
        cls,
        data: HeteroData,
        architecture: str,
        embedding_dim: int = 10,
        user_attributes: bool = True,
    ) -> 'DeepCTR':
        r"""Builds the model for the users, items and recent lists of :obj:`data`.

        Args:
            data: A part of a split, after :class:`~mag.transforms.RecentNeighbors`.
            architecture: A name in :obj:`ARCHITECTURES`.
            embedding_dim: The size of each feature's embedding.
            user_attributes: Whether users have features beside their id. MacGNN reads none.
        """
        user, item = data['user'], data['item']
        attributes = categoricals(user) if user_attributes else {}
        return cls(
            architecture,
            torch.stack([torch.arange(user.num_nodes), *(user[name] for name in attributes)], 1),
            torch.stack([torch.arange(item.num_nodes), item.category], 1),
            {'user': user.num_nodes} | {f'user_{name}': n for name, n in attributes.items()},
            int(item.num_category),
            user.recent.size(-1),
            embedding_dim,
        )

    def reset_parameters(self) -> None:
        reset_library(self.library)

    def forward(self, batch: PairBatch) -> Tensor:
        columns = [self.user_features[batch.user], self.item_features[batch.item]]
        if self.reads_history:
            columns += self.history(batch.user_recent)
        return self.library(torch.cat(columns, dim=1)).squeeze(-1)

    def history(self, recent: Tensor) -> list[Tensor]:
        r"""Returns recent items padded on the right, their number and their categories."""
        recent, length = left_aligned(recent)
        features = self.item_features[recent]
        return [features[..., 0], length.clamp(min=1).float(), features[..., 1]]


class LightGCN(nn.Module):
    r"""PyTorch Geometric's :class:`~torch_geometric.nn.models.LightGCN` with biases.

    .. math::
        \hat{y}_{ui} = \langle \mathbf{x}_u, \mathbf{x}_i \rangle + b_u + b_i + b

    In training it propagates over the clicks before the first window of the training part, so
    that no labelled row is an edge. In evaluation it propagates over the clicks of the part given
    to :meth:`read_history`.

    Args:
        num_users: The number of users.
        num_items: The number of items.
        embedding_dim: The size of the embeddings.
        num_layers: The number of propagation steps.
    """

    def __init__(
        self, num_users: int, num_items: int, embedding_dim: int = 10, num_layers: int = 2
    ) -> None:
        super().__init__()
        self.num_users = num_users
        self.library = PyGLightGCN(
            num_users + num_items, embedding_dim, num_layers, normalize=False
        )
        self.bias = nn.Embedding(num_users + num_items, 1)
        self.offset = nn.Parameter(torch.zeros(()))
        # In training and in evaluation.
        self.graphs: dict[bool, NodeMap] = {}
        self.embedding: Tensor | None = None
        self.reset_parameters()

    @classmethod
    def from_data(
        cls, train: HeteroData, val: HeteroData, embedding_dim: int = 10, num_layers: int = 2
    ) -> 'LightGCN':
        r"""Builds the model and its graphs.

        Args:
            train: The training part of a split.
            val: The part that the model is selected on.
            embedding_dim: The size of the embeddings.
            num_layers: The number of propagation steps.
        """
        model = cls(train['user'].num_nodes, train['item'].num_nodes, embedding_dim, num_layers)
        model.graphs[True] = model.graph(train)
        model.read_history(val)
        return model

    def reset_parameters(self) -> None:
        self.library.reset_parameters()
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.offset)

    def read_history(self, data: HeteroData) -> None:
        r"""Propagates over the clicks of :obj:`data` in evaluation from now on."""
        self.graphs[False] = self.graph(data)
        self.embedding = None

    def graph(self, data: HeteroData) -> NodeMap:
        r"""Returns :math:`\mathbf{D}^{-1/2} \mathbf{A} \mathbf{D}^{-1/2}` at the first cutoff."""
        num_nodes = self.library.num_nodes
        edge_index = to_undirected(clicks_before(data), num_nodes=num_nodes)
        edge_index, weight = gcn_norm(edge_index, num_nodes=num_nodes, add_self_loops=False)
        return NodeMap(to_torch_csr_tensor(edge_index, weight, (num_nodes, num_nodes)))

    def propagate(self, x: Tensor) -> Tensor:
        r"""Sums the layers as :meth:`torch_geometric.nn.models.LightGCN.get_embedding` does."""
        graph = self.graphs[self.training].on(x.device)
        out = x * self.library.alpha[0]
        for conv, alpha in zip(self.library.convs, self.library.alpha[1:], strict=True):
            x = conv(x, graph)
            out = out + alpha * x
        return out

    def train(self, mode: bool = True) -> 'LightGCN':
        self.embedding = None
        return super().train(mode)

    def nodes(self) -> Tensor:
        r"""The embeddings of users and, after them, items, shape :obj:`[num_nodes, d]`."""
        nodes = self.embedding
        if nodes is None:
            # The map is symmetric.
            nodes = Propagate.apply(self.library.embedding.weight, self.propagate, self.propagate)
            # Weights do not change in evaluation, and a request should not pay for the whole graph.
            if not self.training and not torch.is_grad_enabled():
                self.embedding = nodes
        return nodes

    def forward(self, batch: PairBatch | Batch) -> Tensor:
        return self.score(batch, self.nodes())

    def score(self, batch: PairBatch | Batch, nodes: Tensor) -> Tensor:
        r"""The logits of a batch from the embeddings that :meth:`nodes` returns."""
        user, item = batch.user, batch.item + self.num_users
        score = (nodes[user] * nodes[item]).sum(dim=-1)
        return score + (self.bias(user) + self.bias(item)).squeeze(-1) + self.offset
