import math
from collections import Counter
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import PathLoader, PathSampler
from mag.loader.path_sampler import draw_offsets

CLICKS = ('user', 'clicks', 'item')
NEIGHBOR_TYPE = {'user': 'item', 'item': 'user'}


def random_clicks(seed: int, num_clicks: int = 300) -> HeteroData:
    r"""Clicks of 12 users on 9 items in three categories; many share a second or a pair."""
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 12, 9
    data['item'].category = torch.arange(9) % 3
    data['item'].brand = torch.arange(9) % 2
    user = torch.randint(11, (num_clicks,), generator=generator)
    item = torch.randint(8, (num_clicks,), generator=generator)
    data[CLICKS].edge_index = torch.stack([user, item])
    data[CLICKS].time = torch.randint(100, (num_clicks,), generator=generator)
    return data


def candidates(
    data: HeteroData, node_type: str, node: int, target_item: int, time: int, attribute: str | None
) -> set[int]:
    r"""The clicks that may be drawn, by looking at each."""
    found = set()
    for click, (user, item) in enumerate(data[CLICKS].edge_index.t().tolist()):
        owner = user if node_type == 'user' else item
        if owner != node or int(data[CLICKS].time[click]) >= time:
            continue
        if node_type == 'user' and attribute is not None:
            values = data['item'][attribute]
            if values[item] != values[target_item]:
                continue
        found.add(click)
    return found


def check_level(
    data: HeteroData,
    sampler: PathSampler,
    node_type: str,
    node: int,
    target_item: int,
    time: int,
    clicks: Tensor,
) -> None:
    allowed = candidates(data, node_type, node, target_item, time, sampler.attribute)
    drawn = [click for click in clicks.tolist() if click >= 0]
    assert set(drawn) <= allowed
    if sampler.replace:
        assert len(drawn) == (clicks.numel() if allowed else 0)
    else:
        assert len(drawn) == len(set(drawn)) == min(len(allowed), clicks.numel())
    times = data[CLICKS].time[drawn].tolist()
    assert times == sorted(times, reverse=True)
    # Paddings come last.
    assert clicks.tolist() == drawn + [-1] * (clicks.numel() - len(drawn))


@pytest.mark.parametrize('attribute', ['category', 'brand', None])
@pytest.mark.parametrize('replace', [True, False])
@pytest.mark.parametrize('seed', [0, 1])
def test_draws_are_candidates_newest_first(attribute: str | None, replace: bool, seed: int) -> None:
    data = random_clicks(seed)
    widths = {'user': [6, 1, 3], 'item': [2, 4, 1]}
    sampler = PathSampler(data, widths, attribute, replace)
    generator = torch.Generator().manual_seed(seed)
    user = torch.randint(12, (40,), generator=generator)
    item = torch.randint(9, (40,), generator=generator)
    time = torch.randint(-5, 110, (40,), generator=generator)
    paths = sampler.draw(user, item, time, generator)
    num_checked = 0
    for root, nodes in (('user', user), ('item', item)):
        shape = [40]
        for width, level in zip(widths[root], paths[root], strict=True):
            shape.append(width)
            assert list(level.shape) == shape
        for row in range(40):
            frontier = [(nodes[row].item(), ())]
            node_type = root
            for level in paths[root]:
                following = []
                for node, place in frontier:
                    clicks = level[(row, *place)]
                    if node < 0:
                        assert (clicks == -1).all()
                    else:
                        arguments = (item[row].item(), time[row].item(), clicks)
                        check_level(data, sampler, node_type, node, *arguments)
                        num_checked += 1
                    end = 1 if node_type == 'user' else 0
                    following += [
                        (
                            data[CLICKS].edge_index[end, click].item() if click >= 0 else -1,
                            (*place, child),
                        )
                        for child, click in enumerate(clicks.tolist())
                    ]
                frontier, node_type = following, NEIGHBOR_TYPE[node_type]
    assert num_checked > 300


@pytest.mark.parametrize('replace', [True, False])
def test_draws_are_uniform(replace: bool) -> None:
    data = random_clicks(3)
    sampler = PathSampler(data, {'user': [2], 'item': [2]}, None, replace)
    time = 60
    user = max(range(11), key=lambda node: len(candidates(data, 'user', node, 0, time, None)))
    allowed = sorted(candidates(data, 'user', user, 0, time, None))
    assert len(allowed) > 8
    num_draws = 20_000
    rows = torch.full((num_draws,), user)
    drawn = sampler.draw(
        rows, torch.zeros_like(rows), torch.full_like(rows, time), torch.Generator().manual_seed(0)
    )['user'][0]
    if replace:
        count = Counter(drawn.view(-1).tolist())
        outcomes, total = allowed, 2 * num_draws
    else:
        count = Counter(tuple(sorted(pair)) for pair in drawn.tolist())
        outcomes, total = list(combinations(allowed, 2)), num_draws
    assert set(count) <= set(outcomes)
    expected = total / len(outcomes)
    chi_square = sum((count[outcome] - expected) ** 2 for outcome in outcomes) / expected
    degrees = len(outcomes) - 1
    assert abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


