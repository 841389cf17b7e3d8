import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from mag.command_line import main
from mag.datasets import LogSchema
from mag.online import SqliteStream
from mag.pipeline import Pipeline
from mag.pipeline.pipeline_ranker import PipelineLoader
from mag.pipeline.recipes.macgnn import MacGNNRecipe
from mag.pipeline.recipes.store_recipe import StoreRecipe
from mag.store import BuildPlan, Store, build
from mag.store.store_batches import StoreBatches
from mag.transforms import TemporalSplit

NUM_ROWS, NUM_LATER = 3000, 300
COLUMNS = {
    'user': 'who', 'item': 'sku', 'time': 'at', 'label': 'clicked', 'category': 'kind',
    'user_attributes': ['country'], 'contexts': ['device'], 'features': ['price'],
}  # fmt: skip
GROUPS = {'user': 'country', 'item': 'category'}
SPLIT = TemporalSplit(num_windows=3)
CONTEXT = {'macgnn': {}, 'count_net': {'device': 'phone'}}
ARGUMENTS: dict[str, Any] = {'batch_size': 256, 'max_epochs': 2, 'embedding_dim': 4}

pytestmark = [
    pytest.mark.filterwarnings('ignore:TemporalSplit leaves out'),
    pytest.mark.filterwarnings('ignore:.* rows repeat another row'),
]


class Files:
    r"""A log, a later export, and a store of the log."""

    def __init__(self, folder: Path) -> None:
        random, number = np.random.default_rng(0), NUM_ROWS + NUM_LATER
        who, sku = random.integers(0, 60, number), random.integers(0, 40, number)
        is_later = np.arange(number) >= NUM_ROWS
        device = random.choice(np.array(['phone', 'tablet', None]), number)
        table = pa.table(
            {
                'who': [f'{"new" if new and u < 5 else "u"}{u}' for u, new in zip(who, is_later)],
                'sku': sku * 3,
                'at': 1000 + np.arange(number) // 2,
                'clicked': (random.random(number) < 0.15 + 0.5 * (who % 3 == sku % 3)).astype(int),
                'kind': [f'kind {of % 5}' if of % 7 else None for of in sku],
                'country': who % 6,
                'device': np.where(is_later & (who % 9 == 0), 'watch', device),
                'price': random.random(number),
            }
        )
        self.folder = folder
        self.log, self.later = folder / 'log.parquet', folder / 'later.parquet'
        pq.write_table(table.slice(0, NUM_ROWS), self.log, row_group_size=200)
        pq.write_table(table.slice(NUM_ROWS), self.later)
        self.schema = LogSchema(str(self.log), COLUMNS)
        self.store = self.build('store', num_windows=3)

    def build(self, name: str, groups: Any = GROUPS, **arguments: Any) -> str:
        plan = BuildPlan(
            self.schema, self.folder / name, groups, memory_limit='1GiB', threads=1, **arguments
        )
        return build(plan, progress=False)


@pytest.fixture(scope='module')
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp('files'))


def fit(model: str, log: Any, **arguments: Any) -> Pipeline:
    return Pipeline(model, **{**ARGUMENTS, **arguments}).fit(log, progress=False)


@pytest.fixture(scope='module', params=['macgnn', 'count_net'])
def pipeline(request: pytest.FixtureRequest, files: Files) -> Pipeline:
    return fit(request.param, files.store)


def probe(pipeline: Pipeline) -> torch.Tensor:
    r"""The scores of users and items, known or not."""
    context = CONTEXT[pipeline.model_name]
    asked = [(user, [3, 30, 117, 1]) for user in ('u7', 'u33', 'nobody')]
    return torch.stack([pipeline.score(*pair, context=context) for pair in asked])


