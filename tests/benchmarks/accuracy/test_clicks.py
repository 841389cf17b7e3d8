import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


@pytest.fixture
def clicks() -> ModuleType:
    from accuracy import clicks

    return clicks


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], clicks: ModuleType, root: Path
) -> None:
    args = arguments(
        'movielens-1m',
        ['macgnn', 'no_recent', 'wide_deep', 'lightgcn'],
        batch_size=64,
        max_epochs=2,
        protocol=['window', 'official', 'rolling-3'],
        trials=[(1e-2, 5e-5), (3e-3, 5e-5)],
    )
    clicks.run(args)
    path = Path(args.out)
    records = json.loads(path.read_text())
    runs = [record for record in records if record['purpose'] == 'run']
    tuned = [record for record in records if record['purpose'] == 'tune']
    # An ablation is tuned as the model it is one of.
    assert len(runs) == 3 * 4 * 2 and len(tuned) == 3 * 3 * 2
    # Choosing never looks at the test part.
    assert all('test' not in record for record in tuned)
    by_key = {(r['protocol'], r['model'], r['learning_rate']): r for r in tuned}
    for record in runs:
        model = 'macgnn' if record['model'] == 'no_recent' else record['model']
        found = [by_key[record['protocol'], model, rate]['val']['auc'] for rate in (1e-2, 3e-3)]
        assert record['learning_rate'] == (1e-2 if found[0] >= found[1] else 3e-3)
    assert {tuple(r['rows']) for r in runs if r['protocol'] == 'window'} == {(320, 80, 400)}
    assert {tuple(r['rows']) for r in runs if r['protocol'] == 'official'} == {(400, 400, 400)}

    text = '\n'.join(clicks.render(records))
    mean = np.mean(
        [r['test']['auc'] for r in runs if (r['protocol'], r['model']) == ('window', 'macgnn')]
    )
    assert f'| MacGNN (paper attention) | {mean:.4f} ± ' in text
    assert 'optimistic' in text and '| 3 windows |' in text

    # Given again, the command finds all done; killed before a record was written, it writes it.
    clicks.run(args)
    assert json.loads(path.read_text()) == records
    path.write_text(json.dumps(records[:-1]))
    clicks.run(args)
    last = json.loads(path.read_text())[-1]
    for name in ('val', 'test', 'rows', 'model', 'seed'):
        assert last[name] == records[-1][name]


def test_official_split(clicks: ModuleType, root: Path) -> None:
    r"""All labels from the 80 % to the 90 % quantile train, and the test part is stopped on."""
    data = clicks.DATASETS['movielens-1m'].load(str(root))
    train, val, test = clicks.PROTOCOLS['official'].split(data)
    found = {name: part['user', 'clicks', 'item'] for name, part in (('a', train), ('b', test))}
    assert found['a'].edge_label_time.tolist() == list(range(3200, 3600))
    assert int(found['a'].time.max()) < 3200
    assert found['b'].edge_label_time.tolist() == list(range(3600, 4000))
    assert val is test
