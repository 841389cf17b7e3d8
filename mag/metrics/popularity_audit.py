r"""Whom a model's scores favor: more and less popular items, more and less active users."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_calibration_error

from mag.checks import check_choice, check_ids, check_integers, check_tensor, check_values
from mag.metrics.group_auroc import OneClassError, group_auroc

WEIGHTINGS = ('nodes', 'rows')


class AuditGroup(NamedTuple):
    r"""The scored rows of items that are about as popular, or of users that are about as active.

    Attributes:
        number (int): Its place, 1 for the least popular or active.
        least (float): The least popularity or activity in it.
        most (float): The most.
        nodes (int): Its items or users.
        rows (int): Their scored rows.
        clicks (int): How many of these are clicks.
        auc (float or None): Their AUC, :obj:`None` where all are of one class.
        gauc (float or None): Their AUC within users, weighted by impressions; :obj:`None` where no
            user has rows of both classes among them.
        mean_probability (float): The mean of what was predicted.
        click_rate (float): The share of clicks.
        calibration (float or None): The former by the latter, 1 is best; :obj:`None` without
            clicks.
        calibration_error (float): The mean distance of prediction and click rate in 15 bins of
            equal width (expected calibration error).
        row_share (float): The share of all scored rows.
        score_share (float or None): The share of the sum of all predictions; :obj:`None` where all
            predictions are 0.
        click_share (float or None): The share of all clicks; :obj:`None` where nothing was clicked.
        score_by_rows (float or None): The share of the score by that of the rows: above 1, the
            group gets more than if all rows were scored alike.
        score_by_clicks (float or None): The share of the score by that of the clicks: above 1, the
            group gets more than it deserves.
    """

    number: int
    least: float
    most: float
    nodes: int
    rows: int
    clicks: int
    auc: float | None
    gauc: float | None
    mean_probability: float
    click_rate: float
    calibration: float | None
    calibration_error: float
    row_share: float
    score_share: float | None
    click_share: float | None
    score_by_rows: float | None
    score_by_clicks: float | None


def popularity_audit(
    probability: Tensor,
    target: Tensor,
    user: Tensor,
    item: Tensor,
    popularity: Tensor,
    activity: Tensor,
    num_groups: int = 10,
    weighting: str = 'nodes',
) -> dict[str, list[AuditGroup]]:
    r"""How scored rows are ranked, how well they are calibrated and which share of the score they
    get, in tenths of the items by their popularity and of the users by their activity.

    Nodes of equal popularity are never parted: all have the middle rank among them, and

    .. math::
        g_v = 1 + \left\lfloor G \, \frac{\sum_{u: p_u < p_v} w_u + \frac{1}{2}
        \sum_{u: p_u = p_v} w_u}{\sum_u w_u} \right\rfloor

    is the group of node :math:`v` with popularity :math:`p_v`, over the nodes :math:`u` that were
    scored. So a group is more or less than a tenth where many nodes are equally popular, as those
    never seen before are, and a group that no node falls into is left out.

    What a group gets of the score is compared with what its rows get of the clicks,

    .. math::
        \frac{\sum_{i \in g} \hat{y}_i}{\sum_i \hat{y}_i} \Big/
        \frac{\sum_{i \in g} y_i}{\sum_i y_i},

    which no factor of all predictions changes: it tells whom they favor and not whether they are
    too high.

    Args:
        probability (torch.Tensor): What was predicted, from 0 to 1, floating point, shape
            :obj:`[N]`.
        target (torch.Tensor): Clicks, 0 or 1, shape :obj:`[N]`.
        user (torch.Tensor): The user of each row, shape :obj:`[N]`.
        item (torch.Tensor): The item of each row, shape :obj:`[N]`.
        popularity (torch.Tensor): How popular each item was before all of the rows, such as its
            exposures or its clicks in the training history, shape :obj:`[num_items]`.
        activity (torch.Tensor): How active each user was, likewise, shape :obj:`[num_users]`.
        num_groups (int, optional): The number of groups :math:`G`. (default: :obj:`10`)
        weighting (str, optional): :math:`w_u`: :obj:`"nodes"` is 1, groups of about as many nodes;
            :obj:`"rows"` is the node's number of scored rows, groups of about as many rows, whose
            values are known about as well. (default: :obj:`"nodes"`)

    Returns:
        The groups by popularity as :obj:`"item"` and those by activity as :obj:`"user"`, in
        ascending order.

    Raises:
        IndexError: If a user or an item does not exist.
        TypeError: If a tensor has values of another type.
        ValueError: If shapes differ, there are no rows, a probability is not from 0 to 1, a target
            is neither 0 nor 1, a popularity is negative or not finite, or an argument is unknown.
    """
    caller = 'popularity_audit'
    check_integers(1, num_groups=num_groups)
    check_choice(WEIGHTINGS, weighting=weighting)
    check_tensor(caller, 'probability', probability, ('N',), 'floats')
    size = probability.numel()
    check_tensor(caller, 'target', target, (size,), 'numbers')
    if size == 0:
        raise ValueError(
            'There is nothing to audit: popularity_audit needs at least one row, but got none.'
        )
    is_share = (probability >= 0) & (probability <= 1)
    expected = 'probabilities from 0 to 1'
    check_values(caller, 'probability', probability, is_share, expected, wait=True)
    clicked = target == 1
    check_values(caller, 'target', target, clicked | (target == 0), '0 and 1', wait=True)
    of_nodes = {'item': (item, popularity), 'user': (user, activity)}
    for name, (node, value) in of_nodes.items():
        what = 'popularity' if name == 'item' else 'activity'
        check_tensor(caller, name, node, (size,), 'integers')
        check_tensor(caller, what, value, (f'num_{name}s',), 'numbers')
        check_ids(caller, f'{name} ids', node, value.numel(), wait=True)
        is_count = (value >= 0) & value.isfinite()
        check_values(caller, what, value, is_count, 'finite numbers of at least 0', wait=True)
    return {
        name: _groups(probability, clicked, user, node, value, num_groups, weighting)
        for name, (node, value) in of_nodes.items()
    }


def _groups(
    probability: Tensor,
    clicked: Tensor,
    user: Tensor,
    node: Tensor,
    value: Tensor,
    num_groups: int,
    weighting: str,
) -> list[AuditGroup]:
    nodes, place, rows = node.unique(return_inverse=True, return_counts=True)
    weight = rows if weighting == 'rows' else torch.ones_like(rows)
    value = value[nodes].double()
    group = _group(value, weight, num_groups)
    of_row = group[place]
    # Behind each other, so that a group is a slice.
    order = of_row.argsort(stable=True)
    sizes = of_row.bincount(minlength=num_groups).tolist()
    parts = (column[order].split(sizes) for column in (probability.double(), clicked, user))
    score, clicks = float(probability.sum(dtype=torch.double)), int(clicked.sum())
    found = []
    for number, (chance, label, who) in enumerate(zip(*parts, strict=True)):
        if chance.numel() == 0:
            continue
        of_group = value[group == number]
        num_clicks, mean = int(label.sum()), float(chance.mean())
        click_rate = num_clicks / label.numel()
        row_share = label.numel() / clicked.numel()
        score_share, click_share = _ratio(float(chance.sum()), score), _ratio(num_clicks, clicks)
        found.append(
            AuditGroup(
                number + 1,
                float(of_group.min()),
                float(of_group.max()),
                of_group.numel(),
                label.numel(),
                num_clicks,
                _auc(chance, label, torch.zeros_like(who)),
                _auc(chance, label, who),
                mean,
                click_rate,
                _ratio(mean, click_rate),
                float(binary_calibration_error(chance.float(), label.long(), n_bins=15)),
                row_share,
                score_share,
                click_share,
                _ratio(score_share, row_share),
                _ratio(score_share, click_share),
            )
        )
    return found


def _group(value: Tensor, weight: Tensor, num_groups: int) -> Tensor:
    r"""The group of each node, counted from 0, in integers, so that no rounding parts equals."""
    _, place = value.unique(return_inverse=True)
    mass = weight.new_zeros(int(place.max()) + 1).index_add_(0, place, weight)
    end = mass.cumsum(0)
    # Twice the middle rank.
    middle = 2 * end - mass
    return (num_groups * middle // (2 * end[-1]))[place]


def _auc(probability: Tensor, clicked: Tensor, group: Tensor) -> float | None:
    try:
        return float(group_auroc(probability, clicked, group)[0])
    except OneClassError:
        return None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
