r"""A Trainer of one's own does with a task what fit does."""

import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch

from mag.datasets import IdMap
from mag.loader import PairLoader
from mag.training import ClickTask, LightningTask, evaluate, fit, predict

sys.path.insert(0, str(Path(__file__).parent))
from training_run import TinyModel, macro_data  # noqa: E402

pytestmark = pytest.mark.filterwarnings('ignore:.*(does not have many workers|tensorboard).*')


def make_task(task_class: type[ClickTask] = ClickTask) -> ClickTask:
    torch.manual_seed(1)
    return task_class(TinyModel(plain=True), 1e-2, 1e-4)


def make_trainer(directory: Path, **arguments: Any) -> lightning.Trainer:
    return lightning.Trainer(
        default_root_dir=directory, accelerator='cpu', logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False, **arguments,
    )  # fmt: skip


def loaders() -> tuple[PairLoader, PairLoader]:
    return (
        PairLoader(macro_data(505, 1), 20, shuffle=True, seed=3),
        PairLoader(macro_data(301, 2), 50),
    )


def test_a_trainer_trains_validates_tests_and_predicts(tmp_path: Path) -> None:
    trainer, module = make_trainer(tmp_path, max_epochs=2), LightningTask(make_task())
    train_loader, val_loader = loaders()
    trainer.fit(module, train_loader, val_loader)
    values = evaluate(module, val_loader)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert {
        name.removeprefix('val_'): value for name, value in logged.items() if 'val' in name
    } == (pytest.approx(values, abs=1e-6))
    assert logged['train_loss'] > 0
    (tested,) = trainer.test(module, val_loader, verbose=False)
    assert tested == pytest.approx({f'test_{n}': v for n, v in values.items()}, abs=1e-6)
    batches = trainer.predict(module, val_loader)
    predicted = torch.cat([batch['click'] for batch in batches])
    torch.testing.assert_close(predicted, predict(module, val_loader)['click'])
    assert values['auc'] > 0.6


def test_a_trainer_steps_as_fit_does(tmp_path: Path) -> None:
    trainer, module = make_trainer(tmp_path, max_epochs=1), LightningTask(make_task())
    trainer.fit(module, *loaders())
    task = make_task()
    fit(
        task, *loaders(), directory=tmp_path / 'run', max_epochs=1, progress=False,
        accelerator='cpu',
    )  # fmt: skip
    for name, value in task.state_dict().items():
        torch.testing.assert_close(module.task.state_dict()[name], value)


class Scheduled(ClickTask):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), self.learning_rate)
        return optimizer, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def test_a_schedule_advances_after_each_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=1, limit_train_batches=3)
    trainer.fit(LightningTask(make_task(Scheduled)), *loaders())
    assert trainer.optimizers[0].param_groups[0]['lr'] == 1e-2 / 8


def test_only_tasks_are_wrapped() -> None:
    with pytest.raises(TypeError, match=r'such as ClickTask\(model\), but got TinyModel'):
        LightningTask(TinyModel())  # type: ignore[arg-type]


def test_loaders_and_checkpoints_of_another_log_are_refused(tmp_path: Path) -> None:
    users, others = IdMap(range(9)), IdMap(list('abc'))

    def task_of(id_map: IdMap) -> LightningTask:
        task = make_task()
        task.model.id_maps = {'user': id_map.lineage}  # type: ignore[assignment]
        return LightningTask(task)

    def loader_of(id_map: IdMap) -> PairLoader:
        data = macro_data(101, 1)
        data.id_maps = {'user': id_map.lineage}
        return PairLoader(data, 20)

    own, grown, other = (loader_of(m) for m in (users, users.extend([10]), others))
    trainer, module = make_trainer(tmp_path, max_epochs=1), task_of(users)
    trainer.fit(module, own, grown)
    trainer.save_checkpoint(tmp_path / 'model.ckpt')
    message = f'^TinyModel was built for the users of the id map {users.fingerprint}, but the Train'
    for act in ('fit', 'validate', 'test', 'predict'):
        with pytest.raises(ValueError, match=message):
            getattr(make_trainer(tmp_path, max_epochs=1), act)(module, other)
    with pytest.raises(ValueError, match='^The checkpoint is for the users of the id map 9:.* but'):
        trainer.validate(task_of(others), other, ckpt_path=tmp_path / 'model.ckpt')
    trainer.validate(task_of(users.extend([10])), own, ckpt_path=tmp_path / 'model.ckpt')
