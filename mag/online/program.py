r"""Models without their Python code."""

import hashlib
import io
import json
import logging
import os.path as osp
import platform
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.nn import Embedding, Module

from mag.loader import ExposureBatch, PairBatch
from mag.logits import Logits, as_logits, probabilities
from mag.online.snapshot import Snapshot

#: What a program may read.
BATCHES: dict[str, Any] = {of.__name__: of for of in (PairBatch, ExposureBatch)}
# What follows an exposure is known to no request.
_LATER = ('label', 'conversion', 'behavior')
_SIZES = (0, 1, 3, 2000)
_TOLERANCE = 1e-6
# Rows of a program's example: a number that nothing else has.
_EXAMPLE = 97
_INSTRUCTIONS = re.compile(
    r'avx\w*|amx\w*|sse\w*|ssse3|pni|fma4?|f16c|bmi\d|abm|adx|aes|vaes|v?pclmulqdq|gfni|sha_ni|'
    r'popcnt|movbe|rdrnd|rdseed|lahf_lm|xop|asimd\w*|sve\w*|bf16|i8mm|fp|fphp|atomics|crc32'
)
_LOGGER = logging.getLogger(__name__)
_Run = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


class Compiled(NamedTuple):
    r"""Native code of a :class:`Program`, and for what it is.

    Attributes:
        content (bytes): The package of AOTInductor.
        facts (dict[str, Any]): The :obj:`"sha256"` of the package and of the :obj:`"program"`, the
            version of :obj:`"torch"`, and what it asks of a processor.
    """

    content: bytes
    facts: dict[str, Any]


