import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mag.nn import BehaviorMerge

EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]]), torch.tensor([0.5, 1.0, 0.25])


def embeddings() -> Tensor:
    return torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0))


def build(merge: str = 'graph', **arguments: object) -> BehaviorMerge:
    torch.manual_seed(0)
    return BehaviorMerge(4, 3, merge, **arguments)


@pytest.mark.parametrize('form', ['paper', 'literal'])
@pytest.mark.parametrize('num_layers', [1, 3])
def test_convolutions_and_leaky_relus_follow_each_other(form: str, num_layers: int) -> None:
    merge = build(num_layers=num_layers, form=form)
    torch.nn.init.uniform_(merge.convs[0].edge_bias)
    expected = embeddings()
    for conv in merge.convs:
        assert conv.form == form
        matrix = conv.normalized_adjacency(*EDGES)
        expected = F.leaky_relu(matrix @ expected @ conv.lin.weight.t(), 0.01)
    assert len(merge.convs) == num_layers
    torch.testing.assert_close(merge(embeddings(), *EDGES), expected)


def test_layers_share_one_bias() -> None:
    merge = build(num_layers=3)
    assert [name for name, _ in merge.named_parameters() if 'bias' in name] == ['convs.0.edge_bias']
    for twin in (merge, copy.deepcopy(merge), pickle.loads(pickle.dumps(merge)), merge.double()):
        assert twin.convs[2].edge_bias is twin.convs[0].edge_bias


def test_gru_reads_the_behaviors_in_their_order_and_pools_to_its_last_state() -> None:
    merge, hidden = build('gru'), embeddings()
    cell = torch.nn.GRUCell(4, 4)
    cell.load_state_dict({k.removesuffix('_l0'): v for k, v in merge.gru.state_dict().items()})
    state = torch.zeros(5, 4)
    for number in range(3):
        state = cell(hidden[:, number], state)
        torch.testing.assert_close(merge(hidden)[:, number], state)
    torch.testing.assert_close(merge.pool(merge(hidden)), state)


@pytest.mark.parametrize(
    ('merge', 'output', 'size'),
    [('graph', 'mean', 4), ('graph', 'sum', 4), ('graph', 'concat', 12), ('concat', 'mean', 12)],
)
def test_pools(merge: str, output: str, size: int) -> None:
    layer, hidden = build(merge, output=output), embeddings()
    expected = {4: hidden.sum(1) / (3 if output == 'mean' else 1), 12: hidden.reshape(5, 12)}[size]
    assert layer.out_channels == size
    torch.testing.assert_close(layer.pool(hidden), expected)


def test_concat_leaves_the_embeddings_as_they_are() -> None:
    assert torch.equal(build('concat')(embeddings()), embeddings())
    assert list(build('concat').parameters()) == []


@pytest.mark.parametrize('merge', ['graph', 'gru'])
def test_reset_parameters(merge: str) -> None:
    layer = build(merge)
    for parameter in layer.parameters():
        torch.nn.init.constant_(parameter, 3)
    layer.reset_parameters()
    assert all(bool((parameter != 3).all()) for parameter in layer.parameters())


def test_exported_and_compiled() -> None:
    merge = build()
    size = torch.export.Dim('rows', min=2)
    shapes = ({0: size}, None, None)
    exported = torch.export.export(merge, (embeddings(), *EDGES), dynamic_shapes=shapes).module()
    compiled = torch.compile(merge, fullgraph=True, backend='aot_eager')
    for scorer in (exported, compiled):
        for rows in (2, 5):
            hidden = embeddings()[:rows]
            torch.testing.assert_close(scorer(hidden, *EDGES), merge(hidden, *EDGES))


@pytest.mark.parametrize(
    ('arguments', 'error', 'message'),
    [
        ((0, 3), ValueError, "'channels' must be at least 1, but got 0"),
        ((4, 3.0), TypeError, "'num_behaviors' must be an integer, but got 3.0"),
        ((4, 3, 'none'), ValueError, "'merge' must be one of 'graph', .*, but got 'none'"),
        ((4, 3, 'graph', 'max'), ValueError, "'output' must be one of 'mean', .*, but got 'max'"),
        ((4, 3, 'gru', 'mean', 0), ValueError, "'num_layers' must be at least 1, but got 0"),
        ((4, 3, 'gru', 'mean', 1, 'released'), ValueError, "'form' must be one of 'paper', 'lit"),
    ],
)
def test_wrong_arguments(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BehaviorMerge(*arguments)


def test_wrong_inputs() -> None:
    merge, hidden = build(), embeddings()
    for arguments, error, message in (
        ((hidden[:, :2], *EDGES), ValueError, r"'hidden' of shape \[B, 3, 4\].*\[5, 2, 4\]"),
        ((hidden[0], *EDGES), ValueError, r"'hidden' of shape \[B, 3, 4\].*\[3, 4\]"),
        ((hidden.long(), *EDGES), TypeError, "'hidden' of floats, but got torch.int64"),
        ((hidden,), TypeError, "'edge_index' to be a tensor .*, but got None"),
        ((hidden, EDGES[0]), TypeError, "'edge_weight' to be a tensor .*, but got None"),
    ):
        with pytest.raises(error, match=message):
            merge(*arguments)
