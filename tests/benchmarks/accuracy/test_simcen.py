import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from mag.logits import Logits
from mag.schema import CLICKS
from mag.training import ClickTask

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ('deepctr_torch', 'lightgbm', 'fuxictr')),
    reason="the benchmark needs 'pip install pyg-mag[benchmarks,fuxictr]'",
)


def test_tunes_runs_and_tables(
    arguments: Callable[..., argparse.Namespace], market: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accuracy import simcen

    for rates in ('LEARNING_RATES', 'OWN_RATES'):
        monkeypatch.setattr(simcen, rates, (1e-2, 1e-5))
    models = ['dcn_v2', 'simcen', 'no_contrast', 'no_views']
    args = arguments(market, models, batch_size=512, protocol=['rolling'], jobs=1)
    simcen.run(args)
    records: list[dict[str, Any]] = json.loads(Path(args.out).read_text())
    tuned = [record for record in records if record['purpose'] == 'tune']
    runs = [record for record in records if record['purpose'] == 'run']
    # What lacks a part is not tuned, and nothing looks at the test part before the choice.
    assert [record['model'] for record in tuned].count('simcen') == 2 == len(tuned) / 2
    assert not any('test' in record for record in tuned)
    assert len(runs) == 2 * len(models)
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


def test_each_row_is_another_model(market: str) -> None:
    from accuracy.click_bench import make_loader, parts_of
    from accuracy.count_data import make_parts
    from accuracy.simcen import MODELS

    parts = make_parts(market, 'rolling', '')
    logits, losses = {}, {}
    for name, model in MODELS.items():
        given = parts_of(model, parts)
        batch = next(iter(make_loader(model, given['train'], 64)))
        torch.manual_seed(0)
        task = ClickTask(model.build(given['train'], given['val'], 1.0))
        torch.manual_seed(1)
        losses[name] = task.loss(batch).item()
        found = task.eval().model(batch)
        logits[name] = found.click if isinstance(found, Logits) else found
        assert 'edge_label_counts' not in given['train'][CLICKS]
    assert logits['simcen'].equal(logits['no_contrast']) and logits['simcen'].equal(
        logits['standard']
    )
    apart = [name for name in MODELS if name not in ('no_contrast', 'standard')]
    for one, other in combinations(apart, 2):
        assert not torch.allclose(logits[one], logits[other])
    assert len({losses[name] for name in ('simcen', 'no_contrast', 'standard')}) == 3
