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
        ('hyperedge_slot', graph['hyperedge_slot'].view(2, 9), ValueError, r'but got \[2, 9\]'),
        ('hyperedge_slot', graph['hyperedge_slot'].float(), TypeError, 'but got torch.float32'),
        ('hyperedge_index', graph['hyperedge_index'][0], ValueError, r'but got \[54\]'),
        ('hyperedge_index', graph['hyperedge_index'].int(), TypeError, 'but got torch.int32'),
        ('hyperedge_weight', graph['hyperedge_weight'][:3], ValueError, r'shape \[3\]'),
        ('hyperedge_weight', -graph['hyperedge_weight'], ValueError, 'of 0 or more'),
    ):
        with pytest.raises(error, match=message):
            build(**{**graph, name: value})
    with pytest.raises(ValueError, match="'hyperedge_slot' must be 0 or more, but got -1"):
        build(**{**graph, 'hyperedge_slot': graph['hyperedge_slot'] - 1})
    with pytest.raises(ValueError, match='of shape .num_hyperedges., but got list'):
        build(**{**graph, 'hyperedge_slot': [0] * 18})
    conv, x = build(), torch.randn(NUM_NODES, 5, dtype=torch.double)
    # Where it cannot be looked at, a node that does not exist is none of another slot.
    compiled = torch.compile(conv, fullgraph=True, backend='aot_eager')
    for node, slot in ((NUM_NODES, 0), (-1, 1)):
        assert (compiled(x, torch.tensor([node]), torch.tensor([slot])) == 0).all()
    with pytest.raises(IndexError, match='nodes from -1 to -1, but expected them from 0 to 11'):
        conv(x, torch.tensor([-1]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r'a slot for each node, .* shape \[2\] and .* \[1\]'):
        conv(x, torch.tensor([1, 2]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r'features of 12 nodes, but got shape \[11, 5\]'):
        conv(x[1:], torch.tensor([1]), torch.tensor([0]))
