import pytest
import torch
from torch import Tensor

from mag.nn import SlotHypergraphConv

NUM_NODES, NUM_SLOTS = 12, 4


def hypergraph(seed: int = 0) -> dict[str, Tensor]:
    r"""Six hyperedges of three nodes in each slot but one, which has none."""
    generator = torch.Generator().manual_seed(seed)
    slot = torch.tensor([0, 1, 3]).repeat_interleave(6)
    members = torch.rand(18, NUM_NODES, generator=generator).argsort(1)[:, :3]
    return {
        'hyperedge_index': torch.stack([members.flatten(), torch.arange(18).repeat_interleave(3)]),
        'hyperedge_slot': slot,
        'hyperedge_weight': torch.rand(18, generator=generator, dtype=torch.double) + 0.1,
    }


def build(num_layers: int = 2, **graph: Tensor) -> SlotHypergraphConv:
    torch.manual_seed(0)
    return SlotHypergraphConv(5, num_layers, NUM_NODES, **(graph or hypergraph())).double()


def slot_by_slot(conv: SlotHypergraphConv, x: Tensor, graph: dict[str, Tensor]) -> Tensor:
    r"""Every node in every slot, by the dense formula, shape [NUM_SLOTS, NUM_NODES, F]."""
    out = torch.zeros(NUM_SLOTS, NUM_NODES, x.size(1), dtype=x.dtype)
    for slot in range(NUM_SLOTS):
        hyperedges = (graph['hyperedge_slot'] == slot).nonzero().view(-1).tolist()
        incidence = torch.zeros(NUM_NODES, len(hyperedges), dtype=x.dtype)
        for node, hyperedge in graph['hyperedge_index'].T.tolist():
            if hyperedge in hyperedges:
                incidence[node, hyperedges.index(hyperedge)] = 1
        weight = torch.ones(len(hyperedges), dtype=x.dtype)
        if 'hyperedge_weight' in graph:
            weight = graph['hyperedge_weight'][hyperedges]
        degree, size = incidence @ weight, incidence.sum(0)
        root = torch.where(degree > 0, degree.clamp(min=1e-9) ** -0.5, 0)
        matrix = incidence @ torch.diag(weight / size) @ incidence.T
        matrix = root[:, None] * matrix * root
        hidden = x
        for layer in conv.convs:
            hidden = (matrix @ hidden @ layer.lin.weight.T).relu()
        out[slot] = hidden
    return out


@pytest.mark.parametrize('is_weighted', [True, False])
def test_every_node_in_every_slot(is_weighted: bool) -> None:
    graph = hypergraph()
    if not is_weighted:
        del graph['hyperedge_weight']
    conv = build(**graph)
    x = torch.randn(NUM_NODES, 5, dtype=torch.double)
    node = torch.arange(NUM_NODES).repeat(NUM_SLOTS)
    slot = torch.arange(NUM_SLOTS).repeat_interleave(NUM_NODES)
    expected = slot_by_slot(conv, x, graph)
    assert (expected.abs().sum((1, 2)) > 0).tolist() == [True, True, False, True]
    torch.testing.assert_close(conv(x, node, slot), expected.view(-1, 5))


def test_a_row_is_the_same_whatever_else_is_asked_for() -> None:
    conv = build()
    x = torch.randn(NUM_NODES, 5, dtype=torch.double)
    node, slot = torch.tensor([3, 7, 3, 0, 5]), torch.tensor([0, 3, 1, 2, 0])
    whole = conv(x, node, slot)
    for row in range(5):
        one = conv(x, node[row : row + 1], slot[row : row + 1])
        torch.testing.assert_close(one[0], whole[row])


def test_another_slot_changes_nothing() -> None:
    graph, other = hypergraph(), hypergraph(seed=1)
    for name in ('hyperedge_index', 'hyperedge_weight'):
        # Slot 3 has the last six hyperedges, of three nodes each.
        count = 6 * (3 if name == 'hyperedge_index' else 1)
        other[name][..., :-count] = graph[name][..., :-count]
    x = torch.randn(NUM_NODES, 5, dtype=torch.double)
    node = torch.arange(NUM_NODES)
    for slot, is_same in ((0, True), (1, True), (3, False)):
        slots = torch.full_like(node, slot)
        assert (
            torch.equal(build(**graph)(x, node, slots), build(**other)(x, node, slots)) == is_same
        )


