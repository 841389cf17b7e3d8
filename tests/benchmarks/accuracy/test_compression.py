import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from mag.loader import ExposureBatch, JoinedBatch, PairBatch
from mag.schema import CLICKS, SEES

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


def test_runs_tables_and_draws(
    arguments: Callable[..., argparse.Namespace], market: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    pytest.importorskip('matplotlib')
    from accuracy import compression, count_data, counts

    monkeypatch.setattr(counts, 'LEARNING_RATES', (1e-2,))
    monkeypatch.setattr(counts, 'WEIGHT_DECAYS', {market: (5e-5,)})
    args = arguments(market, ['count_net', 'macgnn'], batch_size=256, settings=[], jobs=1)
    compression.run(args)
    records: list[dict[str, Any]] = json.loads(Path(args.out).read_text())
    runs = [record for record in records if record['purpose'] == 'run']
    assert len(runs) == 4
    for run in runs:
        plain, *others = run['test'].values()
        # The model as it is, as if nothing else had been asked for.
        assert plain['val'] == run['val']
        assert all(form['tables'] <= plain['tables'] for form in others)
        assert any(form['tables'] < plain['tables'] for form in others)
        # Counts are small here: all but those to 16 change a little.
        coded = run['test']['tables as they are, counts of a byte']
        assert coded['test']['auc'] == pytest.approx(plain['test']['auc'], abs=0.02)
        assert coded['counts'] < plain['counts'] or run['model'] == 'macgnn'

    # Of each view the keys that were seen, with exposures and clicks.
    test = count_data.make_parts(market, 'rolling', '').test
    user, item = test[SEES].edge_index.tolist()
    nodes = {'user': user, 'item': item}
    num_keys = 0
    for name in test[CLICKS].count_names:
        if 'half-life' in name:
            continue
        columns = []
        for part in name.split(' x '):
            node_type, _, attribute = part.partition('_')
            values = nodes[node_type]
            table = test[node_type][attribute].tolist() if attribute else None
            columns.append([table[node] for node in values] if table else values)
        num_keys += len(set(zip(*columns, strict=True)))
    plain = [run['test']['tables as they are'] for run in runs if run['model'] == 'count_net']
    assert plain[0]['counts'] == 8 * num_keys

    lines = list(compression.render(records))
    assert sum('validation chooses' in line for line in lines) == 2
    row = next(line for line in lines if line.startswith('| tables as they are |')).split(' | ')
    assert row[3] == '100%' and row[6] == ''
    assert row[5].startswith(f'{sum(form["test"]["auc"] for form in plain) / 2:.4f}')
    compression.draw(records, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')


def test_counts_of_any_batch_come_back_from_a_byte() -> None:
    from accuracy import compression

    ids, counts = torch.zeros(2).long(), torch.tensor([[3.0, 40.0], [0.0, 1.0]])
    coded = torch.tensor([[3.0, 16 * 2 ** (20 * 16 / 239)], [0.0, 1.0]])
    lists = torch.full((2, 0), -1)
    pairs = PairBatch(ids, ids, (counts,), (counts, counts), lists, lists)
    features = ExposureBatch(ids, ids, lists, counts, counts=counts.unsqueeze(-1))
    found = compression.coded(JoinedBatch(ids, ids, pairs=pairs, features=features))
    for hop in (*found.pairs.user_hops, *found.pairs.item_hops):
        torch.testing.assert_close(hop, coded)
    assert len(found.pairs.item_hops) == 2
    torch.testing.assert_close(found.features.counts, coded.unsqueeze(-1))
    # What is no count stays.
    assert torch.equal(found.features.dense, counts)
    without = ExposureBatch(ids, ids, lists, counts)
    assert compression.coded(without) is without


def test_validation_chooses_the_smallest_that_loses_nothing() -> None:
    from accuracy import compression

    def form(num_bytes: int, val: float, test: float) -> dict[str, Any]:
        return {'tables': num_bytes, 'counts': 10, 'val': {'auc': val}, 'test': {'auc': test}}

    forms = {
        compression.PLAIN.name: form(90, 0.8, 0.7),
        'half': form(40, 0.7995, 0.6),
        # Better on the test part, which chooses nothing.
        'tiny': form(10, 0.798, 0.75),
    }
    line = compression.choice('macgnn', [{'model': 'macgnn', 'test': forms}])
    assert line == (
        'MacGNN: validation chooses half, 50% of the bytes; AUC on the test part goes from 0.7000 '
        'to 0.6000.'
    )


def test_forms_are_all_divisors_of_a_row() -> None:
    from accuracy import compression

    forms = list(compression.forms_of(10))
    assert [form.num_codes for form in forms] == [None, None, 10, 5, 2, 1, 5, 10, 5, 2, 1, 5]
    assert len({form.name for form in forms}) == len(forms)
    assert forms[3].name == '5 codes of 8 bits' and forms[6].name.endswith(', counts of a byte')
