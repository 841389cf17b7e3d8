import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mag.loader import ExposureLoader, HistoryLoader, JoinedLoader
from mag.schema import CLICKS, SEES

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


def test_one_user_has_the_history() -> None:
    from speed import history_length

    part = history_length.make_part(70, history_length.Sizes(users=20, items=90, clicks=5))
    num_clicks = part[CLICKS].edge_index[0].bincount(minlength=20).tolist()
    assert num_clicks == [70] + [5] * 19
    assert part[SEES].clicked.sum() == sum(num_clicks) == part[SEES].clicked.numel() / 2
    assert (part[CLICKS].time < part[CLICKS].cutoff).all()


def test_sim_finds_the_same_once_a_category() -> None:
    from accuracy.long_history_models import SIM
    from speed import history_length

    sizes = history_length.Sizes(users=20, items=90, clicks=5)
    part = history_length.make_part(300, sizes)
    # Few, so that a search finds more than it keeps.
    part['item'].category %= 6
    items = torch.randint(90, (40,))
    now = int(part[CLICKS].cutoff)
    loader = JoinedLoader([ExposureLoader(part), HistoryLoader(part, length=300)])
    batch = loader.request(history_length.USER, items, time=now)
    models = [SIM(part, False), history_length.RequestSIM(part, False)]
    models.append(history_length.KeptSIM(part, batch.histories.history[:1]))
    found = [model.search(items, batch.histories.history) for model in models]
    assert found[1].equal(found[0]) and found[2].equal(found[0])
    assert (found[0] >= 0).any() and (found[0][:, 0] >= 0).any()
    for model in models[1:]:
        model.load_state_dict(models[0].state_dict())
    with torch.no_grad():
        scores = [model.eval()(batch) for model in models]
    torch.testing.assert_close(scores[1], scores[0])
    torch.testing.assert_close(scores[2], scores[0])


def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import history_length

    sizes = history_length.Sizes(users=20, items=90, clicks=5)
    items = torch.randint(90, (13,))

    def score() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            answers = history_length.make_answers(25, sizes)
            return {name: act(items) for name, act in answers.items()}

    whole = score()
    assert list(whole) == list(history_length.TITLES)
    monkeypatch.setattr(history_length, 'MAX_PAIRS', 60)
    for name, found in score().items():
        torch.testing.assert_close(found, whole[name], msg=name)
    torch.testing.assert_close(whole['lightgcn_propagated'].shape, whole['lightgcn'].shape)


def test_the_claim_is_of_each_length() -> None:
    from speed import history_length

    times = {name: [1.0, 2.0, 3.0] for name in history_length.TITLES}
    short = {**times, 'sim': [0.5, 1.0, 1.5], 'lightgcn': [0.1, 0.2, 0.3]}
    del short['graph_transformer']
    long = {
        **times,
        'sim': [2.0, 4.0, 6.0],
        'graph_transformer': [10.0],
        'macgnn': [1.1, 2.1, 3.1],
        'lightgcn': [1.0] * 3,
    }
    lines = list(history_length.claims({100: {10: short, 1000: long}}))
    assert '21% faster than SIM holds at 1,000 clicks, for 100 candidates' in lines[0]
    assert 'differs by +100% at 10, -48% at 1,000.' in lines[0]
    assert 'faster than SIM, kept by category holds at no length' in lines[1]
    assert 'faster than LightGCN holds at no length' in lines[2]
    # Measured once, and not at all lengths.
    assert (
        'than graph transformer holds at 1,000 clicks' in lines[4] and '-79% at 1,000' in lines[4]
    )
    assert lines[5].startswith('That CountNet is 21% faster than SIM holds at 1,000 clicks')
    assert 'of MacGNN does not grow with the history holds' in lines[10] and '+5%' in lines[10]
    assert 'of CountNet does not grow with the history holds' in lines[11] and '+0%' in lines[11]


def test_all_take_turns(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    from speed import history_length

    files = {name: tmp_path / f'found.{name}' for name in ('md', 'json', 'png')}
    args = [
        '--lengths', '10', '40', '--candidates', '5', '--repeats', '3', '--limit', '100',
        '--markdown', str(files['md']),
        '--json', str(files['json']), '--figure', str(files['png']),
    ]  # fmt: skip
    sizes = history_length.Sizes(users=20, items=90, clicks=5)
    history_length.main(args, sizes)
    records = json.loads(files['json'].read_text())
    assert len(records) == 2 * len(history_length.TITLES)
    assert all(len(record['milliseconds']) == 3 for record in records)
    lines = files['md'].read_text().splitlines()
    (row,) = [line.split(' | ') for line in lines if line.startswith('| MacGNN | ')]
    assert row[1].endswith('(1.00)') and row[2].endswith('(1.00) |')
    assert files['png'].read_bytes().startswith(b'\x89PNG')

    # What is slow is measured once, and then no more.
    history_length.main([*args, '--limit', '0', '--figure', str(files['png'])], sizes)
    records = json.loads(files['json'].read_text())
    later = {record['model'] for record in records if record['clicks'] == 40}
    assert later == set(history_length.ALWAYS)
    assert {len(record['milliseconds']) for record in records} == {1, 3}
