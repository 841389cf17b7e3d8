import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import records

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'


def test_records_are_found_by_their_values_and_kept_whole(tmp_path: Path) -> None:
    path = tmp_path / 'folder' / 'results.json'
    results = records.Results(path)
    assert results.find(model='a') == []
    for model, seed in (('a', 0), ('a', 1), ('b', 0)):
        results.append({'model': model, 'seed': seed})
    assert records.Results(path).records == json.loads(path.read_text())
    assert records.Results(path).find(model='a', seed=1) == [{'model': 'a', 'seed': 1}]
    assert records.select(results.records, seed=0, loss=None) == results.records[::2]
    assert [file.name for file in path.parent.iterdir()] == ['results.json']


def test_a_file_that_cannot_be_replaced_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / 'table.md'
    records.write(path, 'before')

    def fail(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(KeyboardInterrupt):
        records.publish(['after'], path)
    assert path.read_text() == 'before'


def test_tables_say_what_made_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr('sys.argv', ['benchmarks', 'speed.gmcm', '--threads', '1 2'])
    made = records.stamp('pyg-mag')
    assert made['command'] == "python benchmarks speed.gmcm --threads '1 2'"
    assert re.fullmatch(r'\d{4}-\d\d-\d\d', made['date']) and made['packages'].keys() == {'pyg-mag'}
    early = {'command': 'z', 'date': '2020-01-02', 'packages': {'torch': '1'}}
    late = {**early, 'command': 'a', 'date': '2020-01-03', 'commit': 'abc'}
    assert list(records.made_by([early, early])) == ['Made by `z`,', '2020-01-02, torch 1.']
    assert list(records.made_by([early, late])) == [
        'Made by `a` and `z`,',
        '2020-01-02 to 2020-01-03, torch 1, commit abc.',
    ]
    line = records.made_here('pyg-mag')
    assert line.startswith(f'Made by `{made["command"]}` on ') and made['date'] in line


def test_a_stamp_needs_neither_an_installation_nor_git(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('PATH', '')
    made = records.stamp('no-such-package')
    assert made['packages'] == {'no-such-package': 'not installed'} and made['commit'] is None


def test_table_is_markdown() -> None:
    lines = ['| way | seconds |', '| --- | ---: |', '| plain | 2 |']
    assert records.table(['way', 'seconds'], [['plain', '2']], align='---:') == lines


def test_every_benchmark_can_be_called_by_its_name() -> None:
    spec = importlib.util.spec_from_file_location('benchmarks_main', BENCHMARKS / '__main__.py')
    assert spec is not None and spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    found = [
        f'{path.parent.name}.{path.stem}'
        for path in sorted(BENCHMARKS.glob('*/*.py'))
        if '\ndef main(' in path.read_text()
    ]
    assert list(main.NAMES) == found


def test_an_unknown_name_is_answered_without_an_import() -> None:
    done = subprocess.run(
        [sys.executable, '-X', 'importtime', str(BENCHMARKS), 'speed.nothing'],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert 'speed.nothing' in done.stderr and 'speed.gmcm' in done.stderr
    assert not re.search(r'\b(torch|mag|duckdb)\b', done.stderr.replace('speed.mag', ''))
