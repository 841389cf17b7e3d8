import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel

from mag.datasets import SyntheticMarket
from mag.loader import PathLoader

CLICKS = ('user', 'clicks', 'item')
pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from accuracy import search

    monkeypatch.setattr(search, 'NUM_EXPOSURES', 4_000)
    return search


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], search: ModuleType, tmp_path: Path
) -> None:
    args = arguments(
        'market',
        ['srjgraph', 'only_search', 'dnn', 'din', 'gat', 'hgt', 'lightgcn'],
        batch_size=256,
        learning_rate=3e-3,
        weight_decay=1e-6,
    )
    search.run_missing(search.run_one, args)
    path = Path(args.out)
    records = json.loads(path.read_text())
    assert len(records) == 7 * 2
    values = {(r['model'], r['seed']): r['test'].get('search', {}).get('auc') for r in records}
    assert len(set(values.values())) == 14
    alone = next(record for record in records if record['model'] == 'only_search')
    assert alone['test'].keys() == {'search'}
    assert alone['rows'][0] < 0.5 * records[0]['rows'][0]

    text = '\n'.join(search.render(records))
    ours, theirs = ([values[name, seed] for seed in (0, 1)] for name in ('dnn', 'srjgraph'))
    difference = np.mean(ours) - np.mean(theirs)
    assert f'| {difference:+.4f} (p = {ttest_rel(ours, theirs).pvalue:.2g}) |' in text

    # Given again, the command finds all done; one run less, it makes that again.
    path.write_text(json.dumps(records[:-1]))
    search.run_missing(search.run_one, args)
    assert json.loads(path.read_text())[-1]['test'] == records[-1]['test']


def test_improvement_over_the_dnn_is_that_of_the_means(search: ModuleType) -> None:
    runs = [
        {'model': model, 'seed': seed, 'test': {'search': {'auc': auc}}}
        for model, aucs in {'dnn': (0.55, 0.65), 'srjgraph': (0.63, 0.67)}.items()
        for seed, auc in enumerate(aucs)
    ]
    assert search.over_dnn(runs, 'srjgraph', 'search') == '+50.0 %'
    assert search.over_dnn(runs, 'dnn', 'search') == ''
    assert search.over_dnn(runs, 'srjgraph', 'recommendation') == ''


def test_runs_of_another_learning_rate_are_not_mixed(
    arguments: Callable[..., argparse.Namespace], search: ModuleType, tmp_path: Path
) -> None:
    args = arguments('market', ['dnn'], batch_size=256, learning_rate=3e-3, weight_decay=1e-6)
    Path(args.out).write_text(json.dumps([{'learning_rate': 0.1}]))
    with pytest.raises(ValueError, match='runs at a learning rate of 0.1, not 0.003'):
        search.run_missing(search.run_one, args)


def test_occasions_are_those_of_ids_that_expire(search: ModuleType) -> None:
    data = search.DATASETS['occasions'].load('', 0)
    assert data[CLICKS].edge_label.numel() == 10_000
    assert data.truth['occasion'].max() == 1
    assert data['user'].num_nodes == 5 * 25 == data.truth['person'].numel()


def test_one_domain_has_nothing_of_the_other(search: ModuleType) -> None:
    data = SyntheticMarket(40, 20, 2_000, log=False)[0]
    part = search.of_domain(data, 1, with_clicks=False)
    assert (part[CLICKS].edge_label_domain == 1).all() and (part[CLICKS].domain == 1).all()
    assert part[CLICKS].edge_index.size(1) == part[CLICKS].time.numel()
    whole = search.of_domain(data, 1, with_clicks=True)
    assert torch.equal(whole[CLICKS].edge_index, data[CLICKS].edge_index)
    assert torch.equal(whole[CLICKS].edge_label, part[CLICKS].edge_label)


@pytest.mark.parametrize('architecture', ['dnn', 'din', 'gat', 'hgt', 'lightgcn'])
def test_rows_do_not_read_each_other(search: ModuleType, architecture: str) -> None:
    data = SyntheticMarket(40, 20, 2_000, log=False)[0]
    loader = PathLoader(
        search.SPLIT(data)[0],
        widths={'user': [3, 1], 'item': [1, 3]},
        history=data,
        fixed=True,
    )
    torch.manual_seed(0)
    model = search.PathModel(data, architecture, 2).eval()
    with torch.inference_mode():
        whole, part = (model(loader.dataset[torch.arange(*rows)]) for rows in ((0, 30), (10, 20)))
    torch.testing.assert_close(part, whole[10:20])


def test_paths_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import srjgraph

    data = SyntheticMarket(60, 30, 3_000, log=False)[0]
    plain = srjgraph.PlainSampler(data, {'user': [4, 1], 'item': [1, 4]})
    rows = torch.arange(2_000, 2_050)
    node, precursor, time, query = plain.batch(data, rows)
    # The reference draws by the same rules: as many, and never a click at or after the target.
    loader = PathLoader(data, 50, widths={'user': [4, 1], 'item': [1, 4]}, history=data)
    batch = loader.dataset[rows]
    assert node.numel() == sum(batch[name].num_nodes for name in ('user', 'item'))
    start = (precursor < 0).cumsum(0)
    sample = (start - 1) // 2
    drawn = precursor >= 0
    assert (time[drawn] < data[CLICKS].edge_label_time[rows][sample[drawn]]).all()
    args = argparse.Namespace(batch_size=8, repeats=1, steps=1, threads=[torch.get_num_threads()])
    monkeypatch.setattr(srjgraph, 'WIDTHS', {'depth 3, as in the paper': srjgraph.PAPER})
    text = '\n'.join(srjgraph.run(args))
    assert (
        '| a plain loop over samples | ' in text and '| depth 3, as in the paper | 353 | ' in text
    )
