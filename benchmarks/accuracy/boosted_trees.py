r"""Boosted trees of LightGBM over the fields of an exposure and the counts at the target."""

import itertools
from typing import Any

import lightgbm
import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import HeteroData

from accuracy.fields import Batch, count_encoder
from mag.loader import ExposureBatch, ExposureLoader

# Learning rates and numbers of leaves, as many pairs as other models have trials.
TRIALS = tuple(itertools.product((0.1, 0.03), (31, 127)))
MAX_ROUNDS = 2000
PATIENCE = 50


class BoostedTrees(nn.Module):
    r"""Trees that read every field of an exposure, ids too, as a category, and of each count
    :math:`\log(1 + n)`, its rate shrunk with strength 10 and how far that is from its prior's.

    It is trained by :meth:`fit`, and then evaluated as any model.

    Args:
        data (HeteroData): A part of the log.
        counts (bool): Whether the counts at the target are read.
    """

    booster: lightgbm.Booster

    def __init__(self, data: HeteroData, counts: bool) -> None:
        super().__init__()
        self.encoder = count_encoder(data, learned=False) if counts else None

    def fit(
        self,
        train: HeteroData,
        val: HeteroData,
        seed: int,
        learning_rate: float,
        num_leaves: int,
    ) -> 'BoostedTrees':
        r"""Grows trees until the log loss of validation has not fallen for a while, and keeps those
        up to its lowest.

        Args:
            train: The training part.
            val: The validation part.
            seed: What rows and columns are drawn by.
            learning_rate: The share of each tree.
            num_leaves: Leaves of a tree.
        """
        options = {
            'objective': 'binary',
            'metric': 'binary_logloss',
            'learning_rate': learning_rate,
            'num_leaves': num_leaves,
            # Each tree sees its own rows and columns, by which seeds differ.
            'bagging_fraction': 0.8,
            'bagging_freq': 1,
            'feature_fraction': 0.8,
            'seed': seed,
            'deterministic': True,
            'force_row_wise': True,
            'num_threads': torch.get_num_threads(),
            'verbose': -1,
        }
        rows = self.dataset(train)
        self.booster = lightgbm.train(
            options,
            rows,
            MAX_ROUNDS,
            valid_sets=[self.dataset(val, rows)],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        return self

    def dataset(
        self, data: HeteroData, reference: lightgbm.Dataset | None = None
    ) -> lightgbm.Dataset:
        r"""The rows of a part, cut into bins as those of :obj:`reference` are."""
        loader = ExposureLoader(data, 2**16)
        batches = [(self.table(batch), batch.label.numpy()) for batch in loader]
        tables, labels = zip(*batches, strict=True)
        return lightgbm.Dataset(
            np.concatenate(tables),
            np.concatenate(labels),
            reference=reference,
            categorical_feature=list(range(len(loader.fields))),
        )

    def table(self, batch: ExposureBatch) -> Any:
        r"""What trees read of a batch, a NumPy array."""
        columns = [batch.sparse.float()]
        if self.encoder is not None:
            counts = batch.counts
            if counts is None:
                raise ValueError(
                    'BoostedTrees reads counts at the target, but batch.counts is None: apply '
                    'TargetCounts, or build it with counts=False.'
                )
            rate, prior = self.encoder.rates(counts)
            columns += [counts[..., 0].log1p(), rate, rate - prior]
        return torch.cat(columns, dim=1).cpu().numpy()

    @torch.no_grad()
    def forward(self, batch: Batch) -> Tensor:
        logits = self.booster.predict(self.table(batch.features), raw_score=True)
        return torch.from_numpy(np.asarray(logits)).float().to(batch.user.device)