def test_hyperedges_in_any_order_and_slots_far_apart() -> None:
    graph = hypergraph()
    x = torch.randn(NUM_NODES, 5, dtype=torch.double)
    node = torch.arange(NUM_NODES).repeat(NUM_SLOTS)
    slot = torch.arange(NUM_SLOTS).repeat_interleave(NUM_NODES)
    expected = build(**graph)(x, node, slot)
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0))
    member = torch.randperm(54, generator=torch.Generator().manual_seed(1))
    mixed = {
        # What was hyperedge 4 is now where 4 is in the order.
        'hyperedge_index': torch.stack(
            [graph['hyperedge_index'][0], order.argsort()[graph['hyperedge_index'][1]]]
        )[:, member],
        'hyperedge_slot': graph['hyperedge_slot'][order] * 2**40,
        'hyperedge_weight': graph['hyperedge_weight'][order],
    }
    torch.testing.assert_close(build(**mixed)(x, node, slot * 2**40), expected)


def test_repr_tells_what_it_was_built_of() -> None:
    text = 'SlotHypergraphConv(5, num_layers=2, num_nodes=12, num_slots=3, weighted)'
    assert repr(build()) == text


def test_slots_without_hyperedges_know_no_node() -> None:
    x = torch.randn(NUM_NODES, 5, dtype=torch.double)
    node, slot = torch.tensor([0, 1, 2, 3]), torch.tensor([-1, 2, NUM_SLOTS, 99])
    assert (build()(x, node, slot) == 0).all()
    empty = {
        'hyperedge_index': torch.empty(2, 0, dtype=torch.long),
        'hyperedge_slot': torch.empty(0, dtype=torch.long),
    }
    conv = build(**empty)
    out = conv(x, node, slot)
    assert (out == 0).all()
    # Distributed training waits for a gradient of each parameter.
    out.sum().backward()
    assert all(bool((parameter.grad == 0).all()) for parameter in conv.parameters())


def test_gradients_reach_features_and_weights() -> None:
    conv = build()
    x = torch.randn(NUM_NODES, 5, dtype=torch.double, requires_grad=True)
    node, slot = torch.arange(NUM_NODES), torch.full((NUM_NODES,), 1)
    assert torch.autograd.gradcheck(lambda x: conv(x, node, slot), (x,))
    conv(x, node, slot).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in conv.parameters())
    # What comes from the data is not written.
    assert set(conv.state_dict()) == {'convs.0.lin.weight', 'convs.1.lin.weight'}


@pytest.mark.parametrize('is_weighted', [True, False])
def test_compiled_it_is_the_same(is_weighted: bool) -> None:
    graph = hypergraph()
    if not is_weighted:
        del graph['hyperedge_weight']
    conv = build(**graph)
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    x = torch.randn(NUM_NODES, 5, dtype=torch.double)
    for node, slot in (([3, 7, 3, 0], [0, 3, 1, 2]), ([5, 6], [0, -1])):
        args = x, torch.tensor(node), torch.tensor(slot)
        torch.testing.assert_close(compiled(*args), conv(*args))


