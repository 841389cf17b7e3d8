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

from mag.loader import HistoryBatch, HistoryLoader

CLICKS = ('user', 'clicks', 'item')
OTHERS = ['gru4rec', 'din', 'mmgcn']
pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


@pytest.fixture
def video(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    from accuracy import videos

    monkeypatch.setattr(videos, 'NUM_EXPOSURES', 6_000)
    monkeypatch.setattr(videos, 'EMBEDDING_DIM', 8)
    monkeypatch.setattr(videos, 'INTEREST_EPOCHS', 2)
    videos.load_with_interest.cache_clear()
    return videos


@pytest.fixture
def tiktok_root(tmp_path: Path) -> Path:
    r"""A folder as that of TikTok, of 20 users and 30 items."""
    rng = np.random.default_rng(0)
    raw = tmp_path / 'tiktok' / 'raw'
    raw.mkdir(parents=True)
    pairs = [divmod(pair, 30) for pair in rng.permutation(20 * 30)[:240].tolist()]
    splits = ['train'] * 200 + ['val'] * 20 + ['test'] * 20
    rows = [f'{user},{item},{split}' for (user, item), split in zip(pairs, splits, strict=True)]
    (raw / 'interactions.csv').write_text('\n'.join(['user,item,split', *rows]) + '\n')
    for name in ('image', 'audio'):
        np.save(raw / f'{name}_feat.npy', rng.standard_normal((30, 6)).astype(np.float32))
    return raw.parent


def test_runs_tables_and_goes_on(
    arguments: Callable[..., argparse.Namespace], video: ModuleType, tmp_path: Path
) -> None:
    args = arguments(
        'market',
        list(video.MODELS),
        root=str(tmp_path / 'tiktok'),
        batch_size=128,
        learning_rate=3e-3,
        weight_decay=1e-6,
    )
    video.run(args)
    path = Path(args.out)
    records = json.loads(path.read_text())
    names = [name for name in video.MODELS if name not in ('image', 'audio', 'slots_5', 'slots_20')]
    assert [record['model'] for record in records] == 2 * names
    # Labels are those from a half to 80 % of the log, to 90 % and to its end.
    assert all(record['rows'] == [1800, 600, 600] for record in records)
    values = {(run['model'], run['seed']): run['test']['logloss'] for run in records}
    # After two epochs no interest is above .65, so that both are of the favorite modality alone.
    assert all(values['favorite', seed] == values['threshold_65', seed] for seed in (0, 1))
    assert len(set(values.values())) == 2 * len(names) - 2

    text = '\n'.join(video.render(records))
    ours, theirs = ([values[name, seed] for seed in (0, 1)] for name in ('din', 'hyperctr'))
    difference = np.mean(ours) - np.mean(theirs)
    row = next(line for line in text.splitlines() if line.startswith('| DIN | '))
    assert f'| {difference:+.4f} (p = {ttest_rel(ours, theirs).pvalue:.2g}) | 2 |' in row
    assert text.count('| HyperCTR, slots of ') == 3

    # Given again, the command finds all done; one run less, it makes that again.
    path.write_text(json.dumps(records[:-1]))
    video.load_with_interest.cache_clear()
    video.run(args)
    assert json.loads(path.read_text())[-1]['test'] == records[-1]['test']


def test_runs_on_tiktok(
    arguments: Callable[..., argparse.Namespace],
    video: ModuleType,
    tmp_path: Path,
    tiktok_root: Path,
) -> None:
    args = arguments(
        'tiktok',
        ['image', 'visual', 'slots_5', 'mmgcn'],
        root=str(tmp_path / 'tiktok'),
        batch_size=128,
        learning_rate=3e-3,
        weight_decay=1e-6,
    )
    video.run(args)
    records = json.loads(Path(args.out).read_text())
    assert [record['model'] for record in records] == 2 * ['image', 'slots_5', 'mmgcn']
    # Two rows for each click, labelled from the fifth of ten slots and the third of five on.
    assert all(record['rows'] == [240, 40, 40] for record in records)
    # Caches are of the call that makes them.
    assert [path.name for path in tiktok_root.iterdir()] == ['raw']


def test_slots_of_tiktok_change_the_slots_alone(video: ModuleType, tiktok_root: Path) -> None:
    logs = {num: video.tiktok(str(tiktok_root), 1, num) for num in (5, 10, 20)}
    for num, log in logs.items():
        assert log.data[CLICKS].num_slots == num + 2
        assert log.parts[0][CLICKS].edge_index.size(1) == 80
        assert log.parts[0][CLICKS].edge_label.mean() == 0.5
        for part, same in zip(log.parts[1:], logs[10].parts[1:], strict=True):
            assert torch.equal(part[CLICKS].edge_label_index, same[CLICKS].edge_label_index)
            assert torch.equal(part[CLICKS].edge_label, same[CLICKS].edge_label)


def test_interests_are_learned_once_for_a_seed_and_length(
    arguments: Callable[..., argparse.Namespace],
    video: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    learn = video.UserInterest.fit
    monkeypatch.setattr(
        video.UserInterest,
        'fit',
        lambda self, *rest, **named: calls.append(self.seed) or learn(self, *rest, **named),
    )
    video.run(
        arguments(
            'market',
            ['hyperctr', 'visual', 'days_7', 'din'],
            root=str(tmp_path / 'tiktok'),
            batch_size=128,
            learning_rate=3e-3,
            weight_decay=1e-6,
        )
    )
    assert calls == [0, 0, 1, 1]


@pytest.mark.parametrize('name', ['hyperctr', *OTHERS])
def test_rows_do_not_read_each_other(video: ModuleType, name: str) -> None:
    data, parts = video.load_with_interest('market', '', 0, 4)
    data = video.InterestHypergraph()(data)
    loader = HistoryLoader(parts[0], length=6, history=data)
    torch.manual_seed(0)
    model = video.MODELS[name].build(data, parts[0]).eval()
    with torch.inference_mode():
        whole, part = (model(loader.dataset[torch.arange(*rows)]) for rows in ((0, 30), (10, 20)))
    # Some rows are of the same user and item.
    assert whole.unique().numel() > 20
    torch.testing.assert_close(part, whole[10:20])


@pytest.mark.parametrize('name', OTHERS)
def test_items_have_their_contents(video: ModuleType, name: str) -> None:
    r"""In every model an item is its id and the mean of the modalities that it has."""
    data, parts = video.load_with_interest('market', '', 0, 4)
    train = parts[0].clone()
    train['item'].x_text[3] = 0
    torch.manual_seed(0)
    model = video.MODELS[name].build(data, train)
    item = model.item
    x = [train['item'][f'x_{modality}'][3:5] for modality in ('visual', 'acoustic', 'text')]
    projected = [lin(value) for lin, value in zip(item.projections, x, strict=True)]
    expected = [(projected[0][0] + projected[1][0]) / 2, sum(value[1] for value in projected) / 3]
    torch.testing.assert_close(item()[3:5], item.id.weight[3:5] + torch.stack(expected))
    assert 0.005 < item.id.weight.std() < 0.015 and 0.005 < model.user.weight.std() < 0.015


def test_histories_are_aligned_and_paddings_are_not_read(video: ModuleType) -> None:
    from accuracy import history_models

    history = torch.tensor([[-1, -1, 4, 7], [-1, -1, -1, -1], [1, 2, 3, 0]])
    aligned, length = history_models.left_aligned(history)
    assert length.tolist() == [2, 0, 4]
    assert aligned.tolist() == [[4, 7, 0, 0], [0, 0, 0, 0], [1, 2, 3, 0]]

    data, parts = video.load_with_interest('market', '', 0, 4)
    user, item = torch.tensor([1, 2]), torch.tensor([3, 4])
    clicks = torch.tensor([[5, 6], [-1, -1]])
    padded = torch.cat([torch.full((2, 3), -1), clicks], dim=1)
    for name in ('gru4rec', 'din'):
        torch.manual_seed(0)
        model = video.MODELS[name].build(data, parts[0])
        short, long = (model(HistoryBatch(user, item, rows)) for rows in (clicks, padded))
        torch.testing.assert_close(short, long)
        swapped = model(HistoryBatch(user, item, clicks.flip(1)))
        # DIN does not see the order, and who has no clicks has none to swap.
        assert torch.allclose(short[0], swapped[0], rtol=0, atol=1e-7) == (name == 'din')
        assert torch.equal(short[1], swapped[1])
        read = model.read(torch.randn(2, 4, 8), torch.tensor([4, 0]), torch.randn(2, 8))
        assert read[0].abs().min() > 0 and not read[1].any()


def test_the_graph_of_mmgcn_ends_before_the_first_label(video: ModuleType) -> None:
    data, parts = video.market('', 0, 4)
    # With windows, clicks of a part go on beyond its first label.
    train = video.TemporalSplit(0.5, 0.8, 0.9, num_windows=3, keep_cold=True)(data)[0]
    first = train[CLICKS].edge_label_time.min()
    assert train[CLICKS].time.max() > first
    num_users = data['user'].num_nodes
    clicks = data[CLICKS]
    before = clicks.edge_index[:, clicks.time < train[CLICKS].cutoff.min()].t().tolist()
    expected = {(user, num_users + item) for user, item in before}
    for part in (train, parts[0]):
        edge_index = video.MODELS['mmgcn'].build(data, part).edge_index
        found = [(source, target) for source, target in edge_index.t().tolist()]
        assert len(found) == 2 * len(expected)
        assert set(found) == expected | {(item, user) for user, item in expected}
    assert clicks.time[clicks.time < train[CLICKS].cutoff.min()].max() < first


def test_mmgcn_propagates_modality_by_modality(video: ModuleType) -> None:
    r"""Three clicks, worked out by hand: user 0 has item 0, user 1 has items 0 and 1."""
    from accuracy import history_models

    data, parts = video.load_with_interest('market', '', 0, 4)
    part = parts[0].clone()
    part['user'].num_nodes, part['item'].num_nodes = 2, 2
    for name in ('x_visual', 'x_acoustic', 'x_text'):
        part['item'][name] = part['item'][name][:2]
    part[CLICKS].edge_index = torch.tensor([[0, 1, 1], [0, 0, 1]])
    part[CLICKS].time = torch.zeros(3, dtype=torch.long)
    torch.manual_seed(0)
    model = history_models.MMGCN(part, 4, num_layers=1)
    ids = torch.cat([model.user.weight, model.item.id.weight])
    mean = torch.tensor([[0, 0, 1, 0], [0, 0, 0.5, 0.5], [0.5, 0.5, 0, 0], [0, 1, 0, 0]])
    expected = torch.zeros(4, 4)
    for number, content in enumerate(model.item.contents()):
        layers = model.propagations[number]
        x = torch.cat([layers.preference.weight, content])
        hidden = layers.convs[0].lin_l(mean @ x) + layers.convs[0].lin_r(x)
        expected = expected + torch.nn.functional.leaky_relu(hidden) + ids
    torch.testing.assert_close(model.propagate(), expected)


def test_training_is_timed(video: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import hyperctr

    size = hyperctr.Size
    sizes = {
        'base': size(40, 5, 2),
        'twice the users': size(80, 5, 2),
        'hyperedges of 2': size(40, 2, 2),
        '1 modality': size(40, 5, 1),
    }
    monkeypatch.setattr(hyperctr, 'SIZES', sizes)
    benches = {name: hyperctr.make_bench(size, 64, 2) for name, size in sizes.items()}
    incidences = {name: bench.num_incidences for name, bench in benches.items()}
    assert incidences['twice the users'] > 1.5 * incidences['base']
    assert incidences['hyperedges of 2'] < incidences['base']
    assert incidences['1 modality'] < incidences['base']
    base = benches['base']
    assert base.subject.model.modalities == ('0', '1') and len(base.batches) == 2
    assert base.subject.model.convs.keys() == {'user', 'item'} and not base.without.model.convs

    args = argparse.Namespace(batch_size=64, repeats=1, steps=2, threads=[torch.get_num_threads()])
    rows = [line for line in hyperctr.run(args) if line.startswith('| ')][2:]
    cells = {row.split(' | ')[0][2:]: row.strip('| ').split(' | ')[1:] for row in rows}
    assert cells.keys() == sizes.keys()
    for name, (users, found, *_, memory, less) in cells.items():
        assert users == f'{sizes[name].num_users}' and found == f'{incidences[name]:,}'
        # The hypergraphs are part of the step that has them.
        assert float(memory) > float(less) > 0


def test_differences_need_two_seeds_at_which_both_have_a_value(video: ModuleType) -> None:
    from accuracy.harness import difference_to

    values = {('a', 0): 1.0, ('a', 1): 2.0, ('a', 2): 4.0, ('b', 0): 0.0, ('b', 1): None}
    runs = [{'model': name, 'seed': seed, 'value': x} for (name, seed), x in values.items()]
    assert difference_to('b', runs, 'a', lambda run: run['value']) == ''
    runs.append({'model': 'b', 'seed': 2, 'value': 1.5})
    expected = f'+1.7500 (p = {ttest_rel([1.0, 4.0], [0.0, 1.5]).pvalue:.2g})'
    assert difference_to('b', runs, 'a', lambda run: run['value']) == expected
    assert difference_to('a', runs, 'a', lambda run: run['value']) == ''
