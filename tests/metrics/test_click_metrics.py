import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import ExposureBatch
from mag.logits import Logits
from mag.metrics import click_metrics
from mag.training import ClickTask, evaluate

CPU = torch.device('cpu')
NAMES = [
    'gauc', 'auc', 'logloss',
    'cvr_auc', 'cvr_mse', 'cvr_calibration_error',
    'ctcvr_gauc', 'ctcvr_auc', 'ctcvr_mse', 'ctcvr_calibration_error',
]  # fmt: skip


def score(model: torch.nn.Module, batch: ExposureBatch) -> tuple[Tensor, ...]:
    return ClickTask(model).score(batch)


class Table(torch.nn.Module):
    r"""Answers with rows of tables, one an item."""

    def __init__(self, *logits: Tensor, both: Tensor | None = None, only_click: bool = False):
        super().__init__()
        self.logits = logits
        self.both = both
        self.only_click = only_click

    def forward(self, batch: ExposureBatch) -> Logits | Tensor:
        click, conversion = (logit[batch.item] for logit in self.logits)
        if self.only_click:
            return click
        both = None if self.both is None else self.both[batch.item]
        return Logits(click, conversion, both=both)


def random_batch(num_rows: int = 400, num_users: int = 20, seed: int = 0) -> ExposureBatch:
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(num_rows, generator=generator) < 0.5).float()
    return ExposureBatch(
        torch.randint(num_users, (num_rows,), generator=generator),
        torch.arange(num_rows),
        torch.empty(num_rows, 0).long(),
        torch.empty(num_rows, 0),
        label,
        label * (torch.rand(num_rows, generator=generator) < 0.4),
    )


def random_table(num_rows: int = 400, seed: int = 1, both: bool = False) -> Table:
    generator = torch.Generator().manual_seed(seed)
    # Tenths, so that some tie.
    logits = (20 * torch.randn(3, num_rows, generator=generator)).round() / 10
    return Table(logits[0], logits[1], both=logits[2] if both else None)


def split(batch: ExposureBatch, size: int) -> list[ExposureBatch]:
    parts = batch.item.split(size)
    return [ExposureBatch(*(v if v is None else v[rows] for v in batch)) for rows in parts]


def sigmoid(logit: Tensor) -> list[float]:
    return [1 / (1 + math.exp(-value)) for value in logit.tolist()]


def auc(score: list[float], label: list[float]) -> float:
    r"""By counting pairs; products that are the same number must tie, so they are rounded."""
    score = [round(value, 12) for value in score]
    positive = [s for s, y in zip(score, label) if y == 1]
    negative = [s for s, y in zip(score, label) if y == 0]
    pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(pairs) / len(pairs)


def gauc(score: list[float], label: list[float], user: list[int]) -> float:
    total = weight = 0.0
    for name in set(user):
        own = [row for row, other in enumerate(user) if other == name]
        labels = [label[row] for row in own]
        if 0 < sum(labels) < len(labels):
            total += len(own) * auc([score[row] for row in own], labels)
            weight += len(own)
    return total / weight


def calibration_error(probability: list[float], label: list[float]) -> float:
    total = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        rows = [row for row, p in enumerate(probability) if low <= p < high]
        if rows:
            mean = sum(probability[row] for row in rows) / len(rows)
            rate = sum(label[row] for row in rows) / len(rows)
            total += len(rows) / len(label) * abs(mean - rate)
    return total


