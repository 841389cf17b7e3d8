import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy.stats import ttest_rel

from mag.datasets import SyntheticMarket
from mag.logits import Logits


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from accuracy import conversions

    monkeypatch.setattr(conversions, 'NUM_EXPOSURES', 6_000)
    return conversions


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], conversions: ModuleType, tmp_path: Path
) -> None:
    args = arguments(
        'market-2', ['base', 'base_ipw', 'mcm_2'], batch_size=512, learning_rate=1e-3,
        weight_decay=1e-6, num_buckets=500,
    )  # fmt: skip
    conversions.run_missing(conversions.run_one, args)
    path = Path(args.out)
    records = json.loads(path.read_text())
    assert len(records) == 3 * 2
    values = {(r['model'], r['seed']): r['test']['true_mse'] for r in records}
    assert len(set(values.values())) == 6
    # What is fed to a table is what the table says.
    text = '\n'.join(conversions.render(records))
    base, other = ([values[name, seed] for seed in (0, 1)] for name in ('base', 'base_ipw'))
    assert f'| {sum(base) / 2:.4f} ± ' in text
    difference = sum(other) / 2 - sum(base) / 2
    assert f'| {difference:+.4f} (p = {ttest_rel(other, base).pvalue:.2g}) |' in text
    assert '## SyntheticMarket, selection bias 2' in text and 'whoever knows the truth' in text

    # Given again, the command finds all done; one run less, it makes that again.
    conversions.run_missing(conversions.run_one, args)
    assert json.loads(path.read_text()) == records
    path.write_text(json.dumps(records[:-1]))
    conversions.run_missing(conversions.run_one, args)
    last = json.loads(path.read_text())[-1]
    assert (last['val'], last['test']) == (records[-1]['val'], records[-1]['test'])


def test_true_error_of_the_truth_is_zero(conversions: ModuleType) -> None:
    _, _, test = conversions.SPLIT(SyntheticMarket(60, 30, 6_000, log=False)[0])
    loader = conversions.ExposureLoader(test, 100)
    truth = test.truth['conversion_probability'][test['user', 'clicks', 'item'].edge_label_row]

    class Oracle(torch.nn.Module):
        def __init__(self, shift: float) -> None:
            super().__init__()
            self.shift, self.rows = shift, iter((truth + shift).split(100))

        def forward(self, batch: object) -> Logits:
            logit = next(self.rows).logit()
            return Logits(logit, conversion=logit)

    assert conversions.true_error(Oracle(0.0), test, loader) == pytest.approx(
        dict.fromkeys(conversions.TRUTH, 0.0), abs=1e-12
    )
    shifted = conversions.true_error(Oracle(0.001), test, loader)
    assert shifted['true_bias'] == pytest.approx(1e-3, abs=1e-9)
    assert shifted['true_mse'] == pytest.approx(1e-6, abs=1e-9)


def test_graph_cost_is_measured() -> None:
    from speed import gmcm

    batch = gmcm.make_batch(64, 0)
    assert batch.sparse.size(1) + batch.dense.size(1) == 258
    fused, messages = (gmcm.make_subject(name) for name in ('GMCM', 'GMCM, messages'))
    # Both ways of the convolution train alike; what is compared is their speed alone.
    for subject in (fused, messages):
        subject.step(batch)
    for one, other in zip(fused.model.parameters(), messages.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=3e-4)
    args = argparse.Namespace(batch_size=64, repeats=1, steps=1, threads=[1])
    text = '\n'.join(gmcm.run(args))
    assert '| MCM-10 | ' in text and '| GMCM, messages | ' in text
