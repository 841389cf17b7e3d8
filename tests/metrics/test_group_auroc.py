import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from mag.metrics import GroupAUROC, group_auroc

# Block E of the specification's golden numbers.
TARGET = torch.tensor([1, 0, 1, 0, 0, 1, 1])
SCORE = torch.tensor([0.9, 0.2, 0.4, 0.5, 0.3, 0.3, 0.8])
GROUP = torch.tensor([0, 0, 0, 0, 1, 1, 2])


def brute_force(preds: Tensor, target: Tensor, group: Tensor, weighting: str) -> tuple[float, int]:
    total, weights, num_dropped = 0.0, 0.0, 0
    for g in group.unique().tolist():
        positive = preds[(group == g) & (target == 1)].tolist()
        negative = preds[(group == g) & (target == 0)].tolist()
        if not positive or not negative:
            num_dropped += 1
            continue
        pairs = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
        weight = {
            'impressions': len(positive) + len(negative),
            'positives': len(positive),
            'none': 1,
        }[weighting]
        total += weight * sum(pairs) / len(pairs)
        weights += weight
    return total / weights, num_dropped


def random_rows(
    seed: int, num_rows: int = 300, num_groups: int = 40, num_scores: int = 10
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    preds = torch.randint(num_scores, (num_rows,), generator=generator) / num_scores - 0.5
    target = torch.randint(2, (num_rows,), generator=generator).float()
    return preds, target, torch.randint(num_groups, (num_rows,), generator=generator)


def test_golden_numbers() -> None:
    auc, num_dropped = group_auroc(SCORE, TARGET, torch.zeros_like(GROUP))
    assert float(auc) == pytest.approx(0.7916666666666666, abs=1e-15)
    assert num_dropped == 0
    gauc, num_dropped = group_auroc(SCORE, TARGET, GROUP)
    assert float(gauc) == pytest.approx(0.6666666666666666, abs=1e-15)
    assert num_dropped == 1
    first, second = GROUP == 0, GROUP == 1
    assert float(group_auroc(SCORE[first], TARGET[first], GROUP[first])[0]) == 0.75
    assert float(group_auroc(SCORE[second], TARGET[second], GROUP[second])[0]) == 0.5


@pytest.mark.parametrize('weighting', ['impressions', 'positives', 'none'])
@pytest.mark.parametrize('num_scores', [2, 10, 10**6])
@pytest.mark.parametrize('seed', range(3))
def test_equals_counting_pairs(weighting: str, num_scores: int, seed: int) -> None:
    preds, target, group = random_rows(seed, num_groups=60, num_scores=num_scores)
    expected, expected_dropped = brute_force(preds, target, group, weighting)
    value, num_dropped = group_auroc(preds, target, group, weighting)
    assert value.dtype == torch.double
    assert float(value) == pytest.approx(expected, abs=1e-14)
    assert num_dropped == expected_dropped > 0


def test_one_group_is_the_auc() -> None:
    preds, target, group = random_rows(0, num_rows=2000, num_scores=50)
    value, _ = group_auroc(preds, target, torch.full_like(group, 7))
    assert float(value) == pytest.approx(
        float(binary_auroc(preds.double().sigmoid(), target.long())), abs=1e-6
    )


@pytest.mark.parametrize(
    'preds',
    [
        torch.tensor([0.0, -0.0, 1.0, -1.0]),
        torch.tensor([-float('inf'), 0.0, float('inf'), float('inf')]),
        torch.tensor([-1e-40, 1e-40, 0.0, -3e38]),
        torch.tensor([1.0, 1.0 + 1e-12, 1.0 - 1e-12, 1.0], dtype=torch.double),
        torch.tensor([1e300, 1e301, -0.0, 0.0], dtype=torch.double),
        torch.tensor([0.5, -0.0, 0.0, -0.25], dtype=torch.double),
        torch.tensor([1.0, 1.0078125, -1.0, -1.0078125], dtype=torch.bfloat16),
        torch.tensor([1.0, 0.5, 0.25, 1.0], dtype=torch.half),
    ],
)
def test_any_float_is_ordered_as_it_compares(preds: Tensor) -> None:
    for bits in range(1, 15):
        target = torch.tensor([bits >> row & 1 for row in range(4)])
        group = torch.zeros(4, dtype=torch.int32)
        expected, _ = brute_force(preds.double(), target, group, 'none')
        assert float(group_auroc(preds, target.bool(), group)[0]) == expected


def test_group_ids_may_be_large_and_sparse() -> None:
    preds, target, group = random_rows(1)
    expected = group_auroc(preds, target, group)
    for scale in (2**24, 2**30, 2**56):
        assert group_auroc(preds, target, group * scale) == expected


def test_order_of_rows_does_not_matter() -> None:
    preds, target, group = random_rows(2)
    order = torch.randperm(len(preds))
    assert group_auroc(preds, target, group) == group_auroc(
        preds[order], target[order], group[order]
    )


def test_five_million_rows_take_seconds_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    num_rows = 5_000_000
    preds = torch.rand(num_rows, generator=generator)
    target = torch.rand(num_rows, generator=generator) < preds
    group = torch.randint(100_000, (num_rows,), generator=generator)
    start = time.perf_counter()
    value, num_dropped = group_auroc(preds, target, group)
    # A third of a second on two idle cores; the bound leaves room for a busy machine.
    assert time.perf_counter() - start < 5
    # P(positive above negative) with densities 2s and 2(1 - s) is 5/6.
    assert float(value) == pytest.approx(5 / 6, abs=1e-3)
    assert num_dropped == 0


@pytest.mark.parametrize('weighting', ['impressions', 'positives', 'none'])
def test_metric_over_batches(weighting: str) -> None:
    preds, target, group = random_rows(3)
    metric = GroupAUROC(weighting)
    for rows in torch.arange(len(preds)).split(37):
        metric.update(preds[rows], target[rows], group[rows])
    expected, num_dropped = group_auroc(preds, target, group, weighting)
    assert metric.compute() == expected
    assert metric.num_dropped == num_dropped
    metric.reset()
    metric.update(SCORE, TARGET, GROUP)
    assert float(metric.compute()) == pytest.approx(
        {'impressions': 4 / 6, 'positives': 2 / 3, 'none': 0.625}[weighting]
    )


def test_metric_without_rows() -> None:
    with (
        pytest.warns(UserWarning, match='before the ``update`` method'),
        pytest.raises(ValueError, match='at least one row, but got none'),
    ):
        GroupAUROC().compute()


def compute_in_process(rank: int, port: int, directory: str) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    preds, target, group = random_rows(4)
    results = []
    # Shares of unequal size, whose groups overlap, and shares without rows.
    for start in (100, 0, len(preds)):
        share = slice(start) if rank == 0 else slice(start, None)
        for types in (
            (torch.float, torch.float, torch.long),
            [(torch.double, torch.bool, torch.int), (torch.float, torch.int8, torch.long)][rank],
        ):
            auroc = GroupAUROC()
            rows = [x[share].to(y) for x, y in zip((preds, target, group), types, strict=True)]
            if len(rows[0]) > 0:
                auroc.update(*rows)
            results.append((auroc.compute(), auroc.num_dropped))
    torch.save(results, f'{directory}/{rank}.pt')
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    preds, target, group = random_rows(4)
    expected, num_dropped = group_auroc(preds, target, group)
    for rank in range(2):
        assert torch.load(tmp_path / f'{rank}.pt') == [(expected, num_dropped)] * 6


ones = torch.ones(3)


@pytest.mark.parametrize(
    ('arguments', 'error', 'sentence'),
    [
        (
            (ones, torch.ones(4), GROUP[:3]),
            ValueError,
            r"'target' of shape \[3\], but got shape \[4\]",
        ),
        ((ones, ones, GROUP[:2]), ValueError, r"'group' of shape \[3\], but got shape \[2\]"),
        (
            (ones[None], ones[None], GROUP[None, :3]),
            ValueError,
            r"'preds' of shape \[N\].*\[1, 3\]",
        ),
        ((ones.long(), ones, GROUP[:3]), TypeError, "'preds' of floats, but got torch.int64"),
        ((ones.tolist(), ones, GROUP[:3]), TypeError, "'preds' to be a tensor .*, but got list"),
        ((ones, ones, ones), TypeError, "'group' of integers, but got torch.float32"),
        ((ones, ones, ones.bool()), TypeError, "'group' of integers, but got torch.bool"),
        ((ones[:0], ones[:0], GROUP[:0]), ValueError, 'at least one row'),
        (
            (torch.tensor([0.1, float('nan'), 0.2]), ones, GROUP[:3]),
            ValueError,
            "'preds' of numbers, but 1 of 3 is not, such as nan in row 1",
        ),
        (
            (ones, torch.tensor([0.0, 0.5, 2.0]), GROUP[:3]),
            ValueError,
            '2 of 3 are not, such as 0.5 in row 1',
        ),
        (
            (ones, torch.tensor([-1, 1, 1]), GROUP[:3]),
            ValueError,
            '1 of 3 is not, such as -1 in row 0',
        ),
        (
            (ones, ones, torch.tensor([0, -2, 1])),
            ValueError,
            'at least 0, but 1 of 3 is not, such as -2 in row 1',
        ),
        ((ones, None, GROUP[:3]), TypeError, "'target' to be a tensor .*, but got None"),
        ((ones, ones * 1j, GROUP[:3]), TypeError, "'target' of numbers, but got torch.complex64"),
        ((ones, ones, GROUP[:3]), ValueError, '1 groups over 3 rows, of which 3 are clicks'),
        (
            (ones, torch.tensor([1, 0, 1]), torch.tensor([0, 1, 2])),
            ValueError,
            'no group with both classes: 3 groups',
        ),
        ((ones, ones, GROUP[:3], 'clicks'), ValueError, "'impressions', .*but got 'clicks'"),
    ],
)
def test_bad_input(arguments: tuple, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        group_auroc(*arguments)


def test_bad_input_to_metrics() -> None:
    with pytest.raises(ValueError, match="but got 'clicks'"):
        GroupAUROC('clicks')
    metric = GroupAUROC()
    with pytest.raises(
        ValueError, match=r"GroupAUROC expects 'target' of shape \[3\], but got shape \[2\]"
    ):
        metric.update(ones, ones[:2], GROUP[:3])


if __name__ == '__main__':
    compute_in_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
