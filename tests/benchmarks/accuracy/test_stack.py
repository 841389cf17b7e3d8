import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Not importorskip: that import of deepctr_torch asks PyPI for a newer version.
if not all(find_spec(name) for name in ('deepctr_torch', 'lightgbm', 'tokenizers')):
    pytest.skip(
        "the benchmark needs 'pip install pyg-mag[benchmarks,text]'", allow_module_level=True
    )
from accuracy.click_bench import make_loader, parts_of  # noqa: E402
from accuracy.count_data import load_parts, save_parts  # noqa: E402

from mag.training import evaluate  # noqa: E402


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, small_groups: None) -> None:
    from accuracy import flip_training, stack

    monkeypatch.setattr(stack, 'LEARNING_RATES', {'market': (1e-2, 1e-5)})
    monkeypatch.setattr(flip_training, 'EPOCHS', 1)
    monkeypatch.setattr(flip_training, 'CHANNELS', 8)


def read(args: argparse.Namespace) -> list[dict[str, Any]]:
    return json.loads(Path(args.out).read_text())


def test_stacks_are_run_and_compared(
    root: Path, small: None, arguments: Callable[..., argparse.Namespace]
) -> None:
    from accuracy import stack

    models = ['counts', 'macgnn_flip', 'macgnn_flip_simcen']
    args = arguments('movielens-1m', models, batch_size=1024, jobs=1)
    stack.run(args)
    records = read(args)
    # Where all take one rate, nothing is tried.
    assert {record['purpose'] for record in records} == {'run'}
    assert len(records) == 2 * len(models)
    runs = [record for record in records if record['seed'] == 0]
    values = {run['model']: run['test']['logloss'] for run in runs}
    assert len(set(values.values())) == len(models)
    # Counts alone can be fresh.
    assert {run['model'] for run in runs if 'fresh' in run} == {'counts'}
    text = '\n'.join(stack.render(records))
    assert '- That SimCEN helps MacGNN + FLIP ' in text
    assert '| MacGNN + FLIP + SimCEN | ' in text
    stack.run(args)
    assert read(args) == records


def test_a_stack_teaches_as_it_was_trained(
    market: str, small: None, arguments: Callable[..., argparse.Namespace],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from accuracy import stack

    taught: list[dict[str, float]] = []

    class Watched(stack.DistillationTask):
        def __init__(self, student: Any, teacher: Any, **others: Any) -> None:
            taught.append(evaluate(teacher, test))
            super().__init__(student, teacher, **others)

    # FLIP is left out, as the log has no texts, and so is what it teaches.
    models = ['student', 'student_of_two', 'counts', 'flip', 'counts_flip', 'counts_simcen']
    args = arguments(market, models, batch_size=512, jobs=1, seeds=1)
    path = save_parts(market, 'rolling', '', args.checkpoints)
    model = stack.MODELS['counts_simcen']
    test = make_loader(model, parts_of(model, load_parts(path))['test'], 512)
    monkeypatch.setattr(stack, 'DistillationTask', Watched)
    stack.run(args)
    records = read(args)
    tuned = [record for record in records if record['purpose'] == 'tune']
    assert sorted(record['model'] for record in tuned) == ['counts'] * 2 + ['counts_simcen'] * 2
    assert not any('test' in record for record in tuned)
    runs = {record['model']: record for record in records if record['purpose'] == 'run'}
    assert set(runs) == {'counts', 'counts_simcen', 'student_of_two'}
    assert taught == [pytest.approx(runs['counts_simcen']['test'])]
    assert runs['student_of_two']['test'] != runs['counts']['test']
    assert runs['student_of_two']['setting'] == runs['counts']['setting']


def test_a_student_without_its_teacher_is_refused(
    market: str, small: None, arguments: Callable[..., argparse.Namespace]
) -> None:
    from accuracy import stack

    args = arguments(market, ['student_of_two'], batch_size=512, jobs=1, seeds=1)
    with pytest.raises(ValueError, match='1 runs wait for a teacher .* name it in --models'):
        stack.run(args)
