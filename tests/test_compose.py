import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from mag.command_line import main

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / 'Dockerfile'
VARIABLES = {'SNAPSHOT': '82ca11e80b2e5dbb', 'REDIS_PASSWORD': 'secret'}


@pytest.fixture(scope='module')
def services() -> dict[str, Any]:
    text = (ROOT / 'docker-compose.yml').read_text()

    def fill(match: re.Match[str]) -> str:
        return VARIABLES[match[1]]

    # As Compose does: $$ stands for a dollar.
    text = re.sub(r'(?<!\$)\$\{(\w+)(?::\?[^}]*)?\}', fill, text).replace('$$', '$')
    return yaml.safe_load(text)['services']  # type: ignore[no-any-return]


def test_it_is_what_compose_reads() -> None:
    pytest.importorskip('check_jsonschema', reason='make test installs check-jsonschema')
    command = [sys.executable, '-m', 'check_jsonschema', '--builtin-schema', 'vendor.compose-spec']
    done = subprocess.run(
        [*command, 'docker-compose.yml'], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_service_runs_a_command_that_there_is(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = {name: of for name, of in services.items() if of['image'] == 'pyg-mag'}
    assert sorted(ours) == ['consumer', 'scorer-1', 'scorer-2']
    for of in ours.values():
        for name, value in of['environment'].items():
            monkeypatch.setenv(name, value)
        name, *arguments = shlex.split(of['command'])
        # Options that are missing or unknown are refused here.
        context = main.commands[name].make_context(name, arguments)
        assert context.params['snapshot'] == '/snapshots/82ca11e80b2e5dbb'
        assert context.params['log'] == 'redis://:secret@redis:6379'
        mounted = {volume.split(':')[1] for volume in of['volumes']}
        paths = [value for value in context.params.values() if str(value).startswith('/')]
        assert all(any(str(path).startswith(f'{at}/') for at in mounted) for path in paths)


def test_redis_keeps_what_it_is_told(services: dict[str, Any]) -> None:
    shell, option, script = services['redis']['command']
    assert (shell, option) == ('sh', '-c')
    assert subprocess.run(['sh', '-n', '-c', script], check=False).returncode == 0
    server = script[script.index('exec redis-server') :]
    for setting in ('--appendonly yes', '--maxmemory-policy noeviction', '--requirepass "$REDIS'):
        assert setting in server
    assert script.index('redis-check-aof --fix') < script.index('exec redis-server')


# What the build copies has to hold all that pip reads.
def test_the_image_has_the_package() -> None:
    first, *others = (ROOT / '.dockerignore').read_text().splitlines()
    assert first == '*' and "pip install --no-cache-dir '.[online]'" in DOCKERFILE.read_text()
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    package_dir = dict(
        line.split(' = ') for line in setup['options']['package_dir'].strip().splitlines()
    )
    read = {'setup.cfg', 'pyproject.toml', setup['metadata']['license_files']}
    read |= {setup['metadata']['long_description'].removeprefix('file: '), *package_dir.values()}
    assert {f'!{name}' for name in read} == set(others)
