r"""Every baseline, as it is and given the same counts at the target as CountNet.

All read :class:`~mag.loader.JoinedBatch`, of it only the parts that :func:`reads` names, and return
logits. MacGNN and LightGCN read ids, as published. All others read the fields that CountNet reads,
and their embeddings have the size of CountNet's, as LightGCN's have; MacGNN's have the published
size of 10.

Given the counts, each reads what CountNet's encoder makes of them where it reads dense features:

- Wide & Deep, DeepFM and NFM in their linear part and in their hidden layers, DCN V2 also in its
  crosses, DIN and DIEN in their hidden layers alone,
- AFM, which has no hidden layers, in its linear part alone,
- MacGNN, SIM, ETA, PinSage and the graph transformer in their heads,
- LightGCN in a head whose logit is added, which also reads the embeddings of user and item,
- boosted trees as columns.

What a row may read of clicks: the lists of MacGNN, DIN, DIEN and the graph transformer are as of
the row's window. The histories of SIM and ETA are strictly before the row and end at the last
cutoff of its part: exact in training, but for its last window, and as of the cutoff in the test
part, as stale counts are. LightGCN and PinSage propagate over the clicks before the first cutoff of
a part, see :func:`read_history`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat, VarLenSparseFeat
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.boosted_trees import BoostedTrees
from accuracy.deepctr_layers import use_faster_layers
from accuracy.fields import EMBEDDING_DIM, EMBEDDING_STD, Batch, category_table, count_encoder
from accuracy.graph_models import GraphTransformer, PinSage
from accuracy.long_history_models import ETA, LENGTH, SIM
from accuracy.pair_models import HIDDEN, HISTORY_READERS, LightGCN, left_aligned, make_library
from mag.click_index import take
from mag.loader import (
    ExposureFeatures,
    ExposureLoader,
    HistoryLoader,
    JoinedLoader,
    PairLoader,
)
from mag.models import MacGNN
from mag.nn import MLP


class Baseline(NamedTuple):
    r"""A model to compare with.

    Args:
        title: What tables call it.
        build: From the training part, the validation part, MacGNN's temperature and whether the
            counts at the target are read. That of boosted trees is then trained by
            :meth:`~accuracy.boosted_trees.BoostedTrees.fit`, and all others by
            :func:`mag.training.fit`.
        reads: The parts of a batch that it reads without counts. A model that reads ids alone
            reads :obj:`'features'`, whose loader costs least.
    """

    title: str
    build: Callable[[HeteroData, HeteroData, float, bool], nn.Module]
    reads: tuple[str, ...] = ('features',)


class FieldDeepCTR(nn.Module):
    r"""A model of `DeepCTR-Torch <https://github.com/shenweichen/DeepCTR-Torch>`_ that reads every
    field of an exposure, and its counts as dense features.

    DIN and DIEN also read the user's recent items and, where items have some, their categories.
    DIEN runs without its auxiliary loss, which needs sampled negatives that no other model here
    sees.

    Args:
        data: A part of the log, after :class:`~mag.transforms.RecentNeighbors` for DIN and DIEN.
        architecture: A name in :obj:`accuracy.pair_models.ARCHITECTURES`.
        counts: Whether the counts at the target are read.
    """

    category: Tensor

    def __init__(self, data: HeteroData, architecture: str, counts: bool) -> None:
        super().__init__()
        features = ExposureFeatures(data, caller=type(self).__name__)
        # Of each field the first row stands for none, -1; columns of one name share their rows.
        sizes = {name: features.num_values[name] + 1 for name in features.fields}
        # DeepCTR-Torch takes ids as one float matrix; float32 holds integers up to 2**24.
        if max(sizes.values()) > 2**24:
            raise ValueError(
                f'DeepCTR-Torch reads ids as float32, exact up to 2**24, but a field has '
                f'{max(sizes.values())} values.'
            )
        columns: list[Any] = [
            SparseFeat(
                # A model finds its target by the name of the first column of a field.
                name if name not in features.fields[:place] else f'{name}_{place}',
                sizes[name],
                EMBEDDING_DIM,
                embedding_name=name,
            )
            for place, name in enumerate(features.fields)
        ]
        self.encoder = count_encoder(data) if counts else None
        if self.encoder is not None:
            columns.append(DenseFeat('counts', self.encoder.out_channels))
        history: list[Any] = []
        self.reads_history = architecture in HISTORY_READERS
        if self.reads_history:
            self.register_buffer('category', category_table(data), persistent=False)
            self.clicked = [name for name in ('item', 'item_category') if name in sizes]
            history = [
                VarLenSparseFeat(
                    SparseFeat(f'hist_{name}', sizes[name], EMBEDDING_DIM, embedding_name=name),
                    data['user'].recent.size(-1),
                    length_name='length',
                )
                for name in self.clicked
            ]
        self.library = make_library(architecture, columns, history)
        for embedding in self.library.embedding_dict.values():
            nn.init.normal_(embedding.weight, std=EMBEDDING_STD)
        use_faster_layers(self.library)

    def forward(self, batch: Batch) -> Tensor:
        columns = [(batch.features.sparse + 1).float()]
        if self.encoder is not None:
            columns.append(self.encoder(batch.features.counts))
        if self.reads_history:
            recent, length = left_aligned(batch.pairs.user_recent)
            # A user without history has one of row 0 alone: DIEN fails where nobody has any.
            columns += [recent + 1, length.clamp(min=1)]
            if 'item_category' in self.clicked:
                columns.append(take(self.category, recent + 1) + 1)
        return self.library(torch.cat(columns, dim=1)).squeeze(-1)


class MacroGraph(nn.Module):
    r"""MacGNN, whose head also reads the counts at the target if asked to.

    Args:
        data: The training part, after :class:`~mag.transforms.MacroCoarsen`.
        temperature: That of its attention.
        counts: Whether the counts at the target are read.
    """

    def __init__(self, data: HeteroData, temperature: float, counts: bool) -> None:
        super().__init__()
        self.model = MacGNN.from_data(data, temperature=temperature)
        self.encoder = count_encoder(data) if counts else None
        if self.encoder is not None:
            in_channels = next(self.model.head.parameters()).size(1) + self.encoder.out_channels
            self.model.head = MLP([in_channels, *HIDDEN, 1])

    def forward(self, batch: Batch) -> Tensor:
        features = self.model.features(batch.pairs)
        if self.encoder is not None:
            features = torch.cat([features, self.encoder(batch.features.counts)], dim=1)
        return self.model.head(features).squeeze(-1)


class CountedLightGCN(nn.Module):
    r"""LightGCN and, if counts are read, a head beside it.

    Args:
        train: The training part.
        val: The part that the model is selected on.
        counts: Whether the counts at the target are read.
    """

    def __init__(self, train: HeteroData, val: HeteroData, counts: bool) -> None:
        super().__init__()
        self.model = LightGCN.from_data(train, val, EMBEDDING_DIM)
        self.encoder = count_encoder(train) if counts else None
        if self.encoder is not None:
            in_channels = 2 * EMBEDDING_DIM + self.encoder.out_channels
            self.head = MLP([in_channels, *HIDDEN, 1])

    def forward(self, batch: Batch) -> Tensor:
        nodes = self.model.nodes()
        logit = self.model.score(batch, nodes)
        if self.encoder is None:
            return logit
        user, item = nodes[batch.user], nodes[batch.item + self.model.num_users]
        rows = torch.cat([user, item, self.encoder(batch.features.counts)], dim=1)
        return logit + self.head(rows).squeeze(-1)


def deepctr(architecture: str) -> Callable[[HeteroData, HeteroData, float, bool], nn.Module]:
    def build(train: HeteroData, val: HeteroData, temperature: float, counts: bool) -> nn.Module:
        return FieldDeepCTR(train, architecture, counts)

    return build


def macgnn(train: HeteroData, val: HeteroData, temperature: float, counts: bool) -> nn.Module:
    return MacroGraph(train, temperature, counts)


def lightgcn(train: HeteroData, val: HeteroData, temperature: float, counts: bool) -> nn.Module:
    return CountedLightGCN(train, val, counts)


def sim(train: HeteroData, val: HeteroData, temperature: float, counts: bool) -> nn.Module:
    return SIM(train, counts)


def eta(train: HeteroData, val: HeteroData, temperature: float, counts: bool) -> nn.Module:
    return ETA(train, counts)


def pinsage(train: HeteroData, val: HeteroData, temperature: float, counts: bool) -> nn.Module:
    return PinSage(train, val, counts)


def graph_transformer(
    train: HeteroData, val: HeteroData, temperature: float, counts: bool
) -> nn.Module:
    return GraphTransformer(train, counts)


def trees(train: HeteroData, val: HeteroData, temperature: float, counts: bool) -> nn.Module:
    return BoostedTrees(train, counts)


BASELINES = {
    'macgnn': Baseline('MacGNN', macgnn, ('pairs',)),
    'wide_deep': Baseline('Wide & Deep', deepctr('wide_deep')),
    'deepfm': Baseline('DeepFM', deepctr('deepfm')),
    'afm': Baseline('AFM', deepctr('afm')),
    'nfm': Baseline('NFM', deepctr('nfm')),
    'dcn_v2': Baseline('DCN V2', deepctr('dcn_v2')),
    'din': Baseline('DIN', deepctr('din'), ('features', 'pairs')),
    'dien': Baseline('DIEN', deepctr('dien'), ('features', 'pairs')),
    'sim': Baseline('SIM (hard)', sim, ('features', 'histories')),
    'eta': Baseline('ETA', eta, ('features', 'histories')),
    'lightgcn': Baseline('LightGCN', lightgcn),
    'pinsage': Baseline('PinSage', pinsage),
    'graph_transformer': Baseline('graph transformer', graph_transformer, ('features', 'pairs')),
    'lightgbm': Baseline('LightGBM', trees),
}
LOADERS: dict[str, Callable[[HeteroData], Any]] = {
    'pairs': PairLoader,
    'features': ExposureLoader,
    'histories': partial(HistoryLoader, length=LENGTH),
}


def reads(name: str, counts: bool) -> tuple[str, ...]:
    r"""The parts of a batch that a baseline reads."""
    parts = BASELINES[name].reads
    return ('features', *parts) if counts and 'features' not in parts else parts


def make_loader(
    name: str,
    data: HeteroData,
    counts: bool,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
) -> JoinedLoader:
    r"""Loads of a part of the log what a baseline reads of it.

    Args:
        name: A name in :obj:`BASELINES`.
        data: A part that went through :class:`~mag.transforms.RecentNeighbors`,
            :class:`~mag.transforms.MacroCoarsen` and, for counts,
            :class:`~mag.transforms.TargetCounts`.
        counts: Whether the counts at the target are read.
        batch_size: Exposures a batch.
        shuffle: Whether exposures are shuffled anew each epoch.
        seed: Seed of the shuffling.
    """
    loaders = [LOADERS[part](data) for part in reads(name, counts)]
    return JoinedLoader(loaders, batch_size, shuffle, seed)


def read_history(model: nn.Module, data: HeteroData) -> None:
    r"""Lets what propagates over clicks read those before the first cutoff of :obj:`data` in
    evaluation from now on. Without, it reads those before that of the validation part.

    Args:
        model: A model, or a task with the average of its weights.
        data: The part that is scored.
    """
    for module in model.modules():
        if isinstance(module, (LightGCN, PinSage)):
            module.read_history(data)
