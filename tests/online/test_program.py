import io
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from mag.folder import checksum_of
from mag.id_map import IdMap
from mag.loader import PairBatch
from mag.logits import Logits
from mag.online import (
    EVENT,
    Program,
    RowLayout,
    Snapshot,
    SnapshotRanker,
    SqliteStream,
    load_program,
    write_snapshot,
)
from mag.online import program as programs
from mag.online.snapshot import _name_of
from mag.pipeline.serving import SnapshotLoader, write_served

sys.path.insert(0, str(Path(__file__).parent))

NUM_USERS, NUM_ITEMS = 12, 9
OWN = {'archive_version', 'byteorder', '.data/version', '.data/serialization_id'}
CONTEXT = {'count_net': {'device': 'phone'}, 'macgnn': None}


class Shelf(torch.nn.Module):
    r"""No model of mag: reads ids, the user's clicks by clusters of items and its last item."""

    def __init__(self, num_users: int = NUM_USERS, num_items: int = NUM_ITEMS) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user = torch.nn.Embedding(1 + num_users, 4)
        self.item = torch.nn.Embedding(1 + num_items, 4)
        self.clicks = torch.nn.Linear(3, 4)
        self.register_buffer('bias', torch.tensor([0.3]))

    def forward(self, batch: PairBatch) -> Logits:
        last = self.item(batch.user_recent[:, -1] + 1)
        known = self.user(batch.user + 1) + self.clicks(batch.user_hops[0].log1p()).tanh() + last
        click = (known * self.item(batch.item + 1)).sum(1) + self.bias
        return Logits(click, branches={'by_item': self.item(batch.item + 1).sum(1)})


def pair_batch(size: int = 5, num_users: int = NUM_USERS, num_items: int = NUM_ITEMS) -> PairBatch:
    generator = torch.Generator().manual_seed(size)

    def draw(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator)

    return PairBatch(
        draw(-1, num_users, size),
        draw(-1, num_items, size),
        (draw(0, 5, size, 3).float(),),
        (draw(0, 5, size, 2).float(),),
        draw(-1, num_items, size, 4),
        draw(-1, num_users, size, 4),
    )


@pytest.fixture(scope='module')
def program() -> Program:
    return Program.export(Shelf().eval(), pair_batch())


def events() -> np.ndarray:
    random = np.random.default_rng(0)
    found = np.zeros(60, EVENT)
    found['user'], found['item'] = (random.integers(0, n, 60) for n in (NUM_USERS, NUM_ITEMS))
    found['time'], found['clicked'] = np.arange(60) + 1000, random.random(60) < 0.5
    return found


def write(root: Path, program: Program | None, **changes: Any) -> Snapshot:
    r"""A snapshot from before the first event."""
    layout = RowLayout(4, {'user': [2], 'item': [3]})
    nodes = {'user': NUM_USERS, 'item': NUM_ITEMS}
    facts: dict[str, Any] = {
        'model': 'shelf',
        'position': 0,
        'checksum': 0,
        'time': 1000,
        'layout': layout,
        'resolutions': {node: ['cluster'] for node in nodes},
        'clusters': {
            'user': np.arange(NUM_USERS)[None] % 2,
            'item': np.arange(NUM_ITEMS)[None] % 3,
        },
        'rows': {node: layout.empty(node, number) for node, number in nodes.items()},
        'hop_2': {},
        'cells': {(0, 0): np.zeros((3, 4, 2), np.int64)},
        'pairs': np.zeros((2, 0), np.int64),
        'id_maps': {
            'user': IdMap(np.array([f'u{n:02}' for n in range(NUM_USERS)])),
            'item': IdMap(np.array([f'i{n}' for n in range(NUM_ITEMS)])),
        },
        'attributes': {'user': {}, 'item': {}},
        'contexts': [],
        'weights': Shelf().state_dict(),
        'program': program,
    }
    return Snapshot.open(write_snapshot(root, **{**facts, **changes}))


@contextmanager
def client_of(ranker: SnapshotRanker) -> Iterator[Any]:
    r"""A client of a server in a thread."""
    pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')
    from server_thread import in_thread

    from mag.online import Client, Server

    with (
        in_thread(Server(ranker, port=0)) as server,
        Client(f'127.0.0.1:{server.port}') as client,
    ):
        yield client


