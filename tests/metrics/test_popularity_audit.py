import time

import pytest
import torch
from torch import Tensor

from mag.metrics import popularity_audit

Rows = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def test_values_worked_out_by_hand() -> None:
    # Items 0, 1 and 2 were shown 0, 5 and 9 times; item 3 is shown in no row.
    probability = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.5, 0.5])
    target = torch.tensor([0, 0, 1, 0, 1, 0])
    user = torch.tensor([0, 1, 0, 0, 1, 1])
    item = torch.tensor([0, 0, 1, 1, 2, 2])
    popularity, activity = torch.tensor([0, 5, 9, 7]), torch.tensor([3, 3])
    found = popularity_audit(probability, target, user, item, popularity, activity, 3)
    assert list(found) == ['item', 'user']
    low, middle, high = (group._asdict() for group in found['item'])
    # One class only, and no click that a share of the score could be compared with.
    assert low == pytest.approx({
        'number': 1, 'least': 0, 'most': 0, 'nodes': 1, 'rows': 2, 'clicks': 0,
        'auc': None, 'gauc': None, 'mean_probability': 0.3, 'click_rate': 0, 'calibration': None,
        'calibration_error': 0.3, 'row_share': 1 / 3, 'score_share': 0.2, 'click_share': 0,
        'score_by_rows': 0.6, 'score_by_clicks': None,
    })  # fmt: skip
    # 0.6 and 0.8 are in bins of their own, and off by 0.4 and 0.8.
    assert middle == pytest.approx({
        'number': 2, 'least': 5, 'most': 5, 'nodes': 1, 'rows': 2, 'clicks': 1,
        'auc': 0, 'gauc': 0, 'mean_probability': 0.7, 'click_rate': 0.5, 'calibration': 1.4,
        'calibration_error': 0.6, 'row_share': 1 / 3, 'score_share': 1.4 / 3, 'click_share': 0.5,
        'score_by_rows': 1.4, 'score_by_clicks': 2.8 / 3,
    })  # fmt: skip
    assert high == pytest.approx({
        'number': 3, 'least': 9, 'most': 9, 'nodes': 1, 'rows': 2, 'clicks': 1,
        'auc': 0.5, 'gauc': 0.5, 'mean_probability': 0.5, 'click_rate': 0.5, 'calibration': 1,
        'calibration_error': 0, 'row_share': 1 / 3, 'score_share': 1 / 3, 'click_share': 0.5,
        'score_by_rows': 1, 'score_by_clicks': 2 / 3,
    })  # fmt: skip
    # Both users are equally active: together they are the middle.
    (both,) = found['user']
    assert (both.number, both.least, both.most, both.nodes, both.rows) == (2, 3, 3, 2, 6)
    assert both.auc == pytest.approx(5.5 / 8)
    # The first user has 1 of 2 pairs in order, the second 1.5 of 2.
    assert both.gauc == pytest.approx((0.5 + 0.75) / 2)
    assert both.score_share == both.click_share == both.score_by_clicks == 1


def random_rows(seed: int, num_rows: int = 400, most: int = 6) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    probability = torch.randint(20, (num_rows,), generator=generator).double() / 19
    target = (torch.rand(num_rows, generator=generator) < probability).float()
    user = torch.randint(30, (num_rows,), generator=generator)
    item = torch.randint(25, (num_rows,), generator=generator)
    popularity = torch.randint(most, (25,), generator=generator)
    return probability, target, user, item, popularity, torch.rand(30, generator=generator)


def brute_force(rows: Rows, num_groups: int, weighting: str) -> dict[str, dict[int, list[int]]]:
    r"""The rows of each group, by counting for each node those below it and beside it."""
    _, _, user, item, popularity, activity = rows
    found: dict[str, dict[int, list[int]]] = {}
    for name, node, value in (('item', item, popularity), ('user', user, activity)):
        scored = node.tolist()
        weight = {v: scored.count(v) if weighting == 'rows' else 1 for v in set(scored)}
        worth = {v: float(value[v]) for v in weight}
        groups: dict[int, list[int]] = {}
        for row, v in enumerate(scored):
            below = sum(w for u, w in weight.items() if worth[u] < worth[v])
            equal = sum(w for u, w in weight.items() if worth[u] == worth[v])
            number = 1 + num_groups * (2 * below + equal) // (2 * sum(weight.values()))
            groups.setdefault(number, []).append(row)
        found[name] = groups
    return found


def auc_of(score: list[float], label: list[float]) -> float | None:
    pairs = [
        (p > n) + 0.5 * (p == n)
        for p, is_click in zip(score, label, strict=True) if is_click
        for n, is_other in zip(score, label, strict=True) if not is_other
    ]  # fmt: skip
    return sum(pairs) / len(pairs) if pairs else None


