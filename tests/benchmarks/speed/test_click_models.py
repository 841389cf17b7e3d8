import argparse
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)
MODELS = ['macgnn', 'count_net', 'wide_deep_counts', 'lightgcn', 'lightgbm_counts']


def test_all_take_turns(market: str, tmp_path: Path) -> None:
    from speed import click_models

    args = [
        '--dataset', market, '--checkpoints', str(tmp_path), '--models', *MODELS,
        '--batch-size', '64', '--candidates', '20', '--repeats', '3',
        '--threads', str(torch.get_num_threads()),
        '--markdown', str(tmp_path / 'speed.md'), '--json', str(tmp_path / 'speed.json'),
    ]  # fmt: skip
    click_models.main(args)
    medians = json.loads((tmp_path / 'speed.json').read_text())
    assert medians['batch_size'] == 64
    assert list(medians['score']) == MODELS
    assert list(medians['request']) == [*MODELS, 'look_up']
    # Trees have no step.
    assert list(medians['train']) == MODELS[:-1]
    assert all(value > 0 for stage in ('train', 'score') for value in medians[stage].values())
    lines = (tmp_path / 'speed.md').read_text().splitlines()
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines if '|' in line][2:]
    assert [row[0] for row in rows][:2] == ['MacGNN', 'CountNet']
    assert rows[0][2::2] == ['1.00', '1.00', '1.00'] and rows[-2][1:3] == ['', '']
    assert rows[-1][:5] == ['look-up of counts alone', '', '', '', '']


def test_a_step_learns_and_a_score_does_not(market: str, tmp_path: Path) -> None:
    from accuracy import count_data, counts
    from speed import click_models

    parts = count_data.load_parts(count_data.save_parts(market, 'rolling', '', str(tmp_path)))
    args = argparse.Namespace(device='cpu', batch_size=64, candidates=20)
    states = click_models.States(parts, (86_400.0,))
    one = click_models.Contestant(counts.MODELS['count_net'], parts, states, args)
    before = {name: value.clone() for name, value in one.model.named_parameters()}
    one.score()
    one.request()
    assert all(torch.equal(before[name], value) for name, value in one.model.named_parameters())
    one.train()
    assert not torch.equal(
        before['head.0.weight'], dict(one.model.named_parameters())['head.0.weight']
    )


@pytest.mark.parametrize('name', ['count_net', 'decay', 'no_exposures', 'no_user', 'macgnn_counts'])
def test_a_request_is_of_one_user_with_the_counts_of_the_part(
    name: str, market: str, tmp_path: Path
) -> None:
    from accuracy import count_data
    from accuracy.click_bench import parts_of
    from accuracy.counts import MODELS
    from speed import click_models

    parts = count_data.load_parts(count_data.save_parts(market, 'rolling', '', str(tmp_path)))
    half_lives = count_data.DATASETS[market].half_lives
    part = parts_of(MODELS[name], parts)['val']
    states = click_models.States(parts, half_lives)
    requests = click_models.Requests(MODELS[name], part, states, 40)
    clicks = part['user', 'clicks', 'item']
    # Rows of the part are served as of its cutoff, and so are requests.
    row = requests.rows[3]
    requests.items = clicks.edge_label_index[1, [row, *range(19)]]
    requests.clicks.edge_label_time = clicks.cutoff.expand(clicks.edge_label_time.shape)
    batch = requests(3)
    assert batch.user.unique().tolist() == [int(clicks.edge_label_index[0, row])]
    assert torch.equal(batch.item, requests.items)
    counts = batch.counts if hasattr(batch, 'counts') else batch.features.counts
    torch.testing.assert_close(counts[0], clicks.edge_label_counts[row], rtol=1e-6, atol=1e-6)
