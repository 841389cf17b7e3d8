import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import duckdb
import numpy as np
import pytest
import torch
from torch import Tensor

from mag.datasets import EventLog, LogSchema
from mag.logits import as_logits, probabilities
from mag.pipeline import Pipeline
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.count_net import CountNetRecipe
from mag.pipeline.recipes.macro_recipe import MacroRecipe
from mag.schema import CLICKS, SEES, categoricals
from mag.transforms import SampleNegatives, TemporalSplit

COLUMNS = {
    'user': 'uid', 'item': 'sku', 'time': 'ts', 'label': 'clicked', 'category': 'kind',
    'conversion': 'bought', 'behaviors': ['in_cart', 'wished'], 'query': 'search',
    'contexts': ['device'], 'features': ['price'],
}  # fmt: skip
ITEMS = {
    'id': 'sku', 'attributes': ['tags'], 'modalities': ['image'],
    'separators': {'tags': '|', 'image': ' '},
}  # fmt: skip
CONTEXT = {'device': 'phone', 'query': 'green tea', 'price': 0.5}
ARGUMENTS: dict[str, dict[str, Any]] = {
    'count_net': {'groups': {'user': [4], 'item': ['category', 5]}, 'embedding_dim': 4},
    'macgnn': {'groups': {'user': 4, 'item': 5}, 'embedding_dim': 4},
    'gmcm': {'tower_channels': [16, 8]},
    'srjgraph': {'widths': {'user': [3, 1], 'item': [1, 3]}, 'id_dim': 4},
    'hyperctr': {'granularity': 150, 'embedding_dim': 8},
    'simcen': {'hidden_channels': [24, 24], 'num_buckets': 4},
}
MODELS = tuple(ARGUMENTS)
# What is fitted, what comes with new users, items and names, and what comes of known ones alone.
ENDS = (1500, 2000, 2400, 2600)


