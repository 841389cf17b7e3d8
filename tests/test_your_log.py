import ast
import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
import yaml

import mag.training
from mag.datasets import EventLog, LogSchema
from mag.schema import CLICKS

TEXT = (Path(__file__).parents[1] / 'docs' / 'your_log.md').read_text(encoding='utf-8')
SCHEMA, ACTIONS = re.findall(r'```yaml\n(.*?)```', TEXT, re.DOTALL)
MODELS, WHOLE = TEXT.split('\n## From the log to scores')
START, *EXAMPLES, LATER = re.findall(r'```python\n(.*?)```', MODELS, re.DOTALL)
FITTED, SERVED = re.findall(r'```python\n(.*?)```', WHOLE, re.DOTALL)
TITLES = re.findall(r'^## (\w+)\n\n```python', TEXT, re.MULTILINE)
NUM_ROWS = 3000


def write_exposures(path: Path, start: int) -> None:
    duckdb.sql(f"""
        COPY (
            SELECT 'c' || hash(i) % 40 AS customer, hash(i + 1) % 30 AS sku, i * 1500 AS shown_at,
                   clicked::INTEGER AS clicked, (clicked AND i % 2 = 0)::INTEGER AS bought,
                   (clicked AND i % 3 > 0)::INTEGER AS in_cart,
                   (clicked AND i % 5 > 2)::INTEGER AS on_wishlist,
                   CASE i % 3 WHEN 0 THEN 'red shoes' WHEN 1 THEN 'tea' END AS search,
                   CASE i % 2 WHEN 0 THEN 'phone' ELSE 'desktop' END AS device,
                   (i % 7) / 2 AS price, 's' || hash(i) % 40 % 3 AS segment
            FROM (SELECT i, (hash(i) % 40 + hash(i + 1) % 30) % 3 = 0 AS clicked
                  FROM range({start}, {start + NUM_ROWS}) AS t(i))
        ) TO '{path}'
    """)