class Program(Module):
    r"""What a model does, as a program of :func:`torch.export.export`, to be called as the model
    is. It runs where there is PyTorch and the class of its batches, and no code of the model.

    .. code-block:: python

        program = Program.export(model, batch)
        program(batch)                                   # as model(batch)
        path = write_snapshot('snapshots/', program=program, weights=model.state_dict(), ...)
        program = load_program(Snapshot.open(path))      # another process

    Weights are inputs of the program and no part of it. So one program serves all weights of an
    architecture; the tables of embeddings may have other numbers of rows, unless the model says
    otherwise, as one with a number of its macro nodes does.

    Reading a program runs nothing that is in it. :func:`torch.export.load` alone would: it
    unpickles, evaluates text and takes whatever function a file names. So what is not the plain
    product of :meth:`export` is refused before: pickles, text that is no sum or product of sizes,
    and functions other than the core operators of PyTorch, which compute and do nothing else.

    Args:
        content (bytes): The program, as it is in a file.
        facts (Mapping[str, Any]): What :attr:`facts` of the exported one said.
        weights (Mapping[str, torch.Tensor]): The weights, by their names in the model.

    Attributes:
        content (bytes): The program, as it is in a file.
        facts (dict[str, Any]): As values of JSON, the name of the class of its batches, and of its
            inputs, weights and outputs.
        weights (tuple[torch.Tensor, ...]): The weights in the order of the program.

    Raises:
        ValueError: If it is no such program, or the weights are those of another model.
    """

    def __init__(
        self, content: bytes, facts: Mapping[str, Any], weights: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.content, self.facts = content, dict(facts)
        names = self.facts['weights']
        if set(names) != set(weights):
            different = sorted(set(names) ^ set(weights))
            raise ValueError(
                f'The program takes the weights of another model: {different[:5]} are in one of '
                f'them alone.'
            )
        self.weights = tuple(weights[name].detach() for name in names)
        exported = _read(content)
        self._grown = _grown(exported, len(names))
        graph = exported.module(check_guards=False)
        # As a module of this one it would refuse to change its mode.
        self._run: _Run = lambda weights, inputs: graph(weights, inputs)
        self.eval()

    @property
    def fingerprint(self) -> str:
        r"""The SHA-256 of the program, which that of other weights shares."""
        return hashlib.sha256(self.content).hexdigest()

    @classmethod
    def export(cls, model: Module, batch: Any) -> 'Program':
        r"""The program of a model, which is compared with it on requests of 0 to 2,000 rows that
        are drawn from the rows of a batch, and with other weights and longer tables.

        Args:
            model (torch.nn.Module): Any that reads a :class:`~mag.loader.PairBatch` or an
                :class:`~mag.loader.ExposureBatch` and returns logits of clicks, or
                :class:`~mag.logits.Logits`, in evaluation mode.
            batch (PairBatch or ExposureBatch): What it reads of at least two rows.

        Raises:
            RuntimeError: If the program does not agree with the model to 1e-6.
            TypeError: If the batch or what the model returns is something else.
            ValueError: If the model is in training mode, or the batch has fewer rows.
        """
        if type(batch) not in BATCHES.values():
            raise TypeError(
                f"'batch' must be a {' or an '.join(BATCHES)}, which servers make, but got "
                f'{type(batch).__name__}.'
            )
        if model.training:
            raise ValueError(
                f"'model' must be in evaluation mode, but {type(model).__name__} is in training "
                f'mode: call model.eval().'
            )
        if len(batch.user) < 2:
            raise ValueError(
                f"'batch' must have at least two rows to tell sizes from, but has "
                f'{len(batch.user)}.'
            )
        flat = _Flat(model, batch)
        weights = {name: value.detach() for name, value in model.state_dict().items()}
        inputs = tuple(_inputs(batch).values())
        with torch.no_grad():
            outputs = list(_outputs(flat.logits(tuple(weights.values()), inputs)))
        # Tables of what has a number of its own grow with it, where the model lets them.
        tables = {
            f'{name}.weight' for name, of in model.named_modules() if isinstance(of, Embedding)
        }
        exported = _export(flat, list(weights.values()), inputs, [of in tables for of in weights])
        # Again, with sizes that no file tells apart.
        rows = torch.arange(_EXAMPLE) % len(batch.user)
        inputs = tuple(value[rows] for value in inputs)
        grown = _grown(exported, len(weights))
        example = [
            value.new_empty(_EXAMPLE, *value.shape[1:]) if is_grown else value
            for value, is_grown in zip(weights.values(), grown, strict=True)
        ]
        exported = _export(flat, example, inputs, grown)
        facts = {
            'batch': type(batch).__name__,
            'inputs': list(_inputs(batch)),
            'weights': list(weights),
            'outputs': outputs,
        }
        program = cls(_written(exported), facts, weights)
        _verify(program._run, flat, program, batch, 'The exported program')
        return program

    def to_native(self, batch: Any) -> 'Compiled':
        r"""The package of AOTInductor, native code for processors such as this one, which takes a
        minute and a compiler of C++. It is compared with the program as :meth:`export` does.

        Args:
            batch (PairBatch or ExposureBatch): What the model reads of at least two rows.

        Raises:
            RuntimeError: If it cannot be compiled, or does not agree with the program to 1e-6.
        """
        exported = _read(self.content)
        exported.example_inputs = (self.weights, tuple(_inputs(batch).values())), {}
        with tempfile.TemporaryDirectory(prefix='mag-compile-') as folder:
            path = osp.join(folder, 'compiled.pt2')
            with warnings.catch_warnings(), torch.no_grad():
                warnings.filterwarnings('ignore', category=UserWarning)
                warnings.filterwarnings('ignore', category=FutureWarning)
                # A request has one thread.
                torch._inductor.aoti_compile_and_package(
                    exported, package_path=path, inductor_configs={'cpp.threads': 1}
                )
            with open(path, 'rb') as file:
                content = file.read()
        _verify(_native(content), self._run, self, batch, 'The compiled program')
        return Compiled(
            content,
            {
                'sha256': hashlib.sha256(content).hexdigest(),
                'program': self.fingerprint,
                **_processor(),
            },
        )

    def forward(self, batch: Any) -> Logits:
        r"""
        Args:
            batch (PairBatch or ExposureBatch): What the model reads.

        Raises:
            TypeError: If the batch is of another kind.
            ValueError: If it has other inputs than the program reads.
        """
        if type(batch).__name__ != self.facts['batch']:
            raise TypeError(
                f'The program reads a {self.facts["batch"]}, but got {type(batch).__name__}.'
            )
        inputs = _inputs(batch)
        if list(inputs) != self.facts['inputs']:
            raise ValueError(
                f'The program reads {self.facts["inputs"]}, but the batch has {list(inputs)}.'
            )
        found = self._run(self.weights, tuple(inputs.values()))
        return _logits(dict(zip(self.facts['outputs'], found, strict=True)))

    def extra_repr(self) -> str:
        return f'{self.facts["batch"]}'


def load_program(
    snapshot: Snapshot, trust_compiled: Sequence[str] = (), fall_back: bool = False
) -> Program:
    r"""The program of a snapshot with its weights, as a :class:`Scorer` takes it.

    .. code-block:: python

        scorer = Scorer(snapshot, replica, load_program(snapshot))

    Args:
        snapshot (Snapshot): One that was written with a program.
        trust_compiled (Sequence[str], optional): The SHA-256 of native code to run, each as
            whoever built it has told. Such code can do all that this process can: it is loaded
            only if its hash is one of these. Without any, the program itself runs.
            (default: :obj:`()`)
        fall_back (bool, optional): If set to :obj:`True`, the program itself runs where the native
            code is for another processor or version of PyTorch, which is logged as a warning.
            (default: :obj:`False`)

    Raises:
        ValueError: If the snapshot has no program, no native code that is trusted, or one for
            another processor or version of PyTorch.
    """
    facts = snapshot.manifest['program']
    if facts is None:
        raise ValueError(f'{snapshot!r} has no program: write it with program=True.')
    program = Program(snapshot.read('program.pt2'), facts, snapshot.weights())
    if not trust_compiled:
        return program
    facts = snapshot.manifest['compiled']
    if facts is None:
        raise ValueError(f'{snapshot!r} has no native code to trust: write it with compile=True.')
    content = snapshot.read('compiled.pt2')
    # The hash is that of what is loaded, whatever a manifest says.
    if (found := hashlib.sha256(content).hexdigest()) not in trust_compiled:
        raise ValueError(
            f'The native code of {snapshot!r} has the SHA-256 {found}, and trusted was '
            f'{" and ".join(trust_compiled)}: it is not loaded. Ask whoever built it for its hash.'
        )
    here = _processor()
    if facts['program'] != program.fingerprint:
        raise ValueError(f'The native code of {snapshot!r} is that of another program.')
    wrong = [name for name in ('torch', 'system') if facts[name] != here[name]]
    lacking = sorted(set(facts['instructions']) - set(here['instructions']))
    if wrong or lacking:
        told = [f'{name} {facts[name]}, where {here[name]} is' for name in wrong]
        told += [f'a processor that knows {", ".join(lacking)}'] if lacking else []
        reason = f'The native code of {snapshot!r} is for {" and for ".join(told)}'
        if not fall_back:
            raise ValueError(f'{reason}: compile it here, or let the program itself run.')
        _LOGGER.warning('%s: the program itself runs.', reason)
        return program
    program._run = _native(content)
    return program


class _Flat(Module):
    r"""A model as a function of its weights and its inputs, of which it holds none.

    Args:
        model: The model.
        batch: One of those that it reads.
    """

    def __init__(self, model: Module, batch: Any) -> None:
        super().__init__()
        # A module of its own would bring its weights.
        self.__dict__['model'] = model
        self.names = list(model.state_dict())
        self.batch, self.inputs = type(batch), list(_inputs(batch))

    def logits(self, weights: Sequence[Tensor], inputs: Sequence[Tensor]) -> Logits:
        fields: dict[str, Any] = {}
        for name, value in zip(self.inputs, inputs, strict=True):
            field, _, is_one_of_many = name.partition('.')
            if is_one_of_many:
                fields[field] = (*fields.get(field, ()), value)
            else:
                fields[field] = value
        given = dict(zip(self.names, weights, strict=True))
        model = self.__dict__['model']
        # Those that are one in the model may come as several.
        found = functional_call(model, given, (self.batch(**fields),), tie_weights=False)
        return as_logits(type(model).__name__, found)

    def forward(
        self, weights: tuple[Tensor, ...], inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        return tuple(_outputs(self.logits(weights, inputs)).values())


def _export(
    flat: _Flat, weights: list[Tensor], inputs: tuple[Tensor, ...], may_grow: list[bool]
) -> torch.export.ExportedProgram:
    r"""The program for any number of rows, of inputs and of the weights that may grow, as far as
    it is the same for them."""
    size = torch.export.Dim('batch')
    shapes = (
        tuple({0: torch.export.Dim.AUTO} if grows else None for grows in may_grow),
        tuple({0: size} for _ in inputs),
    )
    with warnings.catch_warnings(), torch.no_grad():
        # They tell of what PyTorch does to itself.
        warnings.filterwarnings('ignore', category=UserWarning)
        warnings.filterwarnings('ignore', category=FutureWarning)
        exported = torch.export.export(flat, (tuple(weights), inputs), dynamic_shapes=shapes)
        # Guards are text that is evaluated, and wrong in torch 2.13: _verify looks in their place.
        exported._guards_code = []
        exported = exported.run_decompositions()
        exported._guards_code = []
        return exported


def _grown(exported: torch.export.ExportedProgram, num_weights: int) -> list[bool]:
    r"""Which weights may have any number of rows."""
    sizes = {
        node.name: node.meta['val'].shape for node in exported.graph.find_nodes(op='placeholder')
    }
    # They come first among what it is given.
    given = exported.graph_signature.user_inputs[:num_weights]
    return [not all(map(is_concrete_int, sizes[str(of)][:1])) for of in given]


def _inputs(batch: Any) -> dict[str, Tensor]:
    r"""The tensors of a batch by their names."""
    found: dict[str, Tensor] = {}
    for name, value in zip(batch._fields, batch, strict=True):
        if isinstance(value, Tensor) and name not in _LATER:
            found[name] = value
        elif isinstance(value, tuple):
            found |= {f'{name}.{place}': of for place, of in enumerate(value)}
    return found


def _outputs(logits: Logits) -> dict[str, Tensor]:
    r"""What probabilities are made of, by name."""
    named = {name: getattr(logits, name) for name in ('click', 'conversion', 'both')}
    named |= {f'branches.{name}': of for name, of in (logits.branches or {}).items()}
    return {name: value for name, value in named.items() if value is not None}


def _logits(outputs: Mapping[str, Tensor]) -> Logits:
    prefix = 'branches.'
    branches = {
        name.removeprefix(prefix): of for name, of in outputs.items() if name.startswith(prefix)
    }
    named = {name: of for name, of in outputs.items() if not name.startswith(prefix)}
    return Logits(**named, branches=branches or None)  # type: ignore[arg-type]


def _verify(run: _Run, reference: _Run, program: Program, batch: Any, what: str) -> None:
    r"""Raises unless both agree on requests that are drawn from the rows of a batch."""
    generator = torch.Generator().manual_seed(0)
    example = _inputs(batch)

    def draw(size: int) -> tuple[Tensor, ...]:
        # What is counted is more of one row than of another.
        factor = torch.randint(0, 4, (size,), generator=generator)
        drawn = []
        for value in example.values():
            row = torch.randint(0, len(value), (size,), generator=generator)
            rows = value[row]
            if rows.is_floating_point():
                rows = rows * factor.view(-1, *(1 for _ in rows.shape[1:]))
            drawn.append(rows)
        return tuple(drawn)

    def others(weight: Tensor, longer: bool) -> Tensor:
        if not weight.is_floating_point():
            return weight
        # A variance stays above 0.
        factor = 0.5 + torch.rand(weight.shape, generator=generator)
        found = weight * factor.to(weight.dtype)
        return torch.cat([found, found[:1].expand(7, *found.shape[1:])]) if longer else found

    other = tuple(
        others(weight, is_grown)
        for weight, is_grown in zip(program.weights, program._grown, strict=True)
    )
    for size in _SIZES:
        for weights in (program.weights, other):
            inputs = draw(size)
            with torch.inference_mode():
                one, two = (
                    probabilities(_logits(dict(zip(program.facts['outputs'], found, strict=True))))
                    for found in (run(weights, inputs), reference(weights, inputs))
                )
            for name, value in one.items():
                away = (value - two[name]).abs().max().item() if size else 0.0
                if value.shape != two[name].shape or not away <= _TOLERANCE:
                    raise RuntimeError(
                        f'{what} tells another probability of a {name} than what it was made of: '
                        f'by {away:.2g} of {size} rows, where {_TOLERANCE} is allowed. It is of '
                        f'no use: serve the model itself, and tell us.'
                    )


def _written(exported: torch.export.ExportedProgram) -> bytes:
    r"""The archive, without rows of the log and paths of this machine."""
    exported.example_inputs = None
    for module in exported.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta = {name: of for name, of in node.meta.items() if name == 'val'}
    file = io.BytesIO()
    torch.export.save(exported, file)
    return file.getvalue()


@cache
def _processor() -> dict[str, Any]:
    r"""What native code is made for here."""
    with open('/proc/cpuinfo', encoding='utf-8') as file:
        flags = re.search(r'^(?:flags|Features)\s*:(.*)$', file.read(), re.MULTILINE)
    # Others tell of what the kernel does and not of what a compiler may use.
    known = _INSTRUCTIONS.fullmatch
    return {
        'torch': torch.__version__,
        'system': f'{platform.system()} {platform.machine()}',
        'instructions': sorted(filter(known, flags[1].split())) if flags else [],
    }


def _native(content: bytes) -> _Run:
    r"""Loads native code, which then is part of this process."""
    with tempfile.TemporaryDirectory(prefix='mag-compiled-') as folder:
        path = osp.join(folder, 'compiled.pt2')
        with open(path, 'wb') as file:
            file.write(content)
        loader = torch._inductor.aoti_load_package(path).loader
    return lambda weights, inputs: loader.boxed_run([*weights, *inputs])


# The records of an archive that has no pickle.
_RECORDS = {
    'archive_format', 'archive_version', 'byteorder', '.data/version', '.data/serialization_id',
    'models/model.json', 'data/sample_inputs/model.pt',
    'data/weights/model_weights_config.json', 'data/constants/model_constants_config.json',
}  # fmt: skip
_CONSTANT = re.compile(r'data/constants/(tensor_\d+)')
# Text that is evaluated: sums and products of sizes.
_EXPRESSION = re.compile(r"(?:[\w\s(),='*+/<>-]|\.(?=\d))*")
_WORD = re.compile(
    r's\d+|u\d+|\d+|Symbol|Integer|Mul|Add|Pow|Max|Min|FloorDiv|CeilDiv|Mod|PythonMod|'
    r'positive|integer|nonnegative|True|False'
)
_SCALARS = re.compile(
    r'_operator\.(?:add|sub|mul|floordiv|mod|neg|eq|ne|lt|le|gt|ge|getitem|and_|or_)|'
    r'torch\.sym_(?:max|min|not)|math\.(?:ceil|floor|trunc)'
)
# They compute nothing, or as the core operators do.
_OTHERS = {
    'torch.ops.aten._assert_scalar.default',
    'torch.ops.aten._assert_tensor_metadata.default',
}
_NODES = {None, 'builtins.tuple', 'builtins.list', 'builtins.dict'}


def _read(content: bytes) -> torch.export.ExportedProgram:
    r"""The program in an archive, if reading it runs nothing.

    Raises:
        ValueError: If it may, or is no program that can be read here.
    """
    from torch.export.pt2_archive import PT2ArchiveReader

    try:
        # By the very reader that reads it then.
        with PT2ArchiveReader(io.BytesIO(content)) as archive:
            wrong = next(_wrong(archive), None)
    except Exception as error:
        raise ValueError(f'The program is damaged or none: {_first(error)}') from error
    if wrong is not None:
        raise ValueError(
            f'The program is not read, as it may run code: it has {wrong}, which no program of '
            f'mag has.'
        )
    try:
        return torch.export.load(io.BytesIO(content))
    except Exception as error:
        raise ValueError(
            f'The program cannot be read by torch {torch.__version__}: {_first(error)}. Export it '
            f'again by this version.'
        ) from error


def _first(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}{f": {lines[0]}" if lines else ""}'


def _wrong(archive: Any) -> Iterator[str]:
    r"""What of an archive could run code when it is read or called."""
    names = archive.get_file_names()
    if len({*names}) < len(names):
        yield 'two records of one name'
    for name in names:
        if name not in _RECORDS and not _CONSTANT.fullmatch(name):
            yield f'a record {name!r}'
    if archive.read_bytes('data/sample_inputs/model.pt'):
        yield 'a pickle of inputs'
    for name in ('weights', 'constants'):
        config = json.loads(archive.read_bytes(f'data/{name}/model_{name}_config.json'))
        for of in config['config'].values():
            if of['use_pickle'] or not _CONSTANT.fullmatch(f'data/constants/{of["path_name"]}'):
                yield f'a pickle of {name}'
    yield from _wrong_values(json.loads(archive.read_bytes('models/model.json')))


def _wrong_values(value: Any, key: str = '') -> Iterator[str]:
    if isinstance(value, list):
        for of in value:
            yield from _wrong_values(of, key)
    elif isinstance(value, dict):
        for name, of in value.items():
            yield from _wrong_values(of, name)
    if key == 'target' and not _is_pure(value):
        yield f'a call of {value!r}'
    elif key in ('expr_str', 'range_constraints') and not _is_expression(value):
        yield f'the expression {value!r}'
    elif key in ('metadata', 'guards_code') and value:
        yield f'{key}'
    elif key in ('as_operator', 'as_graph', 'as_custom_obj') and value is not None:
        yield f'an argument {key!r}'
    elif key in ('in_spec', 'out_spec') and value and not _is_plain(json.loads(value)[1]):
        yield f'the {key} {value!r}'


def _is_pure(target: Any) -> bool:
    if not isinstance(target, str) or target in _OTHERS or _SCALARS.fullmatch(target):
        return isinstance(target, str)
    if not re.fullmatch(r'torch\.ops\.aten\.\w+\.\w+', target):
        return False
    name, overload = target.split('.')[3:]
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    return isinstance(found, torch._ops.OpOverload) and torch.Tag.core in found.tags


def _is_expression(value: Any) -> bool:
    texts = value if isinstance(value, dict) else [value]
    return all(
        isinstance(text, str)
        and _EXPRESSION.fullmatch(text) is not None
        and all(map(_WORD.fullmatch, re.findall(r'\w+', text)))
        for text in texts
    )


def _is_plain(spec: Any) -> bool:
    return (
        spec['type'] in _NODES
        and '__enum__' not in (spec['context'] or '')
        and all(map(_is_plain, spec['children_spec']))
    )