@pytest.fixture
def in_order(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    r"""Training reads rows in the order of the log."""
    for recipe in (MacGNNRecipe, StoreRecipe):
        of_recipe = recipe.loader
        monkeypatch.setattr(
            recipe,
            'loader',
            lambda self, *parts, of_recipe=of_recipe, **arguments: of_recipe(
                self, *parts, **{**arguments, 'shuffle': False}
            ),
        )
    yield


@pytest.mark.usefixtures('in_order')
@pytest.mark.parametrize('groups', [GROUPS, {'user': 6, 'item': 5}], ids=['told', 'learned'])
def test_a_store_gives_what_the_log_in_memory_does(files: Files, groups: dict[str, Any]) -> None:
    folder = files.store if groups is GROUPS else files.build('learned', groups, num_windows=3)
    stored = fit('macgnn', folder)
    held = fit('macgnn', files.schema, split=SPLIT, groups=groups)
    assert stored.metrics == held.metrics and set(stored.metrics['test']) > {'auc', 'logloss'}
    weights = held._model.state_dict()
    for name, weight in stored._model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert torch.equal(probe(stored), probe(held))
    expected = held.summary()
    found = {name: of for name, of in stored.summary().items() if name != 'store'}
    # Attributes are no names that a request tells.
    expected['ids'] = {name: expected['ids'][name] for name in ('user', 'item')}
    assert found == expected


def test_counts_of_a_request_are_those_in_memory(files: Files) -> None:
    stored = fit('count_net', files.store)
    held = fit('count_net', files.schema, split=SPLIT, groups=GROUPS, max_epochs=1)
    held._model.load_state_dict(stored._model.state_dict())
    assert torch.equal(probe(stored), probe(held))


def test_contexts_are_told_by_name(files: Files) -> None:
    pipeline = fit('count_net', files.store)
    assert pipeline.columns == {'user': 'who', 'item': 'sku', 'device': 'device'}
    found = {
        name: float(pipeline.score('u7', [30], context={'device': name}))
        for name in ('phone', 'tablet', None, 'unknown', 'watch', 'radio')
    }
    assert found[None] == found['unknown'] and found['watch'] == found['radio']
    assert len({*found.values()}) == 4
    with pytest.raises(ValueError, match=r"'context' must tell \['device'\], but told nothing"):
        pipeline.score('u7', [30])


def test_a_later_export_is_evaluated(pipeline: Pipeline, files: Files) -> None:
    found = pipeline.evaluate(str(files.later))
    assert 0.4 < found['auc'] < 1
    table = pq.read_table(files.later)
    context = {'device': table['device'].to_pylist()} if pipeline.model_name != 'macgnn' else {}
    score = pipeline.score(table['who'].to_pylist(), table['sku'].to_pylist(), context=context)
    label = torch.tensor(table['clicked'].to_pylist()).double()
    logloss = torch.nn.functional.binary_cross_entropy(score, label)
    assert found['logloss'] == pytest.approx(float(logloss), abs=1e-6)
    with pytest.raises(ValueError, match="'log' must have rows from 2500 on"):
        pipeline.evaluate(str(files.log))


def test_what_is_saved_says_where_the_store_is(
    pipeline: Pipeline, files: Files, tmp_path: Path
) -> None:
    expected = probe(pipeline)
    shutil.copytree(files.store, tmp_path / 'store')
    here = fit(pipeline.model_name, tmp_path / 'store')
    here.save(tmp_path / 'saved' / 'shop')
    assert not list((tmp_path / 'saved' / 'shop').glob('*.parquet'))
    again = Pipeline.load(tmp_path / 'saved' / 'shop')
    assert torch.equal(probe(again), expected)
    assert again.metrics == here.metrics and again.summary() == here.summary()
    # What is fitted again has the split of the other store.
    assert again.fit(files.build('two', num_windows=2), progress=False).split.num_windows == 2
    # Moved together.
    os.rename(tmp_path, f'{tmp_path}-moved')
    moved = Path(f'{tmp_path}-moved')
    assert torch.equal(probe(Pipeline.load(moved / 'saved' / 'shop')), expected)
    Pipeline.load(moved / 'saved' / 'shop').save(moved / 'again')
    # Moved alone.
    os.rename(moved / 'again', tmp_path)
    assert torch.equal(probe(Pipeline.load(tmp_path)), expected)
    os.rename(moved / 'store', moved / 'other')
    with pytest.raises(ValueError, match='was fitted on a store that is neither in .* nor in'):
        Pipeline.load(tmp_path)
    shutil.copytree(files.build('other', num_windows=2), moved / 'store', dirs_exist_ok=True)
    with pytest.raises(ValueError, match=r'was fitted on the store \w{16}, but that in'):
        Pipeline.load(tmp_path)


def test_a_store_that_is_replaced_while_it_is_open_is_told(files: Files, tmp_path: Path) -> None:
    path = tmp_path / 'store'
    shutil.copytree(files.store, path)
    pipeline, store = fit('macgnn', path), Store(path)
    pickled = pickle.dumps(store)
    shutil.rmtree(path)
    with pytest.raises(ValueError, match='its ids/user.parquet is missing: build it again'):
        pipeline.score('u7', [3])
    # Of more users than there were.
    schema = LogSchema(str(files.folder / 'l*.parquet'), COLUMNS)
    build(BuildPlan(schema, path, GROUPS, memory_limit='1GiB', num_windows=3), progress=False)
    with pytest.raises(ValueError, match='its ids/user.parquet is that of another store'):
        pipeline.score('u7', [3])
    with pytest.raises(ValueError, match='has been replaced while it was in use'):
        pickle.loads(pickled)


def test_a_program_tells_the_same(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.export(tmp_path / 'model.pt2')
    program = torch.export.load(tmp_path / 'model.pt2').module(check_guards=False)
    context = CONTEXT[pipeline.model_name]
    batch = pipeline.batch('u7', [3, 30, 1], context=context)
    found = program(batch).double().sigmoid()
    assert torch.allclose(found, pipeline.score('u7', [3, 30, 1], context=context), atol=1e-6)


class Stop(Exception):
    pass


def test_a_fit_that_was_killed_goes_on(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit('macgnn', files.store)
    of_batch, num_read = StoreBatches.batch, []

    def killed(self: Any, rows: Any) -> Any:
        num_read.append(len(rows.user))
        if len(num_read) == 14:
            raise Stop
        return of_batch(self, rows)

    with monkeypatch.context() as patch:
        patch.setattr(StoreBatches, 'batch', killed)
        with pytest.raises(Stop):
            Pipeline('macgnn', **ARGUMENTS).fit(files.store, directory=tmp_path, progress=False)
    assert list(tmp_path.iterdir())
    again = Pipeline('macgnn', **ARGUMENTS).fit(files.store, directory=tmp_path, progress=False)
    assert again.metrics == whole.metrics and torch.equal(probe(again), probe(whole))


def test_what_a_store_cannot_do_is_refused(
    pipeline: Pipeline, files: Files, tmp_path: Path
) -> None:
    before = probe(pipeline)
    with pytest.raises(ValueError, match='takes no events: build a store of the longer log'):
        pipeline.update(str(files.later))
    assert torch.equal(probe(pipeline), before)
    name = pipeline.model_name
    with pytest.raises(ValueError, match=r"'split' must be that of the store in .* but got"):
        fit(name, files.store, split=TemporalSplit(num_windows=4))
    with pytest.raises(ValueError, match=r"'groups' must be those of the store in .* but got"):
        fit(name, files.store, groups={'user': 7, 'item': 'category'})
    same = fit(name, files.store, groups=GROUPS, split=SPLIT, max_epochs=1)
    assert repr(same.split) == repr(SPLIT)
    with pytest.raises(ValueError, match='built with cutoffs of its own: build one with'):
        fit(name, files.build('cutoffs', cutoffs=[1500, 2000]))
    with pytest.raises(FileNotFoundError, match='is no store: it has no manifest.json'):
        fit(name, tmp_path)
    with pytest.raises(TypeError, match='must be a dataset, a LogSchema or a Store, or the path'):
        fit(name, 3)
    with pytest.raises(ValueError, match="'gmcm' does not read a store, as count_net and macgnn"):
        Pipeline('gmcm').fit(files.store)


def test_it_is_served_without_a_log(pipeline: Pipeline, tmp_path: Path) -> None:
    pipeline.save(tmp_path / 'shop')
    ranker = PipelineLoader(str(tmp_path))('shop')
    found = ranker.rank('u7', [3, 30, 117, 1], 0, CONTEXT[pipeline.model_name])
    np.testing.assert_array_equal(found.probability, probe(pipeline)[0].numpy())
    assert (found.position, found.num_unknown, found.lag) == (NUM_ROWS, 1, None)
    with pytest.raises(ValueError, match="'shop' is served without a log: .* holds no events"):
        PipelineLoader(str(tmp_path), lambda: SqliteStream(tmp_path / 'events.db'))('shop')


def test_the_command_fits_a_store(files: Files, tmp_path: Path) -> None:
    folder = str(tmp_path / 'shop')
    done = CliRunner().invoke(
        main, ['fit', files.store, '--model', 'macgnn', '--epochs', '1', '--out', folder]
    )
    assert done.exit_code == 0, done.output
    requests = tmp_path / 'requests.csv'
    requests.write_text('who,sku\nu7,3\nnobody,30\n')
    done = CliRunner().invoke(main, ['score', folder, str(requests)])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    pipeline = Pipeline.load(folder)
    expected = [float(pipeline.score(*of)) for of in (('u7', [3]), ('nobody', [30]))]
    assert [float(line.split(',')[2]) for line in lines[1:]] == pytest.approx(expected)
    done = CliRunner().invoke(main, ['inspect', folder, '--figure', str(tmp_path / 'a.png')])
    assert done.exit_code == 0 and '"kind 1"' in done.output, done.output
