import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureLoader
from mag.models import FLIP
from mag.nn import DeepCross
from mag.training import AlignmentTask, ClickTask, evaluate, fit
from mag.transforms import FieldText

CLICKS = ('user', 'clicks', 'item')
LOSSES = ('instance_contrast', 'masked_id', 'masked_token')


class Words(torch.nn.Module):
    r"""An encoder of words, each of which looks at all others."""

    channels, max_length = 16, 40

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.word = torch.nn.Embedding(num_tokens, 16)
        self.place = torch.nn.Embedding(self.max_length, 16)
        self.attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, tokens: Tensor, is_token: Tensor) -> Tensor:
        x = self.word(tokens) + self.place.weight[: tokens.size(1)]
        return x + self.attention(x, x, x, key_padding_mask=~is_token, need_weights=False)[0]


def log() -> HeteroData:
    r"""A log of 300 exposures whose users and items are told in words."""
    generator = torch.Generator().manual_seed(0)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 20, 15
    data['user'].group, data['user'].num_group = torch.arange(20) % 3, 3
    data['item'].category, data['item'].num_category = torch.arange(15) % 4, 4
    user, item = (torch.randint(high, (300,), generator=generator) for high in (20, 15))
    clicks = data[CLICKS]
    clicks.edge_label_index = clicks.edge_index = torch.stack([user, item])
    clicks.edge_label = (user % 4 == item % 4).float()
    clicks.edge_label_time = clicks.time = torch.arange(300)
    return FieldText(vocab_size=80)(data)


def make(data: HeteroData, seed: int = 0, **kwargs: Any) -> FLIP:
    torch.manual_seed(seed)
    encoder = Words(data[CLICKS].num_tokens)
    small = DeepCross(4, 8, (16,), num_layers=1, num_experts=2, rank=4)
    kwargs = {'sentence': 'node', 'embedding_dim': 8, **kwargs}
    return FLIP.from_data(data, text_encoder=encoder, id_encoder=small, **kwargs)


def loaders(data: HeteroData, batch_size: int = 50) -> tuple[ExposureLoader, ExposureLoader]:
    return ExposureLoader(data, batch_size, shuffle=True), ExposureLoader(data, 200)


def align(data: HeteroData, directory: Path | None = None, **kwargs: Any) -> AlignmentTask:
    task = AlignmentTask(make(data), 1e-2, num_steps=kwargs.pop('num_steps', None))
    arguments = {'max_epochs': 3, 'monitor': 'loss', 'progress': False, 'accelerator': 'cpu'}
    fit(task, *loaders(data), directory=directory, **{**arguments, **kwargs})
    return task


def weights(task: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in task.parameters()])


def test_it_learns_what_ids_and_words_have_in_common() -> None:
    data = log()
    _, val = loaders(data)
    before = evaluate(AlignmentTask(make(data)), val)
    assert list(before) == ['loss', *LOSSES]
    assert before['loss'] == pytest.approx(sum(before[name] for name in LOSSES))
    task = AlignmentTask(make(data, projection_dropout=0.0), 1e-2)
    # Ids near 0, as in the paper, would take more steps than a test has.
    torch.nn.init.normal_(task.model.embedding.weight)
    fit(task, *loaders(data), max_epochs=40, patience=40, monitor='loss', progress=False)
    after = evaluate(task, val)
    for name in LOSSES:
        assert after[name] < 0.5 * before[name], name
    # The contrast knows twenty times as much of a row as chance, log(200).
    assert after['instance_contrast'] < math.log(200 / 20)
    # Chance finds one of the four categories in a quarter of the rows.
    batch = next(iter(val))
    model = task.model.eval()
    for text in ('none', 'all'):
        found = model.recover(batch, 'item_category', text=text).argmax(1)
        assert (found == batch.item % 4).float().mean() > 0.5, text


def test_the_loss_is_the_sum_of_those_that_are_asked_for() -> None:
    data = log()
    model, batch = make(data), next(iter(loaders(data)[0]))
    model.eval()
    torch.manual_seed(1)
    parts = model.pretraining_losses(batch)
    torch.manual_seed(1)
    total = AlignmentTask(model).eval().loss(batch)
    torch.testing.assert_close(total, sum(value for value, _ in parts.values()))
    for name in LOSSES:
        task = AlignmentTask(model, losses=[name])
        assert set(task.modes) == {'loss', name}
        values = evaluate(task, loaders(data)[1])
        assert values['loss'] == values[name]


def test_a_measure_is_the_mean_over_entries() -> None:
    data = log()
    task, val = AlignmentTask(make(data)).eval(), ExposureLoader(data, 120)
    scores = [task.score(batch) for batch in val]
    contrast = [value[0, 0].item() for value, _ in scores]
    expected = (120 * contrast[0] + 120 * contrast[1] + 60 * contrast[2]) / 300
    assert evaluate(task, val)['instance_contrast'] == pytest.approx(expected)
    assert [count[0, :2].tolist() for _, count in scores] == [[120, 120], [120, 120], [60, 60]]
    # Nothing to lose is no loss.
    none = task.measure([(torch.zeros(1, 3).double(), torch.zeros(1, 3).long())], CPU)
    assert none == dict.fromkeys(('loss', *LOSSES), 0.0)


