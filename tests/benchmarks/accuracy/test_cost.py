import json
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None or find_spec('lightgbm') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


def record(model: str, auc: float, purpose: str = 'run') -> dict[str, object]:
    found = {'dataset': 'kuairand', 'protocol': 'rolling', 'model': model, 'purpose': purpose}
    return {**found, 'test': {'auc': auc}}


def test_points_are_means_over_seeds() -> None:
    from accuracy.cost import Point, points

    records = [
        record('count_net', 0.71),
        record('count_net', 0.73),
        record('macgnn', 0.69),
        record('macgnn', 0.99, 'tune'),
        # An ablation is no model of the figure, and this one was not timed.
        record('no_ids', 0.72),
        record('din', 0.7),
    ]
    speed = {'batch_size': 1000, 'score': {'count_net': 2.0, 'macgnn': 6.0, 'no_ids': 1.0}}
    found = points(records, 'kuairand', speed)
    assert found == [Point('count_net', 2.0, pytest.approx(0.72)), Point('macgnn', 6.0, 0.69)]


def test_draws(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    from accuracy.cost import main

    names = {'count_net': 2.0, 'macgnn': 6.0, 'macgnn_counts': 7.0}
    (tmp_path / 'runs.json').write_text(json.dumps([record(name, 0.7) for name in names]))
    (tmp_path / 'speed.json').write_text(json.dumps({'batch_size': 1000, 'score': names}))
    files = [str(tmp_path / name) for name in ('runs.json', 'speed.json', 'figure.png')]
    main([files[0], '--speed', files[1], '--figure', files[2]])
    assert Path(files[2]).read_bytes().startswith(b'\x89PNG')
    (tmp_path / 'speed.json').write_text(json.dumps({'batch_size': 1000, 'score': {}}))
    with pytest.raises(ValueError, match=r'No model of \[.*runs.json.* was timed in .*speed.json'):
        main([files[0], '--speed', files[1], '--figure', files[2]])
