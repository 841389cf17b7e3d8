import io
from pathlib import Path

import duckdb
import numpy as np
import pytest

from mag.datasets import LogSchema
from mag.pipeline import Pipeline, request_file
from mag.pipeline.request_file import score_file

ROWS = 2_500


@pytest.fixture(scope='module')
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    path = tmp_path_factory.mktemp('log') / 'log.parquet'
    duckdb.sql(
        f"COPY (SELECT n % 40 AS uid, 's' || n * n % 30 AS sku, n AS ts, n // 3 % 2 AS clicked, "
        f"'k' || n * n % 30 % 3 AS category, CASE WHEN n % 2 = 0 THEN 'phone' ELSE 'desk' END "
        f"AS device FROM range(1000) AS r(n)) TO '{path}' (FORMAT parquet)"
    )
    columns = {
        'user': 'uid', 'item': 'sku', 'time': 'ts', 'label': 'clicked', 'category': 'category',
        'contexts': ['device'],
    }  # fmt: skip
    groups = {'user': [4], 'item': ['category']}
    pipeline = Pipeline('count_net', groups=groups, max_epochs=1, embedding_dim=4)
    return pipeline.fit(LogSchema(path, columns), progress=False)


@pytest.fixture(scope='module')
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""Requests with columns of types and names that are easily lost."""
    path = tmp_path_factory.mktemp('requests') / 'requests.parquet'
    duckdb.sql(
        f'COPY (SELECT n::DECIMAL(9, 2) / 4 AS "a ""price"", in €", nullif(n * 7 % 50, 8) AS uid, '
        f"'s' || n * 3 % 40 AS sku, CASE WHEN n % 3 = 0 THEN 'phone' ELSE 'desk' END AS device, "
        f"[n, n + 1] AS row, n AS rowid, DATE '2024-01-01' + (n % 9)::INTEGER AS day "
        f"FROM range({ROWS}) AS r(n)) TO '{path}' (FORMAT parquet)"
    )
    return path


def expected_scores(pipeline: Pipeline, requests: Path) -> np.ndarray:
    r"""Those of all rows at once; whoever has no id is unknown."""
    rows = duckdb.sql(f"SELECT uid, sku, device FROM '{requests}' ORDER BY rowid").fetchall()
    user, item, device = (list(column) for column in zip(*rows))
    user = [-1 if value is None else value for value in user]
    return pipeline.score(user, item, context={'device': device}).numpy()


@pytest.mark.parametrize('chunk', [700, 2_500, 10_000])
def test_chunks_are_scored_as_the_whole_and_all_columns_are_kept(
    pipeline: Pipeline, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(request_file, '_CHUNK', chunk)
    sizes, missing = [], []
    predict = pipeline.predict

    def counted(*arguments: object, **options: object) -> object:
        scores = predict(*arguments, **options)  # type: ignore[arg-type]
        sizes.append(len(scores['click']))
        missing.append(sum(user is None for user in arguments[0].tolist()))  # type: ignore
        return scores

    monkeypatch.setattr(pipeline, 'predict', counted)
    out = tmp_path / 'scores.parquet'
    score_file(pipeline, requests, out)
    monkeypatch.undo()
    assert sum(missing) == ROWS / 50
    assert sum(sizes) == ROWS and max(sizes) == min(chunk, ROWS)
    expected = expected_scores(pipeline, requests)
    assert len(np.unique(expected)) > 100
    np.testing.assert_allclose(
        duckdb.sql(f"SELECT score FROM '{out}'").fetchnumpy()['score'], expected, rtol=1e-6
    )
    given, written = (duckdb.sql(f"FROM '{path}'") for path in (requests, out))
    assert written.columns == [*given.columns, 'score']
    assert written.types == [*given.types, 'DOUBLE']
    assert [row[:-1] for row in written.fetchall()] == given.fetchall()
    assert [path.name for path in tmp_path.iterdir()] == ['scores.parquet']


def test_csv_is_written_as_it_was_read(pipeline: Pipeline, tmp_path: Path) -> None:
    path, out = tmp_path / 'requests.csv', io.StringIO()
    path.write_text('note;uid;sku;device\n007;3;s4;phone\n1.50;;s5;desk\n"a;b";nobody;s6;watch\n')
    score_file(pipeline, path, out)
    header, *lines = out.getvalue().splitlines()
    assert header == 'note,uid,sku,device,score'
    assert [line.rpartition(',')[0] for line in lines] == [
        '007,3,s4,phone', '1.50,,s5,desk', 'a;b,nobody,s6,watch',
    ]  # fmt: skip
    context = {'device': ['phone', 'desk', 'watch']}
    expected = pipeline.score(['3', 'x', 'y'], ['s4', 's5', 's6'], context=context)
    np.testing.assert_allclose([float(line.rpartition(',')[2]) for line in lines], expected)


def test_no_requests_have_no_scores(pipeline: Pipeline, tmp_path: Path) -> None:
    path, out = tmp_path / 'requests.csv', io.StringIO()
    path.write_text('uid,sku,device\n')
    score_file(pipeline, path, out)
    assert out.getvalue() == 'uid,sku,device,score\n'


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('r.csv', 'uid,sku\n1,2\n', "must .* column 'device'"),
        ('r.csv', 'uid;sku\n1;2\n', "must .* column 'device', but its columns are 'uid', 'sku'"),
        ('r.csv', 'uid,sku,device,Score\n1,2,3,4\n', "has a column 'score', which is where scores"),
        ('r.csv', 'uid,sku,device\n1,2,3\n1,2,3,4,5\n', 'line 3'),
        ('r.parquet', 'uid,sku,device\n1,2,3\n', 'must be a Parquet file, but cannot be read'),
    ],
)
def test_bad_input_is_told(
    pipeline: Pipeline, tmp_path: Path, name: str, text: str, message: str
) -> None:
    path, out = tmp_path / name, io.StringIO()
    path.write_text(text)
    with pytest.raises(ValueError, match=rf'^(?=.*{name}).*{message}.*\.$'):
        score_file(pipeline, path, out)
    assert out.getvalue() == ''


def test_progress_is_shown_where_it_takes_seconds(
    pipeline: Pipeline, requests: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    score_file(pipeline, requests, tmp_path / 'scores.parquet', progress=True)
    assert 'Scoring' not in capsys.readouterr().err
    monkeypatch.setattr(request_file, '_PATIENCE', 0.0)
    score_file(pipeline, requests, tmp_path / 'scores.parquet', progress=True)
    assert 'Scoring' in capsys.readouterr().err