def by_hand(model: Table, batch: ExposureBatch) -> dict[str, float]:
    click, conversion = (sigmoid(logit[batch.item]) for logit in model.logits)
    both = [r * p for r, p in zip(click, conversion)]
    if model.both is not None:
        both = sigmoid(model.both[batch.item])
    label, converted, user = batch.label.tolist(), batch.conversion.tolist(), batch.user.tolist()
    clicked = [row for row, y in enumerate(label) if y == 1]
    chance = [conversion[row] for row in clicked]
    bought = [converted[row] for row in clicked]
    logloss = [-math.log(r if y == 1 else 1 - r) for r, y in zip(click, label)]
    return {
        'gauc': gauc(click, label, user),
        'auc': auc(click, label),
        'logloss': math.fsum(logloss) / len(label),
        'cvr_auc': auc(chance, bought),
        'cvr_mse': math.fsum((p - y) ** 2 for p, y in zip(chance, bought)) / len(clicked),
        'cvr_calibration_error': calibration_error(chance, bought),
        'ctcvr_gauc': gauc(both, converted, user),
        'ctcvr_auc': auc(both, converted),
        'ctcvr_mse': math.fsum((p - y) ** 2 for p, y in zip(both, converted)) / len(label),
        'ctcvr_calibration_error': calibration_error(both, converted),
    }


@pytest.mark.parametrize('both', [False, True])
@pytest.mark.parametrize('seed', range(3))
def test_values_are_those_of_plain_loops(seed: int, both: bool) -> None:
    batch, model = random_batch(seed=seed), random_table(seed=seed + 10, both=both)
    outputs = [score(model, part) for part in split(batch, 37)]
    values = click_metrics(outputs, CPU)
    assert list(values) == NAMES
    assert set(values) == set(ClickTask.modes)
    assert {type(value) for value in values.values()} == {float}
    # Products that tie as real numbers may differ by a rounding.
    assert values == pytest.approx(by_hand(model, batch), abs=1e-4)
    assert values['ctcvr_mse'] == pytest.approx(by_hand(model, batch)['ctcvr_mse'], abs=1e-12)
    assert evaluate(ClickTask(model), split(batch, 50)) == pytest.approx(values, abs=1e-7)


def test_both_is_used_where_it_is_given() -> None:
    batch = random_batch()
    model = random_table(both=True)
    product = Table(*model.logits)
    values, others = (click_metrics([score(m, batch)], CPU) for m in (model, product))
    for name in NAMES:
        assert (values[name] == others[name]) is not name.startswith('ctcvr')


def test_a_click_model_has_the_values_of_clicks_alone() -> None:
    batch, model = random_batch(), random_table()
    whole = click_metrics([score(model, batch)], CPU)
    model.only_click = True
    values = evaluate(model, split(batch, 30))
    assert list(values) == NAMES[:3]
    assert values == pytest.approx({name: whole[name] for name in NAMES[:3]}, abs=1e-12)


def test_users_with_large_ids_stay_apart() -> None:
    # As a float32 2^24 + 1 is 2^24.
    batch = random_batch(40, 2)._replace(user=2**24 + torch.arange(40) % 2)
    model = random_table(40)
    expected = by_hand(model, batch)
    values = click_metrics([score(model, batch)], CPU)
    assert values['gauc'] == pytest.approx(expected['gauc'], abs=1e-12)
    assert values['ctcvr_gauc'] == pytest.approx(expected['ctcvr_gauc'], abs=1e-12)
    assert abs(expected['gauc'] - expected['auc']) > 1e-3


def test_products_close_to_each_other_are_told_apart() -> None:
    # The logarithms of the first two would tie in float32, the probabilities of the others too.
    click = torch.tensor([-60.0, -60.0, 50.0, 50.0])
    conversion = torch.tensor([-9.0, -9.000001, 40.0, 41.0])
    batch = random_batch(4, 1)._replace(
        label=torch.tensor([1.0, 1, 1, 0]), conversion=torch.tensor([0.0, 1, 1, 0])
    )
    values = click_metrics([score(Table(click, conversion), batch)], CPU)
    # Of the four pairs of a conversion and none, rows 2 and 0 alone are in the right order.
    assert values['ctcvr_auc'] == 0.25


def test_half_precision() -> None:
    batch, model = random_batch(), random_table()
    model.logits = tuple(logit.bfloat16() for logit in model.logits)
    exact = Table(*(logit.float() for logit in model.logits))
    values = click_metrics([score(model, batch)], CPU)
    assert values == pytest.approx(click_metrics([score(exact, batch)], CPU), abs=1e-12)