@pytest.mark.parametrize('weighting', ['nodes', 'rows'])
@pytest.mark.parametrize('most', [2, 6, 1000])
@pytest.mark.parametrize('seed', range(2))
def test_equals_counting_row_by_row(seed: int, most: int, weighting: str) -> None:
    rows = random_rows(seed, most=most)
    probability, target, user = rows[0].tolist(), rows[1].tolist(), rows[2].tolist()
    audit = popularity_audit(*rows, num_groups=7, weighting=weighting)
    expected = brute_force(rows, 7, weighting)
    for name, groups in audit.items():
        assert [group.number for group in groups] == sorted(expected[name])
        for group in groups:
            places = expected[name][group.number]
            score, label = [probability[row] for row in places], [target[row] for row in places]
            assert (group.rows, group.clicks) == (len(places), sum(label))
            assert group.auc == pytest.approx(auc_of(score, label))
            weighted = [
                (len(own), auc_of([probability[r] for r in own], [target[r] for r in own]))
                for of in set(user)
                if (own := [row for row in places if user[row] == of])
            ]
            kept = [(weight, auc) for weight, auc in weighted if auc is not None]
            gauc = sum(w * auc for w, auc in kept) / sum(w for w, _ in kept) if kept else None
            assert group.gauc == pytest.approx(gauc)
            assert group.mean_probability == pytest.approx(sum(score) / len(score))
            assert group.score_share == pytest.approx(sum(score) / sum(probability))
            assert group.click_share == pytest.approx(sum(label) / sum(target))
            bins: dict[int, list[int]] = {}
            for row in places:
                bins.setdefault(min(int(probability[row] * 15), 14), []).append(row)
            error = sum(
                abs(sum(probability[row] - target[row] for row in inside))
                for inside in bins.values()
            )
            assert group.calibration_error == pytest.approx(error / len(places), abs=1e-6)


@pytest.mark.parametrize('weighting', ['nodes', 'rows'])
def test_shares_add_up_and_equals_stay_together(weighting: str) -> None:
    rows = random_rows(3)
    for groups in popularity_audit(*rows, weighting=weighting).values():
        for share in ('row_share', 'score_share', 'click_share'):
            assert sum(getattr(group, share) for group in groups) == pytest.approx(1)
        for one, other in zip(groups, groups[1:], strict=False):
            assert one.most < other.least


def test_groups_are_tenths_where_no_two_are_equal() -> None:
    num_rows = 5000
    item = torch.arange(num_rows) % 100
    probability, target = torch.full((num_rows,), 0.5), item % 2
    arguments = probability, target, item, item, torch.arange(100.0), torch.arange(100)
    for weighting in ('nodes', 'rows'):
        groups = popularity_audit(*arguments, weighting=weighting)['item']
        assert [(group.least, group.most) for group in groups] == [
            (10 * number, 10 * number + 9) for number in range(10)
        ]
        assert {group.rows for group in groups} == {500}
    # The first item alone has half of the rows now, and so is the middle of the first half.
    item = item.where(torch.arange(num_rows) % 2 == 0, 0)
    by_rows = popularity_audit(
        probability, target, item, item, torch.arange(100), torch.arange(100), weighting='rows'
    )['item']
    assert by_rows[0].number == 3 and by_rows[0].nodes == 1 and by_rows[1].number == 6


def test_no_factor_of_all_predictions_changes_the_ratio_of_shares() -> None:
    rows = random_rows(4)
    for one, other in zip(
        popularity_audit(*rows)['item'],
        popularity_audit(rows[0] / 2, *rows[1:])['item'],
        strict=True,
    ):
        assert one.score_by_clicks == pytest.approx(other.score_by_clicks)
        assert one.mean_probability == pytest.approx(2 * other.mean_probability)


def test_without_clicks_or_scores_there_are_no_shares_of_them() -> None:
    probability, target, user, item, popularity, activity = random_rows(5)
    nodes = user, item, popularity, activity
    nothing = torch.zeros_like(target)
    for group in popularity_audit(probability, nothing, *nodes)['user']:
        assert group.click_share is group.score_by_clicks is group.auc is group.calibration is None
    for group in popularity_audit(nothing, target, *nodes)['user']:
        assert group.score_share is group.score_by_rows is group.score_by_clicks is None


def test_two_million_rows_take_seconds_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    num_rows = 2_000_000
    probability = torch.rand(num_rows, generator=generator)
    target = torch.rand(num_rows, generator=generator) < probability
    user = torch.randint(100_000, (num_rows,), generator=generator)
    item = torch.randint(50_000, (num_rows,), generator=generator)
    start = time.perf_counter()
    audit = popularity_audit(
        probability, target, user, item, torch.arange(50_000), torch.arange(100_000)
    )
    # Two seconds on an idle core; the bound leaves room for a busy machine.
    assert time.perf_counter() - start < 15
    assert all(group.auc == pytest.approx(5 / 6, abs=5e-3) for group in audit['item'])
