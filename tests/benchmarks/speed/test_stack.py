from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ('deepctr_torch', 'lightgbm', 'tokenizers')),
    reason="the benchmark needs 'pip install pyg-mag[benchmarks,text]'",
)


def run(tmp_path: Path, dataset: str, root: Path, models: list[str]) -> list[list[str]]:
    from speed.stack import main

    main([
        '--dataset', dataset, '--root', str(root), '--checkpoints', str(tmp_path), '--models',
        *models, '--batch-size', '64', '--candidates', '20', '--repeats', '2', '--requests', '5',
        '--threads', str(torch.get_num_threads()), '--markdown', str(tmp_path / 'speed.md'),
    ])  # fmt: skip
    lines = (tmp_path / 'speed.md').read_text().splitlines()
    return [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines if '|' in line][2:]


def test_branches_and_stacks_take_turns(tmp_path: Path, root: Path, small_groups: None) -> None:
    rows = run(tmp_path, 'movielens-1m', root, ['counts', 'flip', 'macgnn_flip_simcen'])
    stack = 'MacGNN + FLIP + SimCEN'
    assert [row[0] for row in rows] == ['CountNet', 'FLIP', 'FLIP, kept', stack, f'{stack}, kept']
    for title, step, middle, last, within in rows:
        assert (step == '') == title.endswith('kept')
        assert 0 < float(middle) <= float(last)
        assert within == ('yes' if float(last) <= 30 else 'no')


def test_a_log_without_texts_has_no_flip(tmp_path: Path, market: str) -> None:
    rows = run(tmp_path, market, tmp_path, ['flip', 'counts', 'counts_flip'])
    assert [row[0] for row in rows] == ['CountNet']


def test_what_is_kept_scores_as_what_is_read(
    tmp_path: Path, root: Path, small_groups: None
) -> None:
    import argparse

    from accuracy.count_data import DATASETS, save_parts
    from accuracy.stack import MODELS, parts_with_text
    from speed.click_models import Contestant, States
    from speed.stack import keep_text

    path = save_parts('movielens-1m', 'rolling', str(root), str(tmp_path))
    parts = parts_with_text('movielens-1m', str(root), path)
    args = argparse.Namespace(device='cpu', batch_size=64, candidates=20)
    states = States(parts, DATASETS['movielens-1m'].half_lives)
    one = Contestant(MODELS['flip'], parts, states, args)
    one.model.eval()
    with torch.no_grad():
        batch = one.requests(1)
        before = one.model(batch).click
        keep_text(one)
        torch.testing.assert_close(one.model(batch).click, before)