@pytest.fixture(scope='module')
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""The files that the page names, small."""
    folder = tmp_path_factory.mktemp('shop')
    (folder / 'shop.yaml').write_text(SCHEMA)
    (folder / 'actions.yaml').write_text(ACTIONS)
    (folder / 'later.yaml').write_text(SCHEMA.replace('exposures.csv', 'later.csv'))
    for name, start in (('exposures', 0), ('later', NUM_ROWS)):
        write_exposures(folder / f'{name}.csv', start)
    duckdb.sql(f"""
        COPY (
            SELECT i AS sku, 'k' || i % 4 AS category, 'Item ' || i AS title,
                   CASE i % 3 WHEN 0 THEN 'new|sale' WHEN 1 THEN 'sale' END AS tags,
                   concat_ws(' ', i % 3, i % 5, 0.5) AS image
            FROM range(30) AS t(i)
        ) TO '{folder / 'items.csv'}'
    """)
    duckdb.sql(f"""
        COPY (
            SELECT customer, sku, shown_at + 60 AS happened_at,
                   unnest(['click', 'add-to-cart', 'purchase']) AS what
            FROM '{folder / 'exposures.csv'}' WHERE clicked = 1
        ) TO '{folder / 'actions.csv'}'
    """)
    return folder


@pytest.mark.parametrize('title, code', list(zip(TITLES, EXAMPLES, strict=True)))
def test_examples_run(
    shop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    title: str,
    code: str,
) -> None:
    monkeypatch.chdir(shop)
    # What the page leaves to its default takes long.
    monkeypatch.setattr(mag.training, 'fit', partial(mag.training.fit, max_epochs=1))
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exec(START, names)
        if title == 'CountNet':
            # It goes on with the parts of the example before it.
            exec('train, val, test = TemporalSplit()(data)', names)
        exec(code, names)
    printed = capsys.readouterr().out.strip().splitlines()
    assert printed[0].startswith("['unknown', 'new', 'sale']")
    metrics = ast.literal_eval(printed[-1])
    assert {'auc', 'logloss'} <= metrics.keys()
    assert title != 'GMCM' or 0 <= metrics['ctcvr_auc'] <= 1


def test_the_log_becomes_scores_whole(
    shop: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fork: Callable[..., Any],
) -> None:
    monkeypatch.chdir(shop)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exec(FITTED, {})
    lines = capsys.readouterr().out.strip().splitlines()
    models = [line.split()[0] for line in lines]
    assert models == ['count_net', 'macgnn', 'gmcm', 'srjgraph', 'hyperctr', 'simcen']
    for line in lines:
        assert 0 < ast.literal_eval(line[line.index('{') :])['logloss'] < 1
    # Nothing but the later export is there any more.
    for name in ('exposures.csv', 'shop.yaml'):
        (shop / name).rename(shop / f'hidden-{name}')
    try:
        served = fork(SERVED).finish()
        assert served.returncode == 0, served.stderr
        for model in models:
            other = SERVED.replace('shops/gmcm', f'shops/{model}')
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                exec(other, {})
            shown = capsys.readouterr().out
            assert shown.startswith('tensor([0.')
            assert model != 'gmcm' or shown == served.stdout
    finally:
        for name in ('exposures.csv', 'shop.yaml'):
            (shop / f'hidden-{name}').rename(shop / name)


def test_a_later_export_of_the_page(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shop)
    log = f"SELECT * FROM '{shop / 'exposures.csv'}'"
    duckdb.sql(f"""
        COPY (SELECT * REPLACE ('d' || sku AS customer, sku - 1 AS sku) FROM ({log}) LIMIT 99)
        TO '{shop / 'exposures_2.csv'}'
    """)
    duckdb.sql(f"""
        COPY (
            SELECT * REPLACE (sku - 1 AS sku, 'new|' || sku % 2 AS tags, '7 8 9' AS image)
            FROM '{shop / 'items.csv'}' WHERE sku <> 5
        ) TO '{shop / 'items_2.csv'}'
    """)
    text = SCHEMA.replace('exposures.csv', 'exposures_2.csv').replace('items.csv', 'items_2.csv')
    (shop / 'shop_2.yaml').write_text(text)
    names: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        exec(START, names)
        exec(LATER, names)
    old, new = names['data']['item'], names['later'][0]['item']
    assert names['later'].raw_ids['item'].tolist() == [*range(30), -1]
    assert names['later'].names['tags'] == ['unknown', 'new', 'sale', '0', '1']
    # What was told stays, what was not is told now, of an item without a row, too.
    assert torch.equal(new.x_tags[:30, :3][old.tags > 0], old.x_tags[old.tags > 0])
    assert new.tags[[2, 26, 30]].tolist() == [1, 1, 1]
    assert new.x_tags[2].tolist() == [0, 1, 0, 0, 1]
    assert torch.equal(new.x_image[[4, 29]], old.x_image[[4, 29]])
    assert new.x_image[[3, 30]].tolist() == [[7, 8, 9]] * 2
    assert new.has_image.all() and new.category[:30].equal(old.category)


def test_every_model_has_an_example() -> None:
    assert set(TITLES) == {'MacGNN', 'CountNet', 'GMCM', 'SRJGraph', 'HyperCTR', 'SimCEN'}


def test_actions_of_the_page(shop: Path) -> None:
    found = yaml.safe_load(SCHEMA) | yaml.safe_load(ACTIONS)
    found['columns'] = {
        role: column
        for role, column in found['columns'].items()
        if role not in ('label', 'conversion', 'behaviors')
    }
    (shop / 'both.yaml').write_text(yaml.safe_dump(found))
    dataset = EventLog(shop / 'actions', LogSchema.load(shop / 'both.yaml'), log=False)
    written = EventLog(shop / 'columns', LogSchema.load(shop / 'shop.yaml'), log=False)
    store, other = dataset[0][CLICKS], written[0][CLICKS]
    assert store.edge_label.equal(other.edge_label)
    assert store.edge_label_behavior[:, 0].equal(other.edge_label)
    assert store.time.equal(other.time + 60)
    assert store.edge_label_settled.equal(store.edge_label_time + 86400)