def test_certain_predictions() -> None:
    # Probabilities of 1 and 0 belong to the last bin and the first.
    label = torch.tensor([1.0, 1, 1, 0])
    batch = random_batch(4, 1)._replace(label=label, conversion=torch.tensor([1.0, 1, 0, 0]))
    logit = torch.tensor([200.0, 200, -200, -200])
    values = click_metrics([score(Table(logit, logit), batch)], CPU)
    for name in ('cvr_mse', 'cvr_calibration_error', 'ctcvr_mse', 'ctcvr_calibration_error'):
        assert values[name] == pytest.approx(0, abs=1e-12)
    assert values['cvr_auc'] == values['ctcvr_auc'] == 1


def undefined(caught: pytest.WarningsRecorder) -> dict[str, str]:
    r"""By the metrics that warnings say are not defined, why."""
    found = [re.fullmatch(r"'(\w+)' is not .*, as (.*)\.", str(w.message)) for w in caught]
    return {match[1]: match[2] for match in found if match}


def assert_others_stand(values: dict[str, float], expected: dict[str, float], *names: str) -> None:
    assert list(values) == NAMES
    assert [name for name in NAMES if math.isnan(values[name])] == [*names]
    for name in set(NAMES).difference(names):
        assert values[name] == pytest.approx(expected[name], abs=1e-6), name


ONE_CLASS, NO_USER = 'its rows are all of one class', 'no user has rows of both classes'


def test_without_a_conversion_what_ranks_them_is_nan_and_the_others_stand() -> None:
    batch, model = random_batch(), random_table()
    whole = click_metrics([score(model, batch)], CPU)
    batch = batch._replace(conversion=torch.zeros(400))
    click, conversion = (logit.double().sigmoid() for logit in model.logits)
    clicked = batch.label == 1
    whole['cvr_mse'] = float(conversion[clicked].square().mean())
    whole['ctcvr_mse'] = float((click * conversion).square().mean())
    whole['cvr_calibration_error'] = float(conversion[clicked].mean())
    whole['ctcvr_calibration_error'] = float((click * conversion).mean())
    with pytest.warns(UserWarning) as caught:
        values = click_metrics([score(model, part) for part in split(batch, 90)], CPU)
    assert_others_stand(values, whole, 'cvr_auc', 'ctcvr_gauc', 'ctcvr_auc')
    assert undefined(caught) == {
        'cvr_auc': ONE_CLASS, 'ctcvr_gauc': NO_USER, 'ctcvr_auc': ONE_CLASS
    }  # fmt: skip


def test_of_clicks_and_conversions_alone_conversions_are_ranked() -> None:
    batch, model = random_batch(), random_table()
    bought = (torch.rand(400, generator=torch.Generator().manual_seed(5)) < 0.4).float()
    batch = batch._replace(label=torch.ones(400), conversion=bought)
    with pytest.warns(UserWarning) as caught:
        values = click_metrics([score(model, batch)], CPU)
    click, conversion = (sigmoid(logit) for logit in model.logits)
    assert values['cvr_auc'] == pytest.approx(auc(conversion, bought.tolist()), abs=1e-4)
    assert values['logloss'] == pytest.approx(-sum(map(math.log, click)) / 400, abs=1e-6)
    assert_others_stand(values, values, 'gauc', 'auc')
    assert undefined(caught) == {'gauc': NO_USER, 'auc': ONE_CLASS}


def test_a_gauc_alone_may_be_undefined() -> None:
    # Each user is of one class, and the rows are of both.
    batch, model = random_batch(40, 2), random_table(40)
    batch = batch._replace(user=batch.label.long())
    model.only_click = True
    with pytest.warns(UserWarning) as caught:
        values = click_metrics([score(model, batch)], CPU)
    assert math.isnan(values['gauc'])
    expected = auc(sigmoid(model.logits[0]), batch.label.tolist())
    assert values['auc'] == pytest.approx(expected, abs=1e-6)
    assert undefined(caught) == {'gauc': NO_USER}


