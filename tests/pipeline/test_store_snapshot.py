from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mag.datasets import LogSchema
from mag.online import Replica, Scorer, Snapshot, SqliteStream
from mag.pipeline import Pipeline
from mag.pipeline.serving import SnapshotLoader, write_served
from mag.store import BuildPlan, build
from mag.transforms import TemporalSplit

COLUMNS = {
    'user': 'who', 'item': 'sku', 'time': 'at', 'label': 'clicked', 'category': 'kind',
    'user_attributes': ['country'], 'contexts': ['device'],
}  # fmt: skip
TOLD = {'user': 'country', 'item': 'category'}
LEARNED = {'user': 6, 'item': ['category', 5]}
CONTEXT = {'macgnn': {}, 'count_net': {'device': 'phone'}}

pytestmark = [
    pytest.mark.filterwarnings('ignore:TemporalSplit leaves out'),
    pytest.mark.filterwarnings('ignore:.* rows repeat another row'),
]


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""A log, whose last users come late, and never click, and stores of it."""
    folder, number = tmp_path_factory.mktemp('files'), 1500
    random = np.random.default_rng(0)
    who = random.integers(0, np.where(np.arange(number) < 1200, 40, 50))
    sku = random.integers(0, 30, number)
    clicked = random.random(number) < 0.2 + 0.5 * (who % 3 == sku % 3)
    table = pa.table(
        {
            'who': [f'u{user}' for user in who],
            'sku': sku * 3,
            'at': 1000 + np.arange(number) // 2,
            'clicked': (clicked & (who < 46)).astype(int),
            'kind': [f'kind {of % 5}' if of % 7 else None for of in sku],
            'country': who % 6,
            'device': random.choice(np.array(['phone', 'tablet', None]), number),
        }
    )
    pq.write_table(table, folder / 'log.parquet', row_group_size=200)
    for name, groups in (('told', TOLD), ('learned', LEARNED)):
        schema = LogSchema(str(folder / 'log.parquet'), COLUMNS)
        plan = BuildPlan(
            schema, folder / name, groups, memory_limit='1GiB', threads=1, num_windows=3
        )
        build(plan, progress=False)
    return folder


def fit(model: str, log: Any, **arguments: Any) -> Pipeline:
    arguments = {'batch_size': 512, 'max_epochs': 1, 'embedding_dim': 4, **arguments}
    return Pipeline(model, **arguments).fit(log, progress=False)


def arrays_of(snapshot: Snapshot) -> dict[str, bytes]:
    r"""What the snapshot holds but for weights, as bytes."""
    names = sorted(path.name for path in Path(snapshot.path).glob('*.npy'))
    return {name: (Path(snapshot.path) / name).read_bytes() for name in names}


@pytest.mark.parametrize('model', ['macgnn', 'count_net'])
def test_a_store_gives_the_arrays_of_the_log_in_memory(
    model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = LogSchema(str(folder / 'log.parquet'), COLUMNS)
    held = fit(model, schema, split=TemporalSplit(num_windows=3), groups=TOLD)
    expected = Snapshot.open(held.snapshot(tmp_path / 'held'))
    # Pieces that end within row groups.
    monkeypatch.setattr('mag.pipeline.store_snapshot.PIECE', 70)
    stored = fit(model, folder / 'told')
    found = Snapshot.open(stored.snapshot(tmp_path / 'stored')).verify()
    assert arrays_of(found) == arrays_of(expected) and len(arrays_of(found)) > 8
    assert expected.shares_without_cluster and not found.shares_without_cluster
    for name in (
        'position',
        'log_checksum',
        'time',
        'resolutions',
        'num_clusters',
        'hops',
        'contexts',
    ):
        assert found.manifest[name] == expected.manifest[name], name
    assert set(found.id_maps) == set(expected.id_maps)
    for name, ids in found.id_maps.items():
        assert ids.lineage == expected.id_maps[name].lineage, name
    pieces = [*stored.event_pieces()]
    assert max(map(len, pieces)) <= 70
    assert np.array_equal(np.concatenate(pieces), held.events())
    assert np.array_equal(np.concatenate([*held.event_pieces()]), held.events())
    with pytest.raises(ValueError, match='read them in pieces, by event_pieces'):
        stored.events()


@pytest.mark.parametrize('model', ['macgnn', 'count_net'])
def test_learned_clusters_count_all_events_and_scores_are_those_of_the_store(
    model: str, folder: Path, tmp_path: Path
) -> None:
    pipeline = fit(model, folder / 'learned')
    path = write_served(pipeline, tmp_path / 'snapshots')
    load = SnapshotLoader(str(tmp_path / 'snapshots'), str(tmp_path / 'events.db'))
    ranker = load(Path(path).name, fill=True)
    ranker.close()
    with pytest.raises(ValueError, match='cannot be read by a pipeline of a store: build a store'):
        write_served(pipeline, tmp_path / 'snapshots', str(tmp_path / 'events.db'))
    snapshot = Snapshot.open(path)
    with SqliteStream(tmp_path / 'events.db') as stream:
        assert stream.end == snapshot.position == 1500
        scorer = Scorer(snapshot, Replica(snapshot, stream), pipeline.model)
        items = [*snapshot.id_maps['item'].decode(range(30)), 1]
        has_cluster = snapshot.clusters['user'][0] >= 0
        assert 0 < (~has_cluster).sum() < 10
        # Most were clicked before they had a cluster; the last have none, and one is unknown.
        for user in [*snapshot.id_maps['user'].decode(np.arange(50)), 'nobody']:
            asked = user, items
            found = scorer.score(*asked, CONTEXT[model]).probabilities['click']
            expected = pipeline.score(*asked, context=CONTEXT[model])
            # MacGNN reads tables of items, which add up in another order.
            assert torch.allclose(found, expected, rtol=0, atol=1e-6 if model == 'macgnn' else 0)
