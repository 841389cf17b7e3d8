import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch

from mag.compression import decode_counts, encode_counts
from mag.loader import PairBatch
from mag.store import Store


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], market: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuracy import store_bytes
    from accuracy.harness import run_missing

    monkeypatch.setattr(store_bytes, 'GROUPS', {'user': 5, 'item': 'category'})
    args = arguments(
        market, [*store_bytes.COUNTS], batch_size=256, learning_rate=1e-2, weight_decay=1e-5
    )
    run_missing(store_bytes.run_one, args)
    path = Path(args.out)
    records: list[dict[str, Any]] = json.loads(path.read_text())
    assert [(of['model'], of['seed']) for of in records] == [
        ('exact', 0), ('log', 0), ('exact', 1), ('log', 1)
    ]  # fmt: skip
    assert records[0]['rows'] == records[1]['rows']
    run_missing(store_bytes.run_one, args)
    assert json.loads(path.read_text()) == records

    # The stores differ in hop 2 alone, which one tells by codes.
    stores = [Store(Path(args.checkpoints, market, f'store-{name}')) for name in ('exact', 'log')]
    for node_type, size in stores[0].num_nodes.items():
        ids = torch.arange(size)
        exact, coded = (store.rows(node_type, ids) for store in stores)
        assert torch.equal(exact.hops[0], coded.hops[0])
        assert torch.equal(exact.recent, coded.recent)
        assert torch.equal(decode_counts(encode_counts(exact.hops[1])), coded.hops[1])
    for name in stores[0].num_clusters:
        assert np.array_equal(*(store.cluster(name) for store in stores))
    for exact, coded in zip(records[::2], records[1::2], strict=True):
        assert exact['changed'] > 0 and coded['changed'] == 0
        for node_type, size in coded['bytes'].items():
            # One byte of each window and cluster.
            num_clusters = stores[1].num_clusters[node_type]
            assert size == stores[1].num_windows * num_clusters
            assert exact['bytes'][node_type] >= 2 * size

    lines = list(store_bytes.render(records))
    (row,) = [line.split(' | ') for line in lines if line.startswith('| one byte')]
    assert row[4].startswith(f'{mean(of["test"]["auc"] for of in records[1::2]):.4f} ± ')
    assert '(p = ' in row[5] and '(p = ' in row[9] and row[10] == '2 |'
    (row,) = [line.split(' | ') for line in lines if line.startswith('| two bytes')]
    assert row[5] == row[7] == row[9] == ''


def test_the_share_of_counts_that_change() -> None:
    from accuracy.store_bytes import share_changed

    ids, none = torch.zeros(2).long(), torch.zeros(2, 0).long()
    # Codes are exact up to 14; zeros do not count, and neither does hop 1.
    first = torch.full((2, 2), 1001.0)
    user, item = torch.tensor([[0.0, 3.0], [1001.0, 0.0]]), torch.tensor([[14.0, 1.0], [0.0, 0.0]])
    batch = PairBatch(ids, ids, (first, user), (first, item), none, none)
    assert share_changed([batch, batch]) == 1 / 4