def test_what_does_not_exist_raises() -> None:
    graph = hypergraph()
    for row, name in ((0, 'nodes'), (1, 'hyperedges')):
        other = graph['hyperedge_index'].clone()
        other[row, 0] = 99
        with pytest.raises(IndexError, match=f"found {name} of 'hyperedge_index' from 0 to 99"):
            build(**{**graph, 'hyperedge_index': other})
    for name, value, error, message in (
        (
            'hyperedge_slot',
            graph['hyperedge_slot'].view(2, 9),
            ValueError,
            r'but got shape \[2, 9\]',
        ),
        ('hyperedge_slot', graph['hyperedge_slot'].float(), TypeError, 'but got torch.float32'),
        ('hyperedge_index', graph['hyperedge_index'][0], ValueError, r'but got shape \[54\]'),
        ('hyperedge_index', graph['hyperedge_index'].int(), TypeError, 'but got torch.int32'),
        ('hyperedge_weight', graph['hyperedge_weight'][:3], ValueError, r'shape \[3\]'),
        ('hyperedge_weight', -graph['hyperedge_weight'], ValueError, 'of 0 or more'),
    ):
        with pytest.raises(error, match=message):
            build(**{**graph, name: value})
    with pytest.raises(
        ValueError, match="'hyperedge_slot' of 0 or more, but .* such as -1 in row 0"
    ):
        build(**{**graph, 'hyperedge_slot': graph['hyperedge_slot'] - 1})
    with pytest.raises(TypeError, match='of shape .num_hyperedges., but got list'):
        build(**{**graph, 'hyperedge_slot': [0] * 18})
    conv, x = build(), torch.randn(NUM_NODES, 5, dtype=torch.double)
    # Where it cannot be looked at, a node that does not exist is none of another slot.
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    for node, slot in ((NUM_NODES, 0), (-1, 1)):
        assert (compiled(x, torch.tensor([node]), torch.tensor([slot])) == 0).all()
    with pytest.raises(IndexError, match='nodes from -2 to -2, but expected them from -1 to 11'):
        conv(x, torch.tensor([-2]), torch.tensor([0]))
    assert (conv(x, torch.tensor([-1, -1]), torch.tensor([0, 1])) == 0).all()
    with pytest.raises(ValueError, match=r"'slot' of shape \[2\], but got shape \[1\]"):
        conv(x, torch.tensor([1, 2]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"'x' of shape \[12, 5\], but got shape \[11, 5\]"):
        conv(x[1:], torch.tensor([1]), torch.tensor([0]))
    with pytest.raises(TypeError, match="'slot' of dtype int64, but got torch.float32"):
        conv(x, torch.tensor([1]), torch.tensor([0.0]))
    with pytest.raises(TypeError, match="'num_neighbors' must be an integer, but got 1.5"):
        SlotHypergraphConv(5, 1, NUM_NODES, **graph, num_neighbors=1.5)
    with pytest.raises(ValueError, match="'num_neighbors' must be at least 1, but got 0"):
        SlotHypergraphConv(5, 1, NUM_NODES, **graph, num_neighbors=0)


def crowd(num_neighbors: int | None, num_layers: int = 2) -> SlotHypergraphConv:
    r"""Two slots of 400 nodes, in hyperedges of four, each node in three of them."""
    generator = torch.Generator().manual_seed(0)
    members = [torch.randperm(400, generator=generator) for _ in range(6)]
    hyperedge = torch.arange(600).repeat_interleave(4)
    torch.manual_seed(0)
    return SlotHypergraphConv(
        5,
        num_layers,
        400,
        torch.stack([torch.cat(members), hyperedge]),
        torch.tensor([3, 7]).repeat_interleave(300),
        torch.rand(600, generator=generator) + 0.5,
        num_neighbors=num_neighbors,
    )


def test_training_convolves_what_is_asked_for_and_neighbors_of_it() -> None:
    conv = crowd(num_neighbors=3)
    node, slot = torch.tensor([5, 9, 5, 17, 30]), torch.tensor([3, 3, 7, 7, 4])
    torch.manual_seed(1)
    part = conv.select(node, slot)
    assert part.is_member.tolist() == [True, True, True, True, False]
    assert part.node[part.place[:4]].tolist() == [5, 9, 5, 17]
    # Four nodes are asked for in a slot that there is, with three neighbors at most.
    assert 4 < part.node.numel() <= 16
    # Behind the hyperedges, each row has one of its own.
    num_rows, num_hyperedges = part.node.numel(), part.scale.numel() - part.node.numel()
    incidence = torch.zeros(num_rows, part.scale.numel())
    incidence[tuple(part.incidence)] = 1
    assert torch.equal(incidence[:, num_hyperedges:], torch.eye(num_rows))
    incidence = incidence[:, :num_hyperedges]
    # A neighbor is of the slot of what it was drawn for, which it shares a hyperedge with.
    rank = torch.zeros(num_rows, dtype=torch.long)
    for place in part.place[2:4]:
        rank[(incidence[:, incidence[place] > 0] > 0).any(1)] = 1
    whole = torch.zeros(conv.key.numel(), conv.num_hyperedges)
    whole[tuple(conv.incidence)] = 1
    rows = whole[torch.searchsorted(conv.key, rank * 400 + part.node)]
    # Each has all members among the drawn, which no other set of its size has.
    drawn = [
        next(e for e in range(600) if torch.equal(rows[:, e], members)) for members in incidence.t()
    ]
    assert 4 <= len(set(drawn)) == len(drawn) <= 12
    assert (incidence.sum(0) >= 2).all() and (incidence.sum(1) >= 1).all()
    # Row by row: the mean of its hyperedges among the drawn, for three in the slot, each of which
    # gives a fourth of the node itself and three fourths of the mean of the others.
    degree = (rows @ conv.weight).sqrt()[:, None]
    x = torch.randn(400, 5)
    hidden = x[part.node]
    for layer in conv.convs:
        sent, received = layer.lin(hidden) / degree, []
        for row in range(num_rows):
            parts = []
            for column in incidence[row].nonzero().view(-1).tolist():
                others = [u for u in incidence[:, column].nonzero().view(-1).tolist() if u != row]
                mean = sent[row] / 4 + 3 / 4 * sent[others].mean(0)
                parts.append(conv.weight[drawn[column]] * mean)
            received.append(3 * torch.stack(parts).mean(0))
        hidden = (torch.stack(received) / degree).relu()
    torch.manual_seed(1)
    out = conv(x, node, slot)
    torch.testing.assert_close(out[:4], hidden[part.place[:4]])
    assert (out[4] == 0).all() and (out[:4].abs().sum(1) > 0).all()


def test_drawn_neighbors_are_other_ones_each_time_and_all_in_turn() -> None:
    conv = crowd(num_neighbors=3)
    node, slot = torch.tensor([5]), torch.tensor([7])
    own = conv.incidence[1, conv.key[conv.incidence[0]] == 400 + 5]
    among = conv.key[conv.incidence[0, torch.isin(conv.incidence[1], own)]].unique() - 400
    # Two of its hyperedges share another node, too.
    assert among.numel() == 9
    torch.manual_seed(0)
    parts = [conv.select(node, slot).node for _ in range(300)]
    found = torch.cat(parts).bincount(minlength=400)
    assert found.nonzero().view(-1).tolist() == among.tolist()
    # Of each of three draws, another member of one hyperedge has the chance of 1 in 9.
    others = (found[among[among != 5]] / 300).sort().values
    once, twice = 1 - (8 / 9) ** 3, 1 - (7 / 9) ** 3
    torch.testing.assert_close(others[:7].mean().item(), once, atol=0.02, rtol=0)
    torch.testing.assert_close(others[7].item(), twice, atol=0.08, rtol=0)
    torch.manual_seed(0)
    assert torch.equal(conv.select(node, slot).node, parts[0])


def test_nobody_in_a_slot_draws_nobody() -> None:
    graph = hypergraph()
    graph['hyperedge_index'][0, graph['hyperedge_index'][0] == 7] = 8
    torch.manual_seed(0)
    conv = SlotHypergraphConv(5, 2, NUM_NODES, **graph, num_neighbors=1).double()
    x = torch.randn(NUM_NODES, 5, dtype=torch.double)
    out = conv(x, torch.tensor([7, 7]), torch.tensor([0, 3]))
    assert torch.equal(out, torch.zeros(2, 5, dtype=torch.double))


def test_evaluation_and_small_slots_are_whole() -> None:
    whole, conv = crowd(None), crowd(num_neighbors=3)
    conv.load_state_dict(whole.state_dict())
    x, node, slot = torch.randn(400, 5), torch.arange(90), torch.full((90,), 3)
    expected = whole(x, node, slot)
    torch.manual_seed(0)
    assert not torch.allclose(conv(x, node, slot), expected)
    assert torch.equal(conv.eval()(x, node, slot), expected)
    # With 300 nodes and three neighbors each there is nothing to leave out.
    out = conv.train()(x, torch.arange(300), torch.full((300,), 3))
    assert torch.equal(out[:90], expected)
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    torch.testing.assert_close(compiled(x, node[:90], slot), expected)


def test_neighbors_approximate_what_the_whole_slot_does() -> None:
    r"""Of one layer all, once every neighbor is drawn, and with a few nearly that on average."""
    whole, x = crowd(None, num_layers=1), torch.rand(400, 5)
    node, slot = torch.tensor([5, 200]), torch.tensor([7, 3])
    with torch.no_grad():
        for layer in whole.convs:
            layer.lin.weight.copy_(torch.eye(5))
    expected = whole(x, node, slot)
    means, errors = [], []
    for num_neighbors in (3, 60):
        conv = crowd(num_neighbors, num_layers=1)
        conv.load_state_dict(whole.state_dict())
        torch.manual_seed(0)
        outs = torch.stack([conv(x, node, slot) for _ in range(500)])
        means.append(outs.mean(0))
        errors.append(((outs - expected).square().mean().sqrt() / expected.mean()).item())
    assert errors[1] < 0.02 < 0.2 < errors[0] < 0.4
    torch.testing.assert_close(means[0], expected, rtol=0.06, atol=0)


def test_gradients_of_drawn_neighbors_are_finite() -> None:
    conv = crowd(num_neighbors=2)
    x = torch.randn(400, 5, requires_grad=True)
    node, slot = torch.arange(8), torch.tensor([3, 7]).repeat(4)
    conv(x, node, slot).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    reached = (x.grad.abs().sum(1) > 0).sum()
    assert 8 <= reached <= 24
    assert all(parameter.grad.abs().sum() > 0 for parameter in conv.parameters())
