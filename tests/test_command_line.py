import json
from pathlib import Path

import duckdb
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mag.command_line import MODELS, main
from mag.pipeline import Pipeline
from mag.pipeline.recipes import RECIPES


def run(*arguments: str | Path, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert result.exit_code == exit_code, result.output
    return result


@pytest.fixture(scope='module')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""A log and a later export of it, as CSV and YAML."""
    folder = tmp_path_factory.mktemp('shop')
    random = np.random.default_rng(0)
    rows = np.arange(1500)
    user, item = (random.integers(0, size, 1500) for size in (40, 30))
    lines = [
        f'u{u},{i},{t},{c},k{i % 3},{"tablet" if t % 2 else "phone"}'
        for u, i, t, c in zip(user, item, rows, random.integers(0, 2, 1500))
    ]
    header = 'uid,sku,ts,clicked,kind,screen'
    for name, part in (('log', lines[:1200]), ('later', lines[1200:])):
        (folder / f'{name}.csv').write_text('\n'.join([header, *part]) + '\n')
    (folder / 'log.yaml').write_text(
        'path: log.csv\n'
        'columns: {user: uid, item: sku, time: ts, label: clicked, category: kind,'
        ' contexts: {device: screen}}\n'
    )
    (folder / 'requests.csv').write_text('uid,sku,screen\nu1,3,phone\nnobody,4,watch\n')
    return folder


@pytest.mark.parametrize(('model', 'items'), [('count_net', 'category,5'), ('macgnn', 'category')])
def test_a_log_becomes_scores_in_three_commands(shop: Path, model: str, items: str) -> None:
    out = shop / model
    groups = '--users', '4', '--items', items
    shown = run('fit', shop / 'log.yaml', '--model', model, '--out', out, '--epochs', 1, *groups)
    metrics = json.loads(shown.stdout[shown.stdout.index('{') :])
    assert metrics == Pipeline.load(out).metrics
    lines = run('score', out, shop / 'requests.csv').stdout.splitlines()
    assert lines[0] == 'uid,sku,screen,score'
    pipeline = Pipeline.load(out)
    expected = pipeline.score(['u1', 'nobody'], [3, 4], context={'device': ['phone', 'watch']})
    assert [line.rsplit(',', 1)[0] for line in lines[1:]] == ['u1,3,phone', 'nobody,4,watch']
    assert [float(line.rsplit(',', 1)[1]) for line in lines[1:]] == expected.tolist()
    run('score', out, shop / 'requests.csv', '--out', shop / 'scores.parquet')
    rows = duckdb.sql(f"SELECT score FROM '{shop / 'scores.parquet'}'").fetchall()
    assert [row[0] for row in rows] == expected.tolist()
    later = json.loads(run('evaluate', out, shop / 'later.csv').stdout)
    assert later == {'later': pipeline.evaluate(shop / 'later.csv')}
    found = json.loads(run('inspect', out).stdout)
    assert found['exposures'] == 1200 and found['users'] == 40 and found['items'] == 30
    assert found['clusters']['item'] == {'k0': 10, 'k1': 10, 'k2': 10}
    heaviest = found['heaviest macro edges']
    assert heaviest[0]['clicks'] == max(edge['clicks'] for edge in heaviest)
    assert len(found['clusters']['user']) == 4 and 'macro edges' not in found
    edges = pipeline.summary()['macro edges']
    assert (len(edges), len(edges[0])) == (4, 3)
    assert max(map(max, edges)) == heaviest[0]['clicks']
    assert sum(map(sum, edges)) == found['clicks']
    pytest.importorskip('matplotlib')
    run('inspect', out, '--figure', shop / 'clusters.png')
    assert (shop / 'clusters.png').read_bytes().startswith(b'\x89PNG')
    run('update', out, shop / 'later.csv')
    assert json.loads(run('inspect', out).stdout)['exposures'] == 1500


@pytest.mark.parametrize(
    ('model', 'given'), [('gmcm', 'floor=0.1'), ('hyperctr', 'granularity=90')]
)
def test_other_models_take_their_own_arguments(shop: Path, model: str, given: str) -> None:
    log = f"'{shop / 'log.csv'}'"
    bought = duckdb.sql(f'SELECT *, clicked * (ts % 3 = 0)::INTEGER AS bought FROM {log}')
    bought.write_csv(str(shop / 'bought.csv'))
    items = duckdb.sql(f"SELECT DISTINCT sku, sku % 3 || ' ' || sku % 5 AS image FROM {log}")
    items.write_csv(str(shop / 'items.csv'))
    described = (shop / 'log.yaml').read_text().replace('log.csv', 'bought.csv')
    (shop / 'bought.yaml').write_text(
        described.replace('{user', '{conversion: bought, user')
        + 'items: {path: items.csv, columns: {id: sku, modalities: [image],'
        " separators: {image: ' '}}}\n"
    )
    out = shop / model
    fitted = 'fit', shop / 'bought.yaml', '--model', model, '--out', out, '--epochs', 1
    run(*fitted, '--set', given)
    pipeline = Pipeline.load(out)
    name, value = given.split('=')
    assert pipeline.arguments == {name: float(value)}
    lines = run('score', out, shop / 'requests.csv').stdout.splitlines()
    predicted = pipeline.predict(['u1', 'nobody'], [3, 4], context={'device': ['phone', 'watch']})
    outputs = ['score', *(name for name in predicted if name != 'click')]
    assert lines[0] == ','.join(['uid,sku,screen', *outputs])
    for place, line in enumerate(lines[1:]):
        scores = [float(value) for value in line.split(',')[3:]]
        assert scores == [float(value[place]) for value in predicted.values()]
    assert (len(outputs) == 3) == (model == 'gmcm')
    assert json.loads(run('inspect', out).stdout)['model'] == model
    shown = run('inspect', out, '--figure', shop / 'none.png', exit_code=1)
    assert shown.output == f'Error: The figure is of a macro graph, but {model!r} reads none.\n'
    shown = run(*fitted, '--set', 'widths=3', exit_code=1)
    assert "has no argument 'widths'; it takes [" in shown.output
    assert "takes NAME=VALUE, but got 'floor'" in run(*fitted, '--set', 'floor', exit_code=2).output


def test_what_is_wrong_is_told_without_a_traceback(shop: Path, tmp_path: Path) -> None:
    reason = f'{str(tmp_path)!r} is no saved pipeline: it has no manifest.json.'
    assert run('inspect', tmp_path, exit_code=1).output == f'Error: {reason}\n'
    shown = run('fit', shop / 'log.yaml', '--out', tmp_path, '--users', '3', exit_code=2)
    assert 'told together' in shown.output
    (tmp_path / 'cat.png').write_text('cat')
    # Before it trains.
    shown = run('fit', shop / 'log.yaml', '--out', tmp_path, exit_code=1)
    assert 'must be empty or a saved pipeline' in shown.output and 'Epoch' not in shown.output
    nowhere = tmp_path / 'nowhere'
    assert (
        run('inspect', nowhere, exit_code=1).output
        == f'Error: There is no folder {str(nowhere)!r}.\n'
    )
    shown = run('inspect', nowhere, '--figure', 'clusters', exit_code=1)
    assert shown.output.startswith('Error: A figure must have a name that ends with one of ')
    assert not nowhere.exists()
    assert {*MODELS} == {*RECIPES}
    for command in ('fit', 'score', 'evaluate', 'inspect', 'update'):
        assert 'Usage: ' in run(command, '--help').output
