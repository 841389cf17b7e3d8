import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import mag
import mag.datasets
import mag.models
import mag.transforms

MODULES = sorted(
    {
        module.name
        for package in (mag, mag.datasets, mag.models, mag.transforms)
        for module in pkgutil.walk_packages(package.__path__, f'{package.__name__}.')
    }
)


@pytest.mark.parametrize('name', MODULES)
def test_examples_in_docstrings_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(name)).failed == 0
