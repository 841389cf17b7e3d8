import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mag.schema import CLICKS, MACRO

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


@pytest.fixture
def settings(tmp_path: Path) -> str:
    r"""What accuracy.counts would have chosen."""
    records = [
        {'dataset': 'market', 'protocol': 'rolling', 'purpose': 'run', 'model': model,
         'setting': {'learning_rate': rate, 'weight_decay': 1e-5}, 'test': {'auc': auc}}
        for auc in (0.70, 0.74)
        for model, rate in (('macgnn', 0.01), ('count_net', 0.003))
    ]  # fmt: skip
    path = tmp_path / 'counts.json'
    path.write_text(json.dumps(records))
    return str(path)


def test_parts_with_other_macro_nodes_read_the_same_rows(market: str) -> None:
    from accuracy import count_data, macro_nodes

    parts = count_data.make_parts(market, 'rolling', '')
    found = macro_nodes.with_macro_nodes(parts, 5)
    for before, after in zip(parts[1:4], found[1:4], strict=True):
        assert after[CLICKS].edge_label_index.equal(before[CLICKS].edge_label_index)
        assert [after[MACRO[name]].num_nodes for name in ('user', 'item')] == [5, 5]
        names = after[CLICKS].count_names
        assert len(names) == 5 == after[CLICKS].edge_label_counts.size(1)
        # Those of a user do not depend on macro nodes.
        column, other = names.index('user'), before[CLICKS].count_names.index('user')
        counts = [part[CLICKS].edge_label_counts for part in (before, after)]
        assert counts[1][:, column].equal(counts[0][:, other])
    assert found.windows.shape == found.train[CLICKS].edge_label_counts.shape
    assert (found.fresh >= found.test[CLICKS].edge_label_counts).all()


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], market: str, settings: str, tmp_path: Path
) -> None:
    pytest.importorskip('matplotlib')
    from accuracy import macro_nodes

    args = arguments(
        market, ['macgnn', 'count_net'], settings=[settings], batch_size=256, seeds=1,
        temperatures=[0.5, 2.0], numbers=[3, 20],
    )  # fmt: skip
    macro_nodes.run(args)
    path = Path(args.out)
    records: list[dict[str, Any]] = json.loads(path.read_text())
    assert [(record['model'], record['axis'], record['value']) for record in records] == [
        ('macgnn', 'temperature', 0.5), ('macgnn', 'temperature', 2.0), ('macgnn', 'number', 3),
        ('macgnn', 'number', 20), ('count_net', 'number', 3), ('count_net', 'number', 20),
    ]  # fmt: skip
    assert [record['setting']['learning_rate'] for record in records] == [0.01] * 4 + [0.003] * 2
    # The standard deviation of .70 and .74 is .04 / sqrt(2).
    assert {round(record['noise'], 6) for record in records} == {0.056569}
    # A temperature changes what a model says of the same rows.
    assert records[0]['val']['logloss'] != records[1]['val']['logloss']
    macro_nodes.run(args)
    assert json.loads(path.read_text()) == records

    lines = list(macro_nodes.render(records))
    (row,) = [line.split(' | ') for line in lines if line.startswith('| 3 ')]
    expected = [
        f'{records[place][part]["auc"]:.4f}' for place in (2, 4) for part in ('val', 'test')
    ]
    assert [row[1], row[2], row[4], row[5]] == expected
    macro_nodes.draw(records, tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').read_bytes().startswith(b'\x89PNG')

    args.patience = 7
    with pytest.raises(ValueError, match="has runs with .*'patience': 2.*'patience': 7"):
        macro_nodes.run(args)
    args = arguments(
        market, ['macgnn'], settings=[str(tmp_path / 'none.json')], batch_size=256,
        temperatures=[0.5], numbers=[], out=str(tmp_path / 'other.json'),
    )  # fmt: skip
    with pytest.raises(ValueError, match='No file of --settings has a run of macgnn on market'):
        macro_nodes.run(args)


def record(model: str, axis: str, value: float, val: float, test: float) -> dict[str, Any]:
    return {
        'dataset': 'market', 'model': model, 'axis': axis, 'value': value, 'seed': 0,
        'val': {'auc': val}, 'test': {'auc': test}, 'noise': 0.001,
    }  # fmt: skip


def test_claims_are_of_what_validation_chooses() -> None:
    from accuracy import macro_nodes

    runs = [
        record('macgnn', 'temperature', 0.1, 0.6, 0.7),
        record('macgnn', 'temperature', 1.0, 0.65, 0.72),
        # Better on the test part, which chooses nothing.
        record('macgnn', 'temperature', 9.0, 0.62, 0.73),
        record('macgnn', 'number', 20, 0.62, 0.72),
        record('macgnn', 'number', 50, 0.63, 0.7205),
        record('count_net', 'number', 20, 0.62, 0.72),
        record('count_net', 'number', 50, 0.63, 0.73),
    ]
    found = list(macro_nodes.claims(runs))
    assert found[0].startswith('That too small a temperature hurts holds: ')
    assert '0.7000 at 0.1 and 0.7200 at 1,' in found[0] and '+0.0200' in found[0]
    assert 'enough holds for MacGNN: it has 0.7200 with 20 a side and 0.7205 with 50' in found[1]
    assert 'enough does not hold for CountNet' in found[2] and '+0.0100' in found[2]
    # Where seeds differ by more than the numbers do.
    for run in runs:
        run['noise'] = 0.02
    assert 'enough holds for CountNet' in list(macro_nodes.claims(runs))[2]
