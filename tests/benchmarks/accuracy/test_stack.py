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

    monkeypatch.setattr(stack, 'LEARNING_RATES', (1e-2,))
    monkeypatch.setattr(stack, 'WEIGHT_DECAYS', dict.fromkeys(('market', 'movielens-1m'), (1e-5,)))
    monkeypatch.setattr(flip_training, 'EPOCHS', 1)
    monkeypatch.setattr(flip_training, 'CHANNELS', 8)


def read(args: argparse.Namespace) -> list[dict[str, Any]]:
    return json.loads(Path(args.out).read_text())


def test_stacks_are_tuned_run_and_compared(
    root: Path, small: None, arguments: Callable[..., argparse.Namespace]
) -> None:
    from accuracy import stack

    models = ['counts', 'macgnn_flip', 'macgnn_flip_simcen']
    args = arguments('movielens-1m', models, batch_size=1024, jobs=1)
    stack.run(args)
    records = read(args)
    runs = [record for record in records if record['purpose'] == 'run']
    assert len(runs) == 2 * len(models) and len(records) == 3 * len(models)
    values = {record['model']: record['test']['logloss'] for record in runs if record['seed'] == 0}
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
    runs = {record['model']: record for record in read(args) if record['purpose'] == 'run'}
    assert set(runs) == {'counts', 'counts_simcen', 'student_of_two'}
    assert taught == [pytest.approx(runs['counts_simcen']['test'])]
    assert runs['student_of_two']['test'] != runs['counts']['test']