def test_subsets_are_uniform_of_any_size() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = draw_offsets(torch.full((30_000,), 5), 3, False, generator)
    count = Counter(tuple(sorted(row)) for row in drawn.tolist())
    assert set(count) == set(combinations(range(5), 3))
    chi_square = sum((number - 3_000) ** 2 for number in count.values()) / 3_000
    assert chi_square < 9 + 5 * math.sqrt(18)
    # No more than there are.
    few = draw_offsets(torch.tensor([0, 1, 2, 3]), 3, False, generator)
    assert [sorted(x for x in row if x >= 0) for row in few.tolist()] == [
        [],
        [0],
        [0, 1],
        [0, 1, 2],
    ]


def test_a_click_at_the_target_is_never_drawn() -> None:
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = 1, 1
    data['item'].category = torch.tensor([0])
    data[CLICKS].edge_index = torch.zeros(2, 3, dtype=torch.long)
    data[CLICKS].time = torch.tensor([10, 20, 30])
    sampler = PathSampler(data, {'user': [50], 'item': [50]})
    zero = torch.zeros(4, dtype=torch.long)
    drawn = sampler.draw(
        zero, zero, torch.tensor([10, 11, 20, 31]), torch.Generator().manual_seed(0)
    )
    for root in ('user', 'item'):
        assert [set(row) for row in drawn[root][0].tolist()] == [{-1}, {0}, {0}, {0, 1, 2}]


def test_without_any_click() -> None:
    data = random_clicks(0, num_clicks=0)
    sampler = PathSampler(data)
    zero = torch.zeros(3, dtype=torch.long)
    paths = sampler.draw(zero, zero, zero, torch.Generator())
    assert all((level == -1).all() for levels in paths.values() for level in levels)
    assert [list(level.shape) for level in paths['user']] == [[3, 25], [3, 25, 1], [3, 25, 1, 10]]


def test_the_paper_is_the_default() -> None:
    sampler = PathSampler(random_clicks(0))
    assert sampler.widths == {'user': [25, 1, 10], 'item': [1, 25, 1]}
    assert (sampler.attribute, sampler.replace, sampler.depth) == ('category', True, 3)


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ({'widths': {'user': [3]}}, ValueError, "'widths' must be .*'user' and 'item'"),
        ({'widths': {'user': [3], 'item': 3}}, TypeError, "widths.'item'.' must be a sequence"),
        ({'widths': {'user': [3], 'item': [1, 1]}}, ValueError, r'equally deep.*\[3\].*\[1, 1\]'),
        ({'widths': {'user': [], 'item': []}}, ValueError, r'equally deep.*\[\].*\[\]'),
        ({'widths': {'user': [0], 'item': [1]}}, ValueError, "widths.'user'..0.' must be"),
        ({'attribute': 'color'}, ValueError, r'item.\]\.color, but .* has .*category'),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PathSampler(random_clicks(0), **arguments)


def test_targets_that_do_not_exist_raise() -> None:
    data = SyntheticMarket(10, 8, 400, log=False)[0]
    sampler, generator = PathSampler(data), torch.Generator()
    one = torch.tensor([1])
    for user, item, message in ((10, 1, 'user ids from 10 to 10'), (1, -2, 'item ids from -2 to')):
        with pytest.raises(IndexError, match=message):
            sampler.draw(torch.tensor([user]), torch.tensor([item]), one, generator)
    with pytest.raises(ValueError, match=r"draw expects 'item' of shape \[1\], .* shape \[2\]"):
        sampler.draw(one, torch.tensor([1, 2]), one, generator)
    with pytest.raises(ValueError, match=r"draw expects 'user' of shape \[B\], .* shape \[\]"):
        sampler.draw(one[0], one, one, generator)
    with pytest.raises(TypeError, match="draw expects 'time' of int64 seconds, .* torch.float32"):
        sampler.draw(one, one, torch.tensor([1.0]), generator)
    with pytest.raises(ValueError, match='but got {}'):
        PathSampler(data, widths={})


def test_golden_sizes_and_precursors() -> None:
    r"""Block J: how many nodes the paper's widths make, and whose children they are."""
    time = torch.arange(100)
    data = HeteroData()
    data['user'].num_nodes = data['item'].num_nodes = 1
    data[CLICKS].edge_index = torch.zeros(2, 100, dtype=torch.long)
    data[CLICKS].time = time
    zero = torch.tensor([0])
    paths = PathSampler(data, attribute=None).draw(
        zero, zero, torch.tensor([100]), torch.Generator().manual_seed(0)
    )
    sizes = {root: [level.numel() for level in levels] for root, levels in paths.items()}
    assert sizes == {'user': [25, 25, 250], 'item': [1, 25, 25]}

    data[CLICKS].edge_label_index, data[CLICKS].edge_label_time = (
        torch.zeros(2, 1).long(),
        time[-1:],
    )
    widths = {'user': [1, 2, 3], 'item': [1, 1, 1]}
    batch = next(iter(PathLoader(data, 1, widths=widths, attribute=None)))
    edges = batch['item', 'rev_clicks', 'user']
    last = edges.edge_index[1, -edges.num_sampled_edges[2] :]
    assert (last - last.min()).tolist() == [0, 0, 0, 1, 1, 1]