def close_to(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


# ---- any model


@pytest.mark.parametrize('size', [0, 1, 7, 2000])
def test_a_program_is_called_as_its_model(program: Program, size: int) -> None:
    model, batch = Shelf().eval(), pair_batch(size)
    with torch.inference_mode():
        found, expected = program(batch), model(batch)
    close_to(found.click, expected.click)
    close_to(found.branches, expected.branches)
    # A label is not read.
    labelled = batch._replace(label=torch.ones(size))
    assert torch.equal(program(labelled).click, found.click)


def test_other_weights_and_more_nodes_have_the_same_program(program: Program) -> None:
    other = Shelf(NUM_USERS + 30, NUM_ITEMS + 20).eval()
    batch = pair_batch(50, NUM_USERS + 30, NUM_ITEMS + 20)
    assert Program.export(other, batch).content == program.content
    with torch.inference_mode():
        found = Program(program.content, program.facts, other.state_dict())(batch)
        close_to(found.click, other(batch).click)


def test_a_model_of_ones_own_is_served(program: Program, tmp_path: Path) -> None:
    snapshot = write(tmp_path, program)
    assert snapshot.model == 'shelf' and snapshot.batch == 'PairBatch'
    # It is a snapshot as any other.
    assert write(tmp_path, program).path == snapshot.path
    snapshot.verify()
    items = [f'i{n}' for n in range(NUM_ITEMS)] + ['nothing']
    model, end = Shelf().eval(), len(events())
    with SqliteStream(tmp_path / 'events.db') as stream:
        stream.append(events(), 0)
    root, log = str(tmp_path), str(tmp_path / 'events.db')
    ranker = SnapshotLoader(root, log)(Path(snapshot.path).name)
    try:
        with client_of(ranker) as client:
            for user in ('u03', 'u11', 'nobody'):
                ranking = client.rank(user, items, timeout=60)
                assert ranking.position == end
                batch = ranker.scorer.batch(user, items)
                # The last clicks were counted.
                assert user == 'nobody' or bool((batch.user_hops[0].sum() > 0).item())
                with torch.inference_mode():
                    expected = model(batch).click.double().sigmoid()
                found = torch.tensor(np.array(ranking.probability), dtype=torch.double)
                close_to(found, expected)
                branch = ranker.scorer.score(user, items).probabilities['by_item']
                close_to(branch, model(batch).branches['by_item'].double().sigmoid())
    finally:
        ranker.close()


def test_what_is_no_model_to_serve_is_refused(program: Program, tmp_path: Path) -> None:
    model, batch = Shelf().eval(), pair_batch()
    with pytest.raises(ValueError, match='must be in evaluation mode, but Shelf is in training'):
        Program.export(Shelf(), batch)
    with pytest.raises(TypeError, match="'batch' must be a PairBatch or an ExposureBatch, which"):
        Program.export(model, batch.user)
    with pytest.raises(ValueError, match='at least two rows to tell sizes from, but has 1'):
        Program.export(model, pair_batch(1))
    with pytest.raises(TypeError, match='Sequential must return the logits of clicks as a tensor'):
        Program.export(torch.nn.Sequential(torch.nn.Identity()).eval(), batch)
    with pytest.raises(ValueError, match="the weights of another model: \\['bias'\\] are in one"):
        weights = Shelf().state_dict()
        del weights['bias']
        Program(program.content, program.facts, weights)
    with pytest.raises(TypeError, match='The program reads a PairBatch, but got Tensor'):
        program(batch.user)
    with pytest.raises(ValueError, match="but the batch has .*'user_hops.1'"):
        program(batch._replace(user_hops=batch.user_hops * 2))
    with pytest.raises(ValueError, match="snapshot of 'shelf' needs a program: pass program=Pro"):
        write(tmp_path, None)
    with pytest.raises(ValueError, match="'weights' must be those that the program of 'shelf'"):
        write(tmp_path, program, weights={})
    with pytest.raises(ValueError, match='has no program: write it with program=True'):
        load_program(write(tmp_path, None, model='macgnn'))


def test_a_program_that_does_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgetful(Shelf):
        def forward(self, batch: PairBatch) -> Logits:
            told = super().forward(batch).click
            # Where a program is made, and nowhere else.
            return Logits(told + torch.compiler.is_exporting())

    with pytest.raises(RuntimeError, match='another probability of a click than what it was made'):
        Program.export(Forgetful().eval(), pair_batch())


# ---- models of mag


@pytest.mark.parametrize('model', [*CONTEXT])
def test_a_snapshot_with_a_program_is_served_without_its_pipeline(
    model: str, shop: Callable[[str], Any], tmp_path: Path
) -> None:
    pipeline = shop(model)
    path = Path(write_served(pipeline, tmp_path, program=True))
    contents = [file.read_bytes().replace(b'use_pickle', b'') for file in path.iterdir()]
    assert not any(b'pickle' in content for content in contents)
    assert str(Path(__file__).parents[2]).encode() not in (path / 'program.pt2').read_bytes()
    items = [*pipeline._known().raw('item').tolist(), 'nothing']
    log = str(tmp_path / 'events.db')
    load = SnapshotLoader(str(tmp_path), log)
    shutil.move(f'{path}.pipeline', tmp_path / 'elsewhere')
    with pytest.raises(ValueError, match='ends at position 0, but .*, and no pipeline beside it'):
        load(path.name, fill=True)
    with SqliteStream(log) as stream:
        stream.append(pipeline.events(), 0)
    ranker = load(path.name)
    try:
        for user in ('m7', 'm19', 'nobody'):
            found = ranker.rank(user, items, 0, CONTEXT[model] or {}).probability
            expected = pipeline.score(user, items, context=CONTEXT[model])
            close_to(torch.from_numpy(found), expected)
    finally:
        ranker.close()
    # With the pipeline beside it, what a log lacks is appended.
    shutil.move(tmp_path / 'elsewhere', f'{path}.pipeline')
    ranker = SnapshotLoader(str(tmp_path), str(tmp_path / 'other.db'))(path.name, fill=True)
    assert isinstance(ranker.scorer.model, Program)
    assert ranker.scorer.replica.position == len(pipeline.events())
    ranker.close()
    # A log of others is found by its checksum.
    others = pipeline.events()
    others['time'] += 1
    with SqliteStream(tmp_path / 'third.db') as stream:
        stream.append(others, 0)
    shutil.rmtree(f'{path}.pipeline')
    with pytest.raises(ValueError, match='does not have the events that'):
        SnapshotLoader(str(tmp_path), str(tmp_path / 'third.db'))(path.name)


# ---- files of others


def changed(content: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    r"""An archive with other records, written by what writes programs."""
    with PT2ArchiveReader(io.BytesIO(content)) as archive:
        records = {name: archive.read_bytes(name) for name in archive.get_file_names()}
    change(records)
    file = io.BytesIO()
    with PT2ArchiveWriter(file) as archive:
        # It writes some by itself.
        for name in records.keys() - archive.archive_file.get_all_written_records() - OWN:
            archive.write_bytes(name, records[name])
    return file.getvalue()


def in_model(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(records: dict[str, Any]) -> None:
        model = json.loads(records['models/model.json'])
        change(model)
        records['models/model.json'] = json.dumps(model).encode()

    return apply


def node_of(model: dict[str, Any]) -> dict[str, Any]:
    return model['graph_module']['graph']['nodes'][0]


def pickled(name: str) -> Callable[[dict[str, Any]], None]:
    def apply(records: dict[str, Any]) -> None:
        config = json.loads(records[f'data/{name}/model_{name}_config.json'])
        config['config']['x'] = {
            'path_name': 'tensor_0', 'is_param': False, 'use_pickle': True, 'tensor_meta': None,
        }  # fmt: skip
        records[f'data/{name}/model_{name}_config.json'] = json.dumps(config).encode()

    return apply


def with_spec(model: dict[str, Any]) -> None:
    signature = model['graph_module']['module_call_graph'][0]['signature']
    kind, spec = json.loads(signature['in_spec'])
    spec['type'] = 'collections.defaultdict'
    signature['in_spec'] = json.dumps([kind, spec])


def expression(model: dict[str, Any]) -> None:
    r"""What sympy would evaluate."""
    text = json.dumps(model)
    place = re.search(r'"expr_str": "[^"]*"', text)
    assert place is not None
    model |= json.loads(text.replace(place[0], '"expr_str": "__import__(\'os\').getcwd()"'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (in_model(lambda m: node_of(m).update(target='torch.os.system')), 'a call of .torch.os.sy'),
        (in_model(lambda m: node_of(m).update(target='torch.ops.aten.save.default')), 'a call of'),
        (in_model(lambda m: node_of(m).update(target='torch.ops.x.y.default')), 'a call of'),
        (in_model(lambda m: node_of(m).update(target='#x:y')), 'a call of'),
        (in_model(lambda m: node_of(m).update(metadata={'nn_module_stack': 'x'})), 'metadata'),
        (in_model(lambda m: m.update(guards_code=['print(1)'])), 'guards_code'),
        (in_model(lambda m: m['range_constraints'].update({'exit()': {}})), 'the expression'),
        (in_model(expression), 'the expression .*__import__'),
        (in_model(with_spec), 'the in_spec'),
        (pickled('weights'), 'a pickle of weights'),
        (pickled('constants'), 'a pickle of constants'),
        (lambda records: records.update({'data/sample_inputs/model.pt': b'x'}), 'a pickle of inp'),
        (lambda records: records.update({'data/constants/opaque_obj_0': b'x'}), 'a record .data'),
        (lambda records: records.update({'data/aotinductor/model/x.so': b'x'}), 'a record .data'),
    ],
)
def test_a_program_that_could_run_code_is_not_read(
    change: Callable[[dict[str, Any]], None],
    message: str,
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What changes nothing is read.
    Program(changed(program.content, lambda records: None), program.facts, Shelf().state_dict())
    monkeypatch.setattr(torch.export, 'load', lambda *_: pytest.fail('it was read'))
    with pytest.raises(ValueError, match=f'may run code: it has {message}'):
        Program(changed(program.content, change), program.facts, Shelf().state_dict())


@pytest.mark.parametrize('content', [b'', b'PK', b'x' * 999])
def test_what_is_no_program_is_told_so(content: bytes, program: Program) -> None:
    with pytest.raises(ValueError, match='The program is damaged or none'):
        Program(content, program.facts, Shelf().state_dict())
    with pytest.raises(ValueError, match='The program is damaged or none'):
        Program(program.content[:-99], program.facts, Shelf().state_dict())


# ---- native code


def change_facts(path: Path, **facts: Any) -> Snapshot:
    r"""The snapshot, whole, with native code of other facts."""
    manifest = json.loads((path / 'manifest.json').read_text())
    del manifest['checksum']
    manifest['compiled'] |= facts
    (path / 'manifest.json').write_text(json.dumps({**manifest, 'checksum': checksum_of(manifest)}))
    return Snapshot.open(path.rename(path.with_name(_name_of(str(path)))))


def test_native_code_runs_where_it_is_trusted_and_nowhere_else(
    program: Program, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if shutil.which('g++') is None:
        pytest.skip('there is no compiler of C++')
    compiled = program.to_native(pair_batch())
    digest = compiled.facts['sha256']
    snapshot = write(tmp_path, program, compiled=compiled)
    found = load_program(snapshot, [digest])
    for size in (0, 1, 2, 2000):
        batch = pair_batch(size)
        with torch.inference_mode():
            close_to(found(batch).click, Shelf().eval()(batch).click)
    # Others have the same code.
    other = Shelf(NUM_USERS + 30, NUM_ITEMS + 20).eval()
    more = write(tmp_path, program, compiled=compiled, weights=other.state_dict())
    batch = pair_batch(50, NUM_USERS + 30, NUM_ITEMS + 20)
    with torch.inference_mode():
        close_to(load_program(more, [digest])(batch).click, other(batch).click)
    # From here on nothing may be loaded.
    monkeypatch.setattr(programs, '_native', lambda _: pytest.fail('it was loaded'))
    load_program(snapshot)
    with pytest.raises(ValueError, match=f'has the SHA-256 {digest}, and trusted was 0123: it is'):
        load_program(snapshot, ['0123'])
    with pytest.raises(ValueError, match='has no native code to trust: write it with compile=T'):
        load_program(write(tmp_path, program), [digest])
    path = Path(snapshot.path)
    for facts, message in (
        ({'torch': '2.0.0'}, f'is for torch 2.0.0, where {re.escape(torch.__version__)} is: comp'),
        ({'torch': torch.__version__, 'system': 'Plan9 vax'}, 'is for system Plan9 vax, where'),
        ({'system': compiled.facts['system'], 'instructions': ['avx9']}, 'a processor that knows '),
    ):
        snapshot = change_facts(path, **facts)
        path = Path(snapshot.path)
        with pytest.raises(ValueError, match=message):
            load_program(snapshot, [digest])
        caplog.clear()
        assert isinstance(load_program(snapshot, [digest], fall_back=True), Program)
        assert 'the program itself runs' in caplog.text
    snapshot = change_facts(path, program='0', torch=torch.__version__)
    with pytest.raises(ValueError, match='is that of another program'):
        load_program(snapshot, [digest])
    with pytest.raises(ValueError, match="'compiled' must be made of the program of 'shelf'"):
        write(tmp_path, program, compiled=compiled._replace(facts={'program': '0'}))


def test_native_code_that_does_something_else_is_not_written(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile(exported: Any, package_path: str, **_: Any) -> None:
        Path(package_path).write_bytes(b'x')

    def native(content: bytes) -> Any:
        return lambda weights, inputs: [of + 1e-4 for of in program._run(weights, inputs)]

    monkeypatch.setattr(torch._inductor, 'aoti_compile_and_package', compile)
    monkeypatch.setattr(programs, '_native', native)
    with pytest.raises(RuntimeError, match='The compiled program tells another probability'):
        program.to_native(pair_batch())
