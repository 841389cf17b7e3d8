import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

pytestmark = pytest.mark.skipif(
    not all(find_spec(name) for name in ('deepctr_torch', 'lightgbm', 'tokenizers')),
    reason="the benchmark needs 'pip install pyg-mag[benchmarks,text]'",
)
CLICKS = ('user', 'clicks', 'item')


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, small_groups: None) -> None:
    r"""Lets FLIP run on the small log of MovieLens: few trials, and one epoch before."""
    from accuracy import flip, flip_training

    monkeypatch.setattr(flip, 'LEARNING_RATE', 1e-2)
    monkeypatch.setattr(flip_training, 'EPOCHS', 1)
    monkeypatch.setattr(flip_training, 'CHANNELS', 8)


def test_pre_trains_once_runs_and_tables(
    root: Path, small: None, arguments: Callable[..., argparse.Namespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from accuracy import flip, flip_training

    models = ['dcn_v2', 'flip', 'scratch', 'no_masked_id', 'ids', 'sample_gate']
    args = arguments('movielens-1m', models, batch_size=1024, jobs=1)
    trained: list[Path] = []
    fit = flip_training.fit

    def count(*others: Any, directory: Path, **more: Any) -> Any:
        trained.append(directory)
        return fit(*others, directory=directory, **more)

    monkeypatch.setattr(flip_training, 'fit', count)
    flip.run(args)
    records: list[dict[str, Any]] = json.loads(Path(args.out).read_text())
    runs = [record for record in records if record['purpose'] == 'run']
    # Where all take one rate, nothing is tried.
    assert len(runs) == len(records) == 2 * len(models)
    # One set of weights for each seed and set of losses.
    assert len({path.name for path in trained}) == 2 * 2
    before = {record['model']: record['pretraining'] for record in runs}
    assert before['scratch'] == before['dcn_v2'] == {}
    assert before['flip'] == before['ids'] and before['flip']['epochs'] == 1
    values = {record['model']: record['test']['logloss'] for record in runs if record['seed'] == 0}
    assert len(set(values.values())) == len(models)
    for record in runs:
        assert record['groups']['all'] == sum(
            number for name, number in record['groups'].items() if name != 'all'
        )

    text = '\n'.join(flip.render(records))
    assert '- That pre-training helps FLIP ' in text and '| w/o masked ids | ' in text
    found = [run for run in runs if run['model'] == 'flip']
    cold = sum(run['test']['items']['0']['auc'] for run in found) / 2
    row = text.split('## Items by their training rows')[1].split('| FLIP | ')[1].split(' | ')
    assert row[2].startswith(f'{cold:.4f} ± ')
    assert 'Pre-training took 1.0 epochs' in text
    flip.run(args)
    assert json.loads(Path(args.out).read_text()) == records


def test_hidden_items_have_a_few_rows_or_none(root: Path, small: None, tmp_path: Path) -> None:
    from accuracy import flip
    from accuracy.count_data import make_parts

    parts = make_parts('movielens-1m', 'cold', str(root))
    hidden = flip.with_cold_items(parts, 3)

    def numbers(data: HeteroData) -> list[int]:
        return data[CLICKS].edge_label_index[1].bincount(minlength=30).tolist()

    before, after, val = numbers(parts.train), numbers(hidden.train), numbers(hidden.val)
    kinds = {'none': 0, 'few': 0, 'all': 0}
    for item, number in enumerate(after):
        kind = 'all' if number == before[item] else 'few' if number else 'none'
        kinds[kind] += 1
        assert number <= 5 or kind == 'all'
        assert kind == 'all' or val[item] == 0
    assert kinds['none'] > 0 and kinds['few'] > 0 and kinds['all'] > 15
    # Nothing of whom nobody has seen, in history either; the test part is as it was.
    for edge_type in (CLICKS, ('user', 'sees', 'item')):
        seen = hidden.train[edge_type].edge_index[1].bincount(minlength=30)
        assert all(int(seen[item]) == 0 for item, number in enumerate(after) if number == 0)
    assert numbers(hidden.test) == numbers(parts.test)
    groups = flip.groups_of(hidden.train, hidden.test)
    item = hidden.test[CLICKS].edge_label_index[1].tolist()
    assert groups['0'].tolist() == [after[one] == 0 for one in item]
    assert groups['1 to 5'].tolist() == [0 < after[one] <= 5 for one in item]
    others = flip.with_cold_items(parts, 4)
    assert numbers(others.train) != after
    assert numbers(flip.with_cold_items(parts, 3).train) == after


def test_places_among_equals_are_a_random_order() -> None:
    from accuracy.flip import place_among_equals

    value = torch.tensor([5, 2, 5, 5, 0, 2])
    orders = set()
    for seed in range(100):
        place = place_among_equals(value, torch.Generator().manual_seed(seed)).tolist()
        assert sorted(place[i] for i in (0, 2, 3)) == [0, 1, 2]
        assert sorted(place[i] for i in (1, 5)) == [0, 1] and place[4] == 0
        orders.add(tuple(place))
    assert len(orders) == 12