CPU = torch.device('cpu')


def test_masks_of_validation_are_fixed_and_those_of_training_are_not() -> None:
    data = log()
    task, (train, val) = AlignmentTask(make(data)), loaders(data)
    assert evaluate(task, val) == evaluate(task, val)
    assert evaluate(task, val) != evaluate(AlignmentTask(task.model, seed=1), val)
    task.eval()
    batch = next(iter(train))
    assert task.loss(batch) != task.loss(batch)


class FailAt:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, step: int) -> None:
        if step == self.step:
            raise RuntimeError('failed on purpose')


def test_a_run_that_failed_goes_on_with_the_masks_that_it_would_have_drawn(tmp_path: Path) -> None:
    data = log()
    whole = align(data, num_steps=18)
    assert torch.equal(weights(align(data, num_steps=18)), weights(whole))
    with pytest.raises(RuntimeError, match='on purpose'):
        align(data, tmp_path, num_steps=18, callbacks=[FailAt(9)])
    resumed = align(data, tmp_path, num_steps=18)
    assert torch.equal(weights(resumed), weights(whole))


def test_the_best_weights_of_validation_are_kept() -> None:
    data = log()
    values: list[float] = []

    class Watch:
        def on_validation_end(self, values: dict[str, float]) -> None:
            seen.append(values['loss'])

    seen = values
    # So large a step that the last is not the best.
    task = AlignmentTask(make(data), 0.3)
    fit(
        task, *loaders(data), max_epochs=8, patience=8, monitor='loss', progress=False,
        accelerator='cpu', callbacks=[Watch()],
    )  # fmt: skip
    assert min(values) < values[-1]
    assert evaluate(task, loaders(data)[1])['loss'] == pytest.approx(min(values))


def test_the_rate_falls_to_0_along_half_a_cosine() -> None:
    task = AlignmentTask(make(log()), 1e-2, 0.5, num_steps=4)
    optimizer, schedule = task.configure_optimizers()
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]['weight_decay'] == 0.5
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        schedule.step()
    half = 1e-2 * (1 + math.cos(math.pi / 4)) / 2
    assert rates == pytest.approx([1e-2, half, 5e-3, 1e-2 - half, 0, 0])
    assert isinstance(AlignmentTask(task.model).configure_optimizers(), torch.optim.AdamW)


def test_what_was_pretrained_learns_clicks() -> None:
    data = log()
    task = align(data)
    for branches in ('both', 'ids', 'text'):
        model = make(data, 1, branches=branches)
        model.load_state_dict(task.model.state_dict())
        clicks = ClickTask(model, 1e-2, 0.0)
        fit(clicks, *loaders(data), max_epochs=10, patience=10, progress=False, accelerator='cpu')
        assert evaluate(clicks, loaders(data)[1])['auc'] > 0.7, branches


def in_processes(directory: str) -> None:
    torch.set_num_threads(1)
    data = log()
    lightning.seed_everything(1, verbose=False)
    task = AlignmentTask(make(data), 1e-2)
    fit(
        task, *loaders(data), directory=directory, max_epochs=2, monitor='loss', progress=False,
        accelerator='cpu', devices=2, strategy='ddp_find_unused_parameters_true',
    )  # fmt: skip
    values = evaluate(task, loaders(data)[1])
    rank = torch.distributed.get_rank()
    torch.save((weights(task), values), f'{directory}/rank{rank}.pt')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_same_weights(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (one, values), (other, others) = (torch.load(tmp_path / f'rank{rank}.pt') for rank in (0, 1))
    assert torch.equal(one, other) and values == others
    data = log()
    first = evaluate(AlignmentTask(make(data)), loaders(data)[1])
    assert values['loss'] < first['loss']


@pytest.mark.parametrize(
    ('kwargs', 'error', 'sentence'),
    [
        ({'learning_rate': 0}, ValueError, r"'learning_rate' must be a number in \(0, inf\)"),
        ({'weight_decay': -1}, ValueError, r"'weight_decay' must be a number in \[0, inf\)"),
        ({'num_steps': 0}, ValueError, "'num_steps' must be at least 1, but got 0"),
        ({'seed': 0.5}, TypeError, "'seed' must be an integer, but got 0.5"),
        ({'losses': 'masked_id'}, TypeError, "'losses' must be a sequence among .*'masked_id'"),
        ({'losses': ['clicks']}, ValueError, r"'losses\[0\]' must be one of 'instance_contrast', "),
        ({'losses': []}, ValueError, r"'losses' must be some of .*, but got \[\]"),
        ({'model': torch.nn.Linear(1, 1)}, TypeError, 'pretraining_losses, .* but got Linear'),
    ],
)
def test_bad_input(kwargs: dict[str, Any], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        AlignmentTask(**{'model': make(log()), **kwargs})


if __name__ == '__main__':
    in_processes(sys.argv[1])
