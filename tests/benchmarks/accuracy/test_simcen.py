import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ('deepctr_torch', 'lightgbm', 'fuxictr')),
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


def test_tunes_runs_and_tables(
    arguments: Callable[..., argparse.Namespace], market: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuracy import simcen

    monkeypatch.setattr(simcen, 'LEARNING_RATES', (1e-2, 1e-5))
    monkeypatch.setattr(simcen, 'WEIGHT_DECAYS', {market: (5e-5,)})
    args = arguments(market, list(simcen.MODELS), batch_size=256, protocol=['rolling'], jobs=1)
    simcen.run(args)
    records: list[dict[str, Any]] = json.loads(Path(args.out).read_text())
    tuned = [record for record in records if record['purpose'] == 'tune']
    runs = [record for record in records if record['purpose'] == 'run']
    # What lacks a part is not tuned, and nothing looks at the test part before the choice.
    names = {'dcn_v2', 'final_mlp', 'simcen', 'simcen_mlp', 'simcen_dual'}
    assert {record['model'] for record in tuned} == names and len(tuned) == 2 * len(names)
    assert not any('test' in record for record in tuned)
    assert len(runs) == 2 * len(simcen.MODELS)
    settings = {record['model']: record['setting'] for record in runs}
    assert settings['no_views'] == settings['no_contrast'] == settings['simcen']
    # Each row is another model.
    values = {record['test']['logloss'] for record in runs}
    assert len(values) == len(runs)

    lines = list(simcen.render(records))
    rows = {line.split(' | ')[0]: line.split(' | ') for line in lines if line.startswith('| ')}
    mean = {
        name: sum(run['test']['auc'] for run in runs if run['model'] == name) / 2
        for name in ('simcen', 'dcn_v2')
    }
    assert rows['| SimCEN'][1].startswith(f'{mean["simcen"]:.4f} ± ')
    assert rows['| SimCEN'][4] == ''
    assert rows['| DCN V2'][4].startswith(f'{mean["dcn_v2"] - mean["simcen"]:+.4f} (p = ')
    simcen.run(args)
    assert json.loads(Path(args.out).read_text()) == records
