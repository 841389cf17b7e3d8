import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pytest
import torch
from torch import Tensor

from mag.datasets import EventLog, LogSchema
from mag.logits import as_logits, probabilities
from mag.pipeline import Pipeline
from mag.schema import CLICKS, SEES, categoricals
from mag.transforms import RecentNeighbors, TemporalSplit

MODELS = ('count_net', 'macgnn')
COLUMNS = {
    'user': 'uid', 'item': 'sku', 'time': 'ts', 'label': 'clicked', 'category': 'kind',
    'contexts': ['device'],
}  # fmt: skip
GROUPS = {'count_net': {'user': [4], 'item': ['category', 5]}, 'macgnn': {'user': 4, 'item': 5}}
# What is fitted, what comes with new users, items and names, and what comes of known ones alone.
ENDS = (1500, 2000, 2400, 2600)


class Files(NamedTuple):
    folder: Path
    old: Path
    new: Path
    same: Path
    later: Path
    all: Path


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp('shop')
    random = np.random.default_rng(0)
    number = ENDS[-1]
    user, item = random.integers(0, 60, number), random.integers(0, 40, number)
    time = np.arange(number)
    is_new = (time >= ENDS[0]) & (time < ENDS[1])
    is_last = time >= ENDS[2]
    user_name = [
        f'{"a" if new and u < 20 else "z" if last and u < 5 else "m"}{u}'
        for u, new, last in zip(user, is_new, is_last)
    ]
    item_name = [f'{"a" if new and i < 10 else "m"}{i}' for i, new in zip(item, is_new)]
    chance = np.where((user + item) % 3 == 0, 0.7, 0.2)
    columns = {
        'uid': user_name,
        'sku': item_name,
        'ts': time,
        'clicked': (random.random(number) < chance).astype(np.int64),
        'kind': [f'{"b" if name[0] == "a" else "k"}{i % 4}' for name, i in zip(item_name, item)],
        'device': [f'{"watch" if new and u % 7 == 0 else "phone"}' for u, new in zip(user, is_new)],
    }
    columns['device'][::2] = ['tablet'] * (number // 2)
    paths = []
    bounds = [(0, ENDS[0]), *zip(ENDS, ENDS[1:]), (0, ENDS[2])]
    with duckdb.connect() as connection:
        arrays = {name: np.array(value, dtype=object) for name, value in columns.items()}
        connection.register('log', arrays)
        for place, (start, end) in enumerate(bounds):
            paths.append(folder / f'{place}.csv')
            connection.execute(
                f"COPY (SELECT * FROM log WHERE ts >= {start} AND ts < {end}) TO '{paths[-1]}'"
            )
    return Files(folder, *paths)


def make(name: str) -> Pipeline:
    split = TemporalSplit(0.3, 0.7, 0.85, num_windows=3)
    return Pipeline(name, GROUPS[name], split, batch_size=128, max_epochs=2, embedding_dim=4)


@pytest.fixture(scope='module', params=MODELS)
def folder(request: Any, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""A pipeline that was fitted and saved."""
    folder = tmp_path_factory.mktemp('saved') / request.param
    make(request.param).fit(LogSchema(files.old, COLUMNS), progress=False).save(folder)
    return folder


def requests(pipeline: Pipeline, num_unknown: int = 1) -> Tensor:
    r"""The scores of all users, and one who is unknown, with all items, and one of these."""
    items = [*pipeline._known().raw('item'), *['nothing'] * num_unknown]
    users = [*pipeline._known().raw('user'), *['nobody'] * num_unknown]
    context = {'device': 'phone'}
    return torch.stack([pipeline.score(user, items, context=context) for user in users])


def test_scores_are_probabilities_of_raw_ids(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    context = {'device': 'phone'}
    scores = pipeline.score('m7', ['m3', 'm12', 'never seen'], context=context)
    assert scores.dtype == torch.float64 and scores.shape == (3,)
    assert bool(((scores > 0) & (scores < 1)).all())
    nobody = pipeline.score('nobody', ['m3', 'm12', 'never seen'], context=context)
    assert bool(nobody.isfinite().all()) and not torch.equal(nobody, scores)
    # A user for each item, and an order of their own.
    pairs = pipeline.score(['nobody', 'm7'], ['m12', 'm3'], context={'device': ['phone'] * 2})
    torch.testing.assert_close(pairs, torch.stack([nobody[1], scores[0]]))
    assert pipeline.metrics.keys() == {'validation', 'test'}
    assert 0 < pipeline.metrics['test']['logloss'] < 1


LOAD = """
import sys, torch
from mag.pipeline import Pipeline

folder, out = sys.argv[1:]
pipeline = Pipeline.load(folder)
log = pipeline._known()
users, items = [*log.raw('user'), 'nobody'], [*log.raw('item'), 'nothing']
torch.save(torch.stack([
    pipeline.score(user, items, context={'device': 'phone'}) for user in users
]), out)
"""


@pytest.mark.parametrize('name', MODELS)
def test_another_process_scores_to_the_last_bit_without_the_log(
    name: str, files: Files, tmp_path: Path, fork: Callable[..., Any]
) -> None:
    (tmp_path / 'raw').mkdir()
    raw = shutil.copy(files.old, tmp_path / 'raw')
    pipeline = make(name).fit(LogSchema(raw, COLUMNS), progress=False)
    pipeline.save(tmp_path / 'shop')
    shutil.rmtree(tmp_path / 'raw')
    shutil.move(tmp_path / 'shop', tmp_path / 'elsewhere')
    done = fork(LOAD, str(tmp_path / 'elsewhere'), str(tmp_path / 'scores.pt')).finish()
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / 'scores.pt', weights_only=True), requests(pipeline))
    # What was saved after it was loaded is the same, too, in a folder that is replaced.
    pipeline.update(files.new).save(tmp_path / 'elsewhere')
    again = Pipeline.load(tmp_path / 'elsewhere')
    assert torch.equal(requests(again), requests(pipeline))
    assert torch.equal(requests(again.update(files.same)), requests(pipeline.update(files.same)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['elsewhere', 'scores.pt']


def test_a_dataset_and_a_file_that_says_the_log_are_fitted_alike(
    folder: Path, files: Files, tmp_path: Path
) -> None:
    expected = requests(Pipeline.load(folder))
    schema = {'path': str(files.old), 'columns': COLUMNS}
    (tmp_path / 'log.json').write_text(json.dumps(schema))
    described = make(folder.name).fit(tmp_path / 'log.json', tmp_path / 'cache', progress=False)
    assert torch.equal(requests(described), expected)
    dataset = EventLog(tmp_path / 'cache', files.old, COLUMNS, log=False)
    fitted = make(folder.name).fit(dataset, progress=False)
    assert torch.equal(requests(fitted), expected)
    # Both know the columns of a later file.
    scores = [requests(pipeline.update(files.new)) for pipeline in (described, fitted)]
    assert torch.equal(*scores)


def rebuilt(pipeline: Pipeline, fitted: Pipeline, files: Files, folder: Path) -> Tensor:
    r"""The scores of :func:`requests` of known ids, of the whole log read anew: as of the last of
    three cutoffs, by what the transforms knew when they were fitted."""
    old = EventLog(folder / 'old', files.old, COLUMNS, log=False)
    part = EventLog(folder / 'all', files.all, COLUMNS, log=False, ids=old)[0]
    clicks, sees = part[CLICKS], part[SEES]
    sees.edge_index, sees.time = clicks.edge_label_index, clicks.edge_label_time
    sees.clicked, sees.device = clicks.edge_label, clicks.edge_label_device
    sees.num_device = clicks.num_device
    clicks.cutoff = torch.tensor(ENDS[:3])
    users, items = torch.arange(part['user'].num_nodes), torch.arange(part['item'].num_nodes)
    clicks.edge_label_index = torch.cartesian_prod(users, items).t()
    number = clicks.edge_label_index.size(1)
    clicks.edge_label, clicks.edge_label_time = torch.zeros(number), torch.full((number,), ENDS[2])
    clicks.edge_label_window = torch.full((number,), 2)
    phone = list(EventLog(folder / 'all', files.all, COLUMNS, log=False, ids=old).names['device'])
    clicks.edge_label_device = torch.full((number,), phone.index('phone'))
    part = fitted._coarsen(RecentNeighbors(20)(part))
    if fitted._counts is not None:
        part = fitted._counts(part)
    model = fitted._model
    model.grow(part)  # type: ignore[operator]
    found = []
    loader = fitted._recipe.loader(part, items.numel())
    with torch.inference_mode():
        for batch in loader:
            found.append(probabilities(as_logits('model', model(batch)))['click'])
    return torch.stack(found)


def test_updates_are_a_rebuild_from_the_whole_log(
    folder: Path, files: Files, tmp_path: Path
) -> None:
    pipeline, fitted = Pipeline.load(folder), Pipeline.load(folder)
    before = requests(pipeline)
    assert pipeline.update(files.new) is pipeline
    state = pipeline._state
    pipeline.update(files.same)
    # Nobody was new, and the counts moved with the events alone.
    assert pipeline._state is state
    scores = requests(pipeline)
    assert scores.shape[0] > before.shape[0] and scores.shape[1] > before.shape[1]
    assert not torch.equal(scores[:20, :20], before[:20, :20])
    expected = rebuilt(pipeline, fitted, files, tmp_path)
    assert torch.equal(requests(pipeline, 0), expected)
    maps = EventLog(tmp_path / 'all', files.all, COLUMNS, log=False, ids=tmp_path / 'old').id_maps
    found = pipeline._known().maps
    assert set(maps) == set(found)
    for name, ids in maps.items():
        assert ids.decode(range(len(ids))).tolist() == found[name].decode(range(len(ids))).tolist()


# MacGNN reads clicks alone.
@pytest.mark.parametrize('folder', ['count_net'], indirect=True)
def test_what_was_seen_in_vain_lowers_a_score(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    before = pipeline.score('m7', ['m3'], context={'device': 'phone'})
    events = {
        'uid': ['m7'] * 60, 'sku': ['m3'] * 60, 'ts': list(range(1500, 1560)),
        'clicked': [0] * 60, 'kind': ['k3'] * 60, 'device': ['phone'] * 60,
    }  # fmt: skip
    pd = pytest.importorskip('pandas')
    pipeline.update(pd.DataFrame(events))
    assert pipeline.score('m7', ['m3'], context={'device': 'phone'}) < before


def test_a_later_export_is_evaluated_on_what_is_new(folder: Path, files: Files) -> None:
    pipeline = Pipeline.load(folder)
    later = [files.new, files.same, files.later]
    metrics = pipeline.evaluate(LogSchema(list(map(str, later)), COLUMNS))
    whole = pipeline.evaluate(LogSchema([str(files.old), *map(str, later)], COLUMNS))
    assert metrics == whole and metrics.keys() == {'auc', 'gauc', 'logloss'}
    # Row by row, by raw ids.
    with duckdb.connect() as connection:
        rows = connection.execute(
            f"SELECT uid, sku, ts, device, clicked FROM read_csv('{files.new}') ORDER BY ts"
        ).fetchall()
    scores = torch.cat(
        [
            pipeline.score(user, [item], time, {'device': device})
            for user, item, time, device, _ in rows
        ]
    )
    label = torch.tensor([float(row[-1]) for row in rows])
    expected = torch.nn.functional.binary_cross_entropy(scores.double(), label.double())
    assert pipeline.evaluate(files.new)['logloss'] == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ValueError, match="^'log' must have rows from 1500 on, which .*\\.$"):
        pipeline.evaluate(files.old)


def test_damaged_cut_and_foreign_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    def damage(name: str, change: Callable[[Path], Any]) -> Path:
        copy = tmp_path / f'{len(list(tmp_path.iterdir()))}'
        shutil.copytree(folder, copy)
        change(copy / name)
        return copy

    def flip(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    names = {path.name for path in folder.iterdir()}
    assert names == {
        'manifest.json', 'log.safetensors', 'clusters.safetensors', 'model.safetensors',
        'ids_user.parquet', 'ids_item.parquet', 'ids_category.parquet', 'ids_device.parquet',
    }  # fmt: skip
    for name in sorted(names - {'manifest.json'}):
        for change, message in (
            (flip, 'it is not what was written'),
            (lambda path: path.write_bytes(path.read_bytes()[:-7]), 'it is not what was written'),
            (Path.unlink, 'it is missing'),
        ):
            message = f'is damaged, its {name} cannot be read: {message}'
            with pytest.raises(ValueError, match=f'{message}.*\\.$'):
                Pipeline.load(damage(name, change))

    def edit(**values: Any) -> Callable[[Path], Any]:
        return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    for change, message in (
        (lambda path: path.write_text(path.read_text()[:-9]), 'cannot be read: it is no JSON'),
        (edit(seed=5), 'is damaged, its manifest.json cannot be read: it is not what was written'),
        (edit(format='other'), 'is no saved pipeline: its manifest.json is that of another'),
        (edit(version=99), 'was saved in version 99 of the format'),
        (Path.unlink, 'is no saved pipeline: it has no manifest.json'),
    ):
        with pytest.raises(ValueError, match=f'{message}.*\\.$'):
            Pipeline.load(damage('manifest.json', change))
    with pytest.raises(FileNotFoundError, match='^There is no folder'):
        Pipeline.load(tmp_path / 'nowhere')


def test_a_save_that_fails_leaves_what_was_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline.load(folder)
    pipeline.save(tmp_path / 'shop')
    before = (tmp_path / 'shop/manifest.json').read_text()

    def fail(*_: Any) -> None:
        raise OSError('The disk is full.')

    monkeypatch.setattr('mag.pipeline.pipeline.write_manifest', fail)
    with pytest.raises(OSError, match='full'):
        pipeline.save(tmp_path / 'shop')
    assert [path.name for path in tmp_path.iterdir()] == ['shop']
    assert (tmp_path / 'shop/manifest.json').read_text() == before
    Pipeline.load(tmp_path / 'shop')
    monkeypatch.undo()
    (tmp_path / 'photos').mkdir()
    (tmp_path / 'photos/cat.png').write_text('cat')
    with pytest.raises(ValueError, match="must be empty or a saved pipeline of mag's"):
        pipeline.save(tmp_path / 'photos')


def test_bad_input_is_told(folder: Path, files: Files) -> None:
    with pytest.raises(ValueError, match="^'model' must be one of .*\\.$"):
        Pipeline('gcn')
    with pytest.raises(TypeError, match="^'split' must be a TemporalSplit, but got 3\\.$"):
        Pipeline('macgnn', split=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^'split' must cut at moments .*\\.$"):
        Pipeline('macgnn', split=TemporalSplit(by='user'))
    with pytest.raises(TypeError, match="^'form' must be a value that JSON has.*\\.$"):
        Pipeline('macgnn', form={1})
    with pytest.raises(RuntimeError, match='has not been fitted'):
        Pipeline('macgnn').score('ann', ['tea'])
    with pytest.raises(TypeError, match="^'log' must be a dataset, .* got int\\.$"):
        Pipeline('macgnn').fit(3)  # type: ignore[arg-type]
    pipeline = Pipeline.load(folder)
    context = {'device': 'phone'}
    with pytest.raises(ValueError, match="^A request of 2 items takes one 'user', or .*\\.$"):
        pipeline.score(['m1', 'm2', 'm3'], ['m1', 'm2'], context=context)
    with pytest.raises(ValueError, match="^'items' must be a list of ids.*\\.$"):
        pipeline.score('m1', [['m1'], ['m2']], context=context)
    with pytest.raises(ValueError, match="^'context' must tell .*, but told .'colour'.*\\.$"):
        pipeline.score('m1', ['m1'], context={'colour': 'red'})
    with pytest.raises(ValueError, match="^'time' must be .*\\.$"):
        pipeline.score('m1', ['m1'], time=3, context=context)
    scores = requests(pipeline)
    with pytest.raises(ValueError, match='^Events must not be earlier than the last .* at 1499'):
        pipeline.update(files.old)
    assert torch.equal(requests(pipeline), scores)
    assert categoricals(pipeline._known().graph()['item']) == {'category': 4}