def test_without_a_click_nothing_is_measured_on_clicked_rows() -> None:
    batch, model = random_batch(), random_table()
    batch = batch._replace(label=torch.zeros(400), conversion=torch.zeros(400))
    with pytest.warns(UserWarning) as caught:
        values = click_metrics([score(model, batch)], CPU)
    names = [name for name in NAMES if name.startswith('cvr')]
    assert_others_stand(values, values, *NAMES[:2], *names, 'ctcvr_gauc', 'ctcvr_auc')
    assert {name: undefined(caught)[name] for name in names} == dict.fromkeys(
        names, 'no row is clicked'
    )


def test_nan_logits_of_conversions_are_refused() -> None:
    batch, model = random_batch(), random_table()
    model.logits = model.logits[0], torch.full((400,), torch.nan)
    with pytest.raises(ValueError, match='Of conversions: .* such as nan'):
        click_metrics([score(model, batch)], CPU)


def test_wrong_outputs() -> None:
    batch, model = random_batch(), random_table()
    with pytest.raises(ValueError, match='Table predicts conversions, but batch.conversion is No'):
        score(model, batch._replace(conversion=None))
    with pytest.raises(ValueError, match='need labels, but batch.label is None'):
        score(model, batch._replace(label=None, conversion=None))
    model.logits = model.logits[0], model.logits[1].view(-1, 1)
    with pytest.raises(
        ValueError, match=r'Table must return one logit of the conversion a row, .*\[400, 1\]'
    ):
        score(model, batch)
    with pytest.raises(ValueError, match='nothing to evaluate: .* at least one row, but got none'):
        click_metrics([], CPU)


def compute_in_process(rank: int, port: int, directory: str) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    results = []
    batch = random_batch(num_users=5)._replace(user=2**40 + random_batch(num_users=5).user)
    for model in (random_table(), random_table(both=True), Table(*random_table().logits)):
        model.only_click = len(results) >= 8
        # Shares of unequal size, without a click, and without rows.
        unclicked = batch.label.argsort(stable=True)
        for start, order in ((100, None), (int((batch.label == 0).sum()), unclicked), (0, None),
                             (400, None)):  # fmt: skip
            rows = batch.item if order is None else order
            rows = rows[:start] if rank == 0 else rows[start:]
            share = ExposureBatch(*(v if v is None else v[rows] for v in batch))
            parts = [score(model, part) for part in divide(share)]
            results.append(click_metrics(parts, CPU))
    torch.save(results, f'{directory}/{rank}.pt')
    torch.distributed.destroy_process_group()


def divide(batch: ExposureBatch) -> list[ExposureBatch]:
    r"""Batches of 64 rows; none of no rows."""
    parts = torch.arange(len(batch.user)).split(64) if len(batch.user) else ()
    return [ExposureBatch(*(v if v is None else v[rows] for v in batch)) for rows in parts]


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    batch = random_batch(num_users=5)
    expected = []
    for model in (random_table(), random_table(both=True)):
        expected += 4 * [click_metrics([score(model, batch)], CPU)]
    expected += 4 * [{name: expected[0][name] for name in NAMES[:3]}]
    for rank in range(2):
        results = torch.load(tmp_path / f'{rank}.pt')
        assert len(results) == 12
        for values, whole in zip(results, expected):
            assert values == pytest.approx(whole, abs=1e-7)


if __name__ == '__main__':
    compute_in_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])


def test_columns_of_a_graph() -> None:
    rows = random_batch()
    data = HeteroData()
    users = torch.arange(20).flip(0)
    data['user'].n_id = users
    clicks = data['user', 'clicks', 'item']
    clicks.edge_label_index = torch.stack([users[rows.user], rows.item])
    clicks.edge_label, clicks.edge_label_conversion = rows.label, rows.conversion
    data.item = rows.item
    table = random_table()
    for column, expected in zip(score(table, data), score(table, rows), strict=True):
        assert torch.equal(column, expected)
    del clicks['edge_label_conversion']
    with pytest.raises(ValueError, match='predicts conversions, but batch.conversion is None'):
        score(table, data)