class Files(NamedTuple):
    folder: Path
    old: Path
    new: Path
    same: Path
    later: Path
    all: Path

    def log(self, *names: str) -> LogSchema:
        r"""What is in some of the files, and what is known of all items."""
        items = {'path': str(self.folder / 'items.csv'), 'columns': ITEMS}
        return LogSchema([str(getattr(self, name)) for name in names], COLUMNS, items=items)


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
    clicked = random.random(number) < chance
    words = np.array(['green tea', 'rice', 'black tea', '', ''])
    columns = {
        'uid': user_name,
        'sku': item_name,
        'ts': time,
        'clicked': clicked.astype(np.int64),
        'kind': [f'{"b" if name[0] == "a" else "k"}{i % 4}' for name, i in zip(item_name, item)],
        'device': [f'{"watch" if new and u % 7 == 0 else "phone"}' for u, new in zip(user, is_new)],
    }
    columns['device'][::2] = ['tablet'] * (number // 2)
    for name, share in (('bought', 0.3), ('in_cart', 0.6), ('wished', 0.4)):
        columns[name] = (clicked & (random.random(number) < share)).astype(np.int64)
    columns['price'] = random.random(number).round(3)
    # With a word that is new.
    columns['search'] = np.where(is_new & (item == 3), 'mate tea', random.choice(words, number))
    image = [' '.join(map(str, row)) for row in random.normal(size=(80, 3)).round(3)]
    items = {
        'sku': [f'{"ma"[i // 40]}{i % 40}' for i in range(80)],
        'tags': [('red|new', 'new', '', 'old|red')[i % 4] for i in range(80)],
        'image': image,
    }
    paths = []
    bounds = [(0, ENDS[0]), *zip(ENDS, ENDS[1:]), (0, ENDS[2])]
    with duckdb.connect() as connection:
        arrays = {name: np.array(value, dtype=object) for name, value in columns.items()}
        connection.register('log', arrays)
        connection.register('items', {k: np.array(v, dtype=object) for k, v in items.items()})
        connection.execute(f"COPY items TO '{folder / 'items.csv'}'")
        for place, (start, end) in enumerate(bounds):
            paths.append(folder / f'{place}.csv')
            connection.execute(
                f"COPY (SELECT * FROM log WHERE ts >= {start} AND ts < {end}) TO '{paths[-1]}'"
            )
    return Files(folder, *paths)


def make(name: str) -> Pipeline:
    windows = 3 if name in ('count_net', 'macgnn') else 1
    split = TemporalSplit(0.3, 0.7, 0.85, num_windows=windows, keep_cold=windows == 1)
    return Pipeline(name, split, batch_size=128, max_epochs=2, **ARGUMENTS[name])


@pytest.fixture(scope='module', params=MODELS)
def folder(request: Any, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""A pipeline that was fitted and saved."""
    folder = tmp_path_factory.mktemp('saved') / request.param
    make(request.param).fit(files.log('old'), progress=False).save(folder)
    return folder


def some(users: Any) -> Any:
    r"""The users of :func:`requests`: whoever came last is among them."""
    return np.concatenate([users[::3], users[-2:]])


def requests(pipeline: Pipeline, num_unknown: int = 1) -> Tensor:
    r"""The scores of every third user, the last ones, and one who is unknown, with all items, and
    one of these."""
    items = [*pipeline._known().raw('item'), *['nothing'] * num_unknown]
    users = [*some(pipeline._known().raw('user')), *['nobody'] * num_unknown]
    return torch.stack([pipeline.score(user, items, context=CONTEXT) for user in users])


def test_scores_are_probabilities_of_raw_ids(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    scores = pipeline.score('m7', ['m3', 'm12', 'never seen'], context=CONTEXT)
    assert scores.dtype == torch.float64 and scores.shape == (3,)
    assert bool(((scores > 0) & (scores < 1)).all())
    nobody = pipeline.score('nobody', ['m3', 'm12', 'never seen'], context=CONTEXT)
    assert bool(nobody.isfinite().all()) and not torch.equal(nobody, scores)
    # A user for each item, and an order of their own.
    each = {name: [value] * 2 for name, value in CONTEXT.items()}
    pairs = pipeline.score(['nobody', 'm7'], ['m12', 'm3'], context=each)
    torch.testing.assert_close(pairs, torch.stack([nobody[1], scores[0]]))
    assert pipeline.metrics.keys() == {'validation', 'test'}
    assert 0 < pipeline.metrics['test']['logloss'] < 1


LOAD = """
import json, sys, torch
from mag.pipeline import Pipeline
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes.count_net import CountNetRecipe
from mag.pipeline.recipes.macro_recipe import MacroRecipe

folder, out, context = sys.argv[1:]
context = json.loads(context)
pipeline = Pipeline.load(folder)
log = pipeline._known()
known = log.raw('user')
users, items = [*known[::3], *known[-2:], 'nobody'], [*log.raw('item'), 'nothing']
torch.save(torch.stack([
    pipeline.score(user, items, context=context) for user in users
]), out)
"""


@pytest.mark.parametrize('name', MODELS)
def test_another_process_scores_to_the_last_bit_without_the_log(
    name: str, files: Files, tmp_path: Path, fork: Callable[..., Any]
) -> None:
    (tmp_path / 'raw').mkdir()
    for path in (files.old, files.folder / 'items.csv'):
        shutil.copy(path, tmp_path / 'raw')
    raw = files._replace(folder=tmp_path / 'raw', old=tmp_path / 'raw' / files.old.name)
    pipeline = make(name).fit(raw.log('old'), progress=False)
    pipeline.save(tmp_path / 'shop')
    shutil.rmtree(tmp_path / 'raw')
    shutil.move(tmp_path / 'shop', tmp_path / 'elsewhere')
    paths = str(tmp_path / 'elsewhere'), str(tmp_path / 'scores.pt')
    done = fork(LOAD, *paths, json.dumps(CONTEXT)).finish()
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / 'scores.pt', weights_only=True), requests(pipeline))
    # What was saved after it was loaded is the same, too, in a folder that is replaced.
    pipeline.update(files.log('new')).save(tmp_path / 'elsewhere')
    again = Pipeline.load(tmp_path / 'elsewhere')
    assert torch.equal(requests(again), requests(pipeline))
    assert torch.equal(requests(again.update(files.same)), requests(pipeline.update(files.same)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['elsewhere', 'scores.pt']


@pytest.mark.parametrize('folder', ['count_net', 'srjgraph'], indirect=True)
def test_an_exported_program_scores_what_the_pipeline_scores(folder: Path, tmp_path: Path) -> None:
    pipeline, path = Pipeline.load(folder), tmp_path / 'model.pt2'
    if folder.name == 'srjgraph':
        with pytest.raises(TypeError, match='^SRJGraph reads a HeteroData, which .*\\.$'):
            pipeline.export(path)
        with pytest.raises(TypeError, match='^SRJGraph reads a HeteroData'):
            pipeline.save(tmp_path / 'shop', program=True)
        assert list(tmp_path.iterdir()) == []
        return
    pipeline.save(tmp_path / 'shop', program=True)
    path = tmp_path / 'shop' / 'model.pt2'
    pipeline = Pipeline.load(tmp_path / 'shop')
    exported = torch.export.load(path)
    assert exported.example_inputs is None
    program = exported.module(check_guards=False)
    request = 'm7', ['m3', 'm12', 'm4', 'never seen'], None, CONTEXT
    scores = program(pipeline.batch(*request)).double().sigmoid()
    torch.testing.assert_close(scores, pipeline.score(*request))


# Of all recipes it is the same code.
@pytest.mark.parametrize('folder', ['gmcm'], indirect=True)
def test_a_dataset_and_a_file_that_says_the_log_are_fitted_alike(
    folder: Path, files: Files, tmp_path: Path
) -> None:
    expected = requests(Pipeline.load(folder))
    schema = {'path': str(files.old), 'columns': COLUMNS, 'items': files.log('old').items}
    (tmp_path / 'log.json').write_text(json.dumps(schema))
    described = make(folder.name).fit(tmp_path / 'log.json', tmp_path / 'cache', progress=False)
    assert torch.equal(requests(described), expected)
    dataset = EventLog(tmp_path / 'cache', LogSchema.load(tmp_path / 'log.json'), log=False)
    fitted = make(folder.name).fit(dataset, progress=False)
    assert torch.equal(requests(fitted), expected)
    # Both know the columns of a later file.
    scores = [requests(pipeline.update(files.new)) for pipeline in (described, fitted)]
    assert torch.equal(*scores)


def rebuilt(pipeline: Pipeline, files: Files, folder: Path) -> Tensor:
    r"""The scores of :func:`requests` of known ids by a pipeline that knows no later event, of the
    whole log read anew: by what its transforms knew when they were fitted."""
    old = EventLog(folder / 'old', files.log('old'), log=False)
    whole = EventLog(folder / 'all', files.log('all'), log=False, ids=old)
    log = RawLog.of(whole, pipeline._recipe.reads)
    pipeline._served = pipeline._recipe.serve(log)
    pipeline._model.grow(pipeline._served.source)  # type: ignore[operator]
    pipeline._log = log
    return requests(pipeline, 0)


def rebuilt_in_windows(pipeline: Pipeline, files: Files, folder: Path) -> Tensor:
    r"""The same of a model of the macro graph: as of the last of three cutoffs."""
    old = EventLog(folder / 'old', files.log('old'), log=False)
    dataset = EventLog(folder / 'all', files.log('all'), log=False, ids=old)
    part, recipe = dataset[0], cast(MacroRecipe, pipeline._recipe)
    clicks, sees = part[CLICKS], part[SEES]
    sees.edge_index, sees.time = clicks.edge_label_index, clicks.edge_label_time
    sees.clicked = clicks.edge_label
    clicks.cutoff = torch.tensor(ENDS[:3])
    users = torch.from_numpy(some(np.arange(part['user'].num_nodes)))
    items = torch.arange(part['item'].num_nodes)
    clicks.edge_label_index = torch.cartesian_prod(users, items).t()
    number = clicks.edge_label_index.size(1)
    names = {name: list(dataset.names[name]) for name in ('device', 'query')}
    green, tea = (names['query'].index(word) for word in ('green', 'tea'))
    asked = {
        'device': torch.full((number,), names['device'].index('phone')),
        'query': torch.tensor([[green, tea]]).expand(number, 2),
        'domain': torch.ones(number, dtype=torch.long),
    }
    for name, value in asked.items():
        sees[name], sees[f'num_{name}'] = clicks[f'edge_label_{name}'], clicks[f'num_{name}']
        clicks[f'edge_label_{name}'] = value
    del clicks.edge_label_x, clicks.edge_label_behavior, clicks.edge_label_conversion
    clicks.edge_label, clicks.edge_label_time = torch.zeros(number), torch.full((number,), ENDS[2])
    clicks.edge_label_window = torch.full((number,), 2)
    part = recipe.coarsen(recipe.tell(part))
    if isinstance(recipe, CountNetRecipe):
        part = recipe.counts(part)
    model = pipeline._model
    model.grow(part)  # type: ignore[operator]
    found = []
    with torch.inference_mode():
        for batch in recipe.loader(part, part, batch_size=items.numel()):
            found.append(probabilities(as_logits('model', model(batch)))['click'])
    return torch.stack(found)


def test_updates_are_a_rebuild_from_the_whole_log(
    folder: Path, files: Files, tmp_path: Path
) -> None:
    pipeline = Pipeline.load(folder)
    before, num_users = requests(pipeline), len(pipeline._known().maps['user'])
    assert pipeline.update(files.log('new')) is pipeline
    served = pipeline._served
    pipeline.update(files.log('same'))
    # Nobody was new, and the counts moved with the events alone.
    assert (pipeline._served is served) == (folder.name in ('count_net', 'macgnn'))
    scores = requests(pipeline)
    assert len(pipeline._known().maps['user']) > num_users and scores.shape[1] > before.shape[1]
    # What these read of an exposure is there when it is shown.
    assert torch.equal(scores[:7, :20], before[:7, :20]) == (folder.name in ('gmcm', 'simcen'))
    is_macro = folder.name in ('count_net', 'macgnn')
    oracle = rebuilt_in_windows if is_macro else rebuilt
    expected = oracle(Pipeline.load(folder), files, tmp_path)
    assert torch.equal(requests(pipeline, 0), expected)
    whole = EventLog(tmp_path / 'all', files.log('all'), log=False, ids=tmp_path / 'old')
    log, found = RawLog.of(whole, pipeline._recipe.reads), pipeline._known()
    for name in found.maps:
        assert log.raw(name).tolist() == found.raw(name).tolist()
    for one, other in (
        (log.events, found.events),
        *((log.attributes[node], found.attributes[node]) for node in ('user', 'item')),
        *((log.contents[node], found.contents[node]) for node in ('user', 'item')),
    ):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.filterwarnings('ignore:Each of the .* rows is a click')
def test_a_log_of_clicks_alone_is_fitted_with_drawn_items(files: Files, tmp_path: Path) -> None:
    for name in ('old', 'new'):
        duckdb.sql(f"""
            COPY (SELECT uid, sku, ts FROM '{getattr(files, name)}' WHERE clicked = 1)
            TO '{tmp_path / f'{name}.csv'}'
        """)
    columns = {role: COLUMNS[role] for role in ('user', 'item', 'time')}
    dataset = EventLog(tmp_path / 'clicks', tmp_path / 'old.csv', columns, log=False)
    pipeline = Pipeline('count_net', max_epochs=1, groups={'user': 4, 'item': 5}, embedding_dim=4)
    with pytest.raises(ValueError, match='all .* are clicks: apply mag.transforms.SampleNegatives'):
        pipeline.fit(dataset, progress=False)
    drawn = [
        EventLog(
            tmp_path / name, tmp_path / f'{name}.csv', columns, log=False,
            pre_transform=SampleNegatives(2),
        )
        for name in ('old', 'new')
    ]  # fmt: skip
    pipeline.fit(drawn[0], progress=False)
    log = pipeline._known()
    assert torch.equal(log.clicks()[0], dataset[0][CLICKS].edge_index)
    assert 2.9 < log.events['label'].numel() / log.clicks()[1].numel() <= 3
    assert 0 < pipeline.metrics['test']['auc'] < 1
    assert pipeline.evaluate(drawn[1])['auc'] > 0
    number = log.events['label'].numel() + drawn[1][0][CLICKS].edge_label.numel()
    assert pipeline.update(drawn[1])._known().events['label'].numel() == number


@pytest.mark.parametrize('folder', ['gmcm'], indirect=True)
def test_what_a_later_table_tells_of_items(folder: Path, files: Files, tmp_path: Path) -> None:
    pipeline = Pipeline.load(folder)
    before = pipeline._known()
    (tmp_path / 'items.csv').write_text(
        'sku,tags,image\nm0,green|old,1 2 3\nm2,old|new,\na3,green,\na5,red,4 5 6\n'
    )
    pipeline.update(files._replace(folder=tmp_path).log('new'))
    log = pipeline._known()
    place = {name: int(log.look_up('item', [name])[0]) for name in ('m0', 'm1', 'm2', 'a3', 'a5')}
    was, now = before.contents['item'], log.contents['item']
    names = [str(name) for name in before.raw('tags')]

    def tags(item: str) -> set[str]:
        row = now['x_tags'][place[item]]
        assert row.numel() == len(names)
        return {name for name, value in zip(names, row.tolist(), strict=True) if value}

    # Tags that were told stay, those that were not are told now; one that is new has no column.
    assert tags('m0') == {'red', 'new'} and tags('m2') == {'old', 'new'}
    assert tags('a3') == set() and tags('a5') == {'red'}
    assert log.raw('tags')[log.attributes['item']['tags'][place['a3']]] == 'green'
    # Numbers are those of the later table, where it tells some.
    assert now['x_image'][place['m0']].tolist() == [1, 2, 3] and now['has_image'][place['m0']]
    assert torch.equal(now['x_image'][place['m1']], was['x_image'][place['m1']])
    assert torch.equal(now['x_image'][place['m2']], was['x_image'][place['m2']])
    assert now['has_image'][place['m2']] and now['x_image'][place['a5']].tolist() == [4, 5, 6]
    assert not now['has_image'][place['a3']] and now['x_image'][place['a3']].tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="^Events must tell 3 numbers of 'image', .* tell 2\\.$"):
        (tmp_path / 'items.csv').write_text('sku,tags,image\nm0,green,1 2\n')
        pipeline.update(files._replace(folder=tmp_path).log('same'))


@pytest.mark.parametrize('folder', ['count_net', 'gmcm', 'srjgraph'], indirect=True)
def test_longer_queries_are_read_as_far_as_those_that_were_fitted(
    folder: Path, files: Files, tmp_path: Path
) -> None:
    text, cut = files.same.read_text(), tmp_path / 'cut.csv'
    longer = tmp_path / 'longer.csv'
    cut.write_text(text.replace('black tea', 'black hat'))
    longer.write_text(text.replace('black tea', 'black hat for a green cat'))
    pipelines = [Pipeline.load(folder).update(path) for path in (cut, longer)]
    one, other = (pipeline._known().events['query'] for pipeline in pipelines)
    assert one.size(1) == other.size(1) == 2
    # Those of the terms that are read; words behind them are names without a row.
    names = [pipeline._known().raw('query') for pipeline in pipelines]
    for place in range(2):
        known = [of[ids[:, place]][ids[:, place] >= 0] for of, ids in zip(names, (one, other))]
        assert known[0].tolist() == known[1].tolist()
    assert requests(pipelines[1]).isfinite().all()
    assert pipelines[1].evaluate(files.later).keys() == pipelines[0].evaluate(files.later).keys()


# MacGNN reads clicks alone.
@pytest.mark.parametrize('folder', ['count_net'], indirect=True)
def test_what_was_seen_in_vain_is_counted(folder: Path) -> None:
    pipeline = Pipeline.load(folder)
    before = pipeline.batch('m7', ['m3', 'm4'], context=CONTEXT).counts
    events = {
        'uid': ['m7'] * 60, 'sku': ['m3'] * 60, 'ts': list(range(1500, 1560)),
        'clicked': [0] * 60, 'kind': ['k3'] * 60, 'device': ['phone'] * 60, 'bought': [0] * 60,
        'in_cart': [0] * 60, 'wished': [0] * 60, 'price': [0.1] * 60, 'search': ['rice'] * 60,
    }  # fmt: skip
    pd = pytest.importorskip('pandas')
    pipeline.update(pd.DataFrame(events))
    more = pipeline.batch('m7', ['m3', 'm4'], context=CONTEXT).counts - before
    names = pipeline._served.source[CLICKS].count_names
    seen = {name: more[:, place].tolist() for place, name in enumerate(names)}
    assert seen['user'] == [[60, 0], [60, 0]] and seen['item'] == [[60, 0], [0, 0]]
    assert not more[..., 1].any()


def test_a_later_export_is_evaluated_on_what_is_new(folder: Path, files: Files) -> None:
    pipeline = Pipeline.load(folder)
    metrics = pipeline.evaluate(files.log('new', 'same', 'later'))
    whole = pipeline.evaluate(files.log('old', 'new', 'same', 'later'))
    of_conversions = {name for name in metrics if name.startswith(('cvr', 'ctcvr'))}
    assert metrics == whole and metrics.keys() - of_conversions == {'auc', 'gauc', 'logloss'}
    assert bool(of_conversions) == (folder.name == 'gmcm')
    with pytest.raises(ValueError, match="^'log' must have rows from 1500 on, which .*\\.$"):
        pipeline.evaluate(files.log('old'))
    # Row by row, by raw ids.
    with duckdb.connect() as connection:
        rows = connection.execute(
            'SELECT uid, sku, ts, clicked, bought, device, search, price '
            f"FROM read_csv('{files.new}') ORDER BY ts"
        ).fetchall()
    scores = [
        pipeline.predict(
            user, [item], time, dict(zip(('device', 'query', 'price'), told, strict=True))
        )
        for user, item, time, _, _, *told in rows
    ]
    click = torch.cat([score['click'] for score in scores])
    clicked, bought = (torch.tensor([float(row[of]) for row in rows]).double() for of in (3, 4))
    expected = torch.nn.functional.binary_cross_entropy(click, clicked)
    found = pipeline.evaluate(files.log('new'))
    assert found['logloss'] == pytest.approx(float(expected), rel=1e-5)
    if of_conversions:
        both = torch.cat([score['click_and_conversion'] for score in scores])
        assert found['ctcvr_mse'] == pytest.approx(float((both - bought).square().mean()), rel=1e-5)


@pytest.mark.parametrize('folder', ['hyperctr'], indirect=True)
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
        'manifest.json', 'log.safetensors', 'fitted.safetensors', 'model.safetensors',
        *(f'ids_{name}.parquet' for name in Pipeline.load(folder)._known().maps),
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
    with pytest.raises(TypeError, match="^MacGNN has no argument 'widths'; it takes .'.*\\.$"):
        Pipeline('macgnn', widths=[3])
    with pytest.raises(RuntimeError, match='has not been fitted'):
        Pipeline('macgnn').score('ann', ['tea'])
    with pytest.raises(TypeError, match="^'log' must be a dataset, .* got int\\.$"):
        Pipeline('macgnn').fit(3)  # type: ignore[arg-type]
    pipeline = Pipeline.load(folder)
    context = CONTEXT
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
        pipeline.update(files.log('old'))
    assert torch.equal(requests(pipeline), scores)
    assert categoricals(pipeline._known().graph()['item']) == {'category': 4, 'tags': 4}
