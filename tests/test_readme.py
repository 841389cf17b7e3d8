import ast
import importlib
import re
from pathlib import Path

import duckdb
import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'README.md').read_text(encoding='utf-8')


def test_the_pipeline_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    duckdb.sql("""
        COPY (
            SELECT 'c' || hash(i) % 900 AS uid, hash(i + 1) % 700 AS sku, i AS ts,
                   ((hash(i) % 900 + hash(i + 1) % 700) % 3 = 0)::INTEGER AS clicked
            FROM range(40000) AS t(i)
        ) TO 'clicks.parquet'
    """)
    (code,) = re.findall(r'```python\n(.*?)```', TEXT, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    last = capfd.readouterr().out.strip().splitlines()[-1]
    assert ast.literal_eval(last).keys() == {'auc', 'gauc', 'logloss'}
    assert {path.name for path in Path('runs/shop').iterdir()} >= {'best.ckpt', 'metrics.csv'}


@pytest.mark.parametrize('page', ['README.md', 'docs/findings.md', 'docs/your_log.md'])
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r'\]\(([^)]+)\)', (ROOT / page).read_text(encoding='utf-8'))
    assert targets
    folder = (ROOT / page).parent
    for target in targets:
        assert target.startswith('https://') or (folder / target).exists(), target


@pytest.mark.parametrize('package', ['datasets', 'loader', 'models', 'nn', 'transforms'])
def test_everything_public_is_named(package: str) -> None:
    names = importlib.import_module(f'mag.{package}').__all__
    # Batches are what loaders return.
    public = [name for name in names if not name.endswith('Batch')]
    assert public and [name for name in public if not re.search(rf'`{name}\b', TEXT)] == []


def test_commands_are_in_the_makefile() -> None:
    makefile = (ROOT / 'Makefile').read_text()
    commands = re.findall(r'^    make (\w+)', TEXT, re.MULTILINE)
    assert commands == ['demo', 'test']
    for command in commands:
        assert re.search(rf'^{command}:', makefile, re.MULTILINE)
