import copy
import io
import math
import pickle
import shutil
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import ExposureBatch, ExposureLoader
from mag.logits import Logits
from mag.losses import logit_of_quotient
from mag.models import GMCM
from mag.training import ClickTask
from mag.transforms import BehaviorGraph

CLICKS = ('user', 'clicks', 'item')
SMALL: dict[str, Any] = {
    'tower_channels': (16, 8, 8),
    'hidden_channels': 6,
    'num_buckets': 97,
    'embedding_dim': 4,
}
CONTENTS = ('x_acoustic', 'x_text', 'x_visual')
LOSSES = ['ipw', 'ipw_mean', 'naive', 'doubly_robust', 'esmm', 'division']
VARIANTS: list[dict[str, Any]] = [
    *({'merge': 'graph', 'output': output} for output in ('mean', 'sum', 'concat')),
    {'merge': 'concat'},
    {'merge': 'gru'},
    {'merge': 'none'},
    {'merge': 'none', 'loss': 'division'},
    {'loss': 'doubly_robust'},
]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')


@pytest.fixture(scope='module')
def market() -> HeteroData:
    return BehaviorGraph()(SyntheticMarket(50, 30, 3000, log=False)[0])


def build(market: HeteroData, **kwargs: Any) -> GMCM:
    torch.manual_seed(0)
    return GMCM.from_data(market, **{**SMALL, **kwargs})


def trained(market: HeteroData, **kwargs: Any) -> GMCM:
    r"""With running statistics, and every parameter away from where it starts."""
    model = build(market, **kwargs)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        for batch in ExposureLoader(market, 300):
            model(batch)
    return model.eval()


def some_rows(market: HeteroData, num_rows: int = 200) -> ExposureBatch:
    return next(iter(ExposureLoader(market, num_rows)))


def without_clicks(batch: ExposureBatch) -> ExposureBatch:
    return batch._replace(
        label=torch.zeros_like(batch.label),
        conversion=torch.zeros_like(batch.conversion),
        behavior=torch.zeros_like(batch.behavior),
    )


def outputs(logits: Logits) -> dict[str, Tensor]:
    return {name: value for name, value in logits._asdict().items() if value is not None}


# Block G of the specification's golden numbers.
CLICK = [0.5, 0.2, 0.1, 0.4]
CONVERSION = [0.6, 0.3, 0.2, 0.1]
BEHAVIOR = [[0.7, 0.2], [0.4, 0.1], [0.3, 0.3], [0.2, 0.6]]
GOLDEN_CLICK_LOSS = 0.7296928081044656


def golden() -> tuple[Logits, ExposureBatch]:
    logits = Logits(*(torch.tensor(p).logit() for p in (CLICK, CONVERSION, BEHAVIOR)))
    none = torch.empty(4, 0)
    behavior = torch.zeros(4, 2)
    behavior[0, 0] = 1
    batch = ExposureBatch(
        torch.arange(4),
        torch.arange(4),
        none.long(),
        none,
        torch.tensor([1.0, 1, 0, 0]),
        torch.tensor([1.0, 0, 0, 0]),
        behavior,
    )
    return logits, batch


def golden_model(loss: str, form: str = 'paper') -> GMCM:
    return GMCM(['user'], num_behaviors=2, merge='concat', loss=loss, form=form, **SMALL)


@pytest.mark.parametrize(
    ('loss', 'form', 'expected', 'weight'),
    [
        ('ipw', 'literal', 3.102797226674393, [0.5, 1.25, 2.5, 0.625]),
        ('ipw_mean', 'paper', 1.231327452759532, [0.5, 1.25, 0, 0]),
        ('ipw_mean', 'literal', 1.231327452759532, [0.5, 1.25, 0, 0]),
        ('ipw', 'paper', 0.7036156872911611, [2 / 7, 5 / 7, 0, 0]),
    ],
)
def test_golden_losses(loss: str, form: str, expected: float, weight: list[float]) -> None:
    logits, batch = golden()
    value = golden_model(loss, form).loss(logits, batch)
    assert value.item() == pytest.approx(GOLDEN_CLICK_LOSS + expected, rel=1e-6)
    if (loss, form) == ('ipw', 'paper'):
        assert value.item() == pytest.approx(1.4333084953956265, rel=1e-6)
    # A click's logit is read by its own loss and by the weights, without behaviors too.
    model = GMCM(['user'], merge='none', loss=loss, form=form, **SMALL)
    value = model.loss(logits._replace(behavior=None), batch._replace(behavior=None))
    errors = [0.510825623766, 0.356674943939, 0.223143551314, 0.105360515658]
    plain = sum(w * error for w, error in zip(weight, errors))
    assert value.item() == pytest.approx(GOLDEN_CLICK_LOSS + plain, rel=1e-6)


def test_golden_click_and_conversion() -> None:
    both = [0.3, 0.06, 0.02, 0.04]
    logits, _ = golden()
    product = logits.click.sigmoid() * logits.conversion.sigmoid()
    assert product.tolist() == pytest.approx(both)
    # Division is given the product, and finds the conversion.
    batch_loss = {}
    for loss in ('esmm', 'division'):
        logits, batch = golden()
        if loss == 'division':
            logits = logits._replace(both=torch.tensor(both).logit())
        batch_loss[loss] = golden_model(loss).loss(logits, batch).item()
    plain = -(math.log(0.3) + math.log(0.94) + math.log(0.98) + math.log(0.96)) / 4
    behavior = (0.289909247626 + 0.308093069712) / 2
    expected = GOLDEN_CLICK_LOSS + plain + behavior
    assert batch_loss == pytest.approx({'esmm': expected, 'division': expected}, rel=1e-6)


def test_golden_naive_and_doubly_robust() -> None:
    logits, batch = golden()
    naive = (0.510825623766 + 0.356674943939 + 0.289909247626 + 0.308093069712) / 2
    value = golden_model('naive').loss(logits, batch)
    assert value.item() == pytest.approx(GOLDEN_CLICK_LOSS + naive, rel=1e-6)

    # Imputing what is predicted makes every imputed error the entropy of the prediction.
    value = golden_model('doubly_robust').loss(logits._replace(imputation=logits.conversion), batch)
    entropy = [-p * math.log(p) - (1 - p) * math.log(1 - p) for p in CONVERSION]
    errors = [0.510825623766, 0.356674943939]
    expected = sum(entropy) / 4
    for weight, error, imputed, behavior in zip(
        (2 / 7, 5 / 7), errors, entropy, (0.289909247626, 0.308093069712)
    ):
        expected += weight * (error - imputed + (error - imputed) ** 2 + behavior)
    assert value.item() == pytest.approx(GOLDEN_CLICK_LOSS + expected, rel=1e-6)


def test_floor_of_the_weights() -> None:
    logits, batch = golden()
    model = GMCM(
        ['user'], num_behaviors=2, merge='concat', loss='ipw_mean', floor=0.4, **SMALL
    )  # fmt: skip
    errors = (0.510825623766 + 0.289909247626, 0.356674943939 + 0.308093069712)
    expected = GOLDEN_CLICK_LOSS + (errors[0] / 0.5 + errors[1] / 0.4) / 4
    assert model.loss(logits, batch).item() == pytest.approx(expected, rel=1e-6)


def dense_layer(layer: torch.nn.Module, x: Sequence[float]) -> list[float]:
    bias = [0.0] * len(layer.weight) if layer.bias is None else layer.bias.tolist()
    return [
        sum(w * value for w, value in zip(row, x)) + b
        for row, b in zip(layer.weight.tolist(), bias)
    ]


def leaky(x: Sequence[float]) -> list[float]:
    return [value if value > 0 else 0.01 * value for value in x]


def tower(mlp: torch.nn.Module, x: Sequence[float], plain_last: bool) -> list[float]:
    for number, layer in enumerate(mlp.lins):
        x = dense_layer(layer, x)
        if plain_last and number == len(mlp.lins) - 1:
            break
        norm = mlp.norms[number].module
        columns = zip(
            x, norm.running_mean.tolist(), norm.running_var.tolist(),
            norm.weight.tolist(), norm.bias.tolist(),
        )  # fmt: skip
        x = leaky([(v - m) / math.sqrt(s + norm.eps) * g + b for v, m, s, g, b in columns])
    return list(x)


def adjacency(model: GMCM) -> list[list[float]]:
    r"""Eq. 15's matrix, symmetric and without negative entries, pair by pair."""
    size = model.num_behaviors
    table = model.behaviors.convs[0].edge_bias.tolist()
    for source, target, weight in zip(*model.edge_index.tolist(), model.edge_weight.tolist()):
        table[target][source] += weight
    table = [
        [max(0.0, (table[i][j] + table[j][i]) / 2) + (i == j) for j in range(size)]
        for i in range(size)
    ]
    degree = [sum(row) for row in table]
    return [
        [table[i][j] / math.sqrt(degree[i] * degree[j]) for j in range(size)] for i in range(size)
    ]


def by_hand(model: GMCM, sparse: list[int], dense: list[float]) -> tuple[float, float, list[float]]:
    r"""The logits of one exposure by GMCM with the graph and the mean, number by number."""
    x = [(v - m) / s for v, m, s in zip(dense, model.mean.tolist(), model.deviation.tolist())]
    table = model.embedding
    for value, (square, linear, constant) in zip(sparse, table.coefficient.tolist()):
        hashed = (square * value**2 + linear * value + constant) % (2**31 - 1)
        x += table.weight[hashed % table.num_buckets].tolist()
    (click,) = tower(model.click_tower, x, plain_last=True)
    trunk = tower(model.trunk, x, plain_last=False)
    size = model.num_behaviors
    hidden = []
    for theta in model.behavior_weight.tolist():
        columns = range(len(theta[0]))
        hidden.append(leaky([sum(h * theta[c][k] for c, h in enumerate(trunk)) for k in columns]))
    matrix = adjacency(model)
    for conv in model.behaviors.convs:
        lifted = [dense_layer(conv.lin, h) for h in hidden]
        hidden = [
            leaky([
                sum(matrix[i][j] * lifted[j][k] for j in range(size))
                for k in range(len(lifted[0]))
            ])
            for i in range(size)
        ]  # fmt: skip
    behavior = [
        sum(a * b for a, b in zip(h, head)) for h, head in zip(hidden, model.behavior_head.tolist())
    ]
    pooled = [sum(column) / size for column in zip(*hidden)]
    (conversion,) = dense_layer(model.conversion_head, pooled)
    return click, conversion, behavior


def test_forward_step_by_step(market: HeteroData) -> None:
    model = trained(market).double()
    # Not only the pairs that were seen, and not only upwards.
    assert bool((model.behaviors.convs[0].edge_bias != 0).all())
    batch = some_rows(market, 12)
    logits = model(batch)
    assert logits.both is None and logits.imputation is None
    for row in range(12):
        click, conversion, behavior = by_hand(
            model, batch.sparse[row].tolist(), batch.dense[row].tolist()
        )
        assert logits.click[row].item() == pytest.approx(click, abs=1e-9)
        assert logits.conversion[row].item() == pytest.approx(conversion, abs=1e-9)
        assert logits.behavior[row].tolist() == pytest.approx(behavior, abs=1e-9)
    assert logits.conversion.std() > 1e-3 and logits.click.std() > 1e-3


def first_embedding(model: GMCM, batch: ExposureBatch) -> tuple[Tensor, Tensor]:
    r"""The features and eq. 14."""
    x = torch.cat([(batch.dense - model.mean) / model.deviation, model.embedding(batch.sparse)], 1)
    trunk = model.trunk(x)
    hidden = torch.stack([trunk @ theta for theta in model.behavior_weight], dim=1)
    return x, F.leaky_relu(hidden, 0.01)


@pytest.mark.parametrize('output', ['mean', 'sum', 'concat'])
@pytest.mark.parametrize('num_layers', [1, 3])
def test_graph_is_convolved_and_pooled(market: HeteroData, output: str, num_layers: int) -> None:
    model = trained(market, output=output, num_layers=num_layers)
    batch = some_rows(market)
    logits = model(batch)
    x, hidden = first_embedding(model, batch)
    assert len(model.behaviors.convs) == num_layers
    for conv in model.behaviors.convs:
        matrix = conv.normalized_adjacency(model.edge_index, model.edge_weight)
        hidden = F.leaky_relu(matrix @ hidden @ conv.lin.weight.t(), 0.01)
    torch.testing.assert_close(model.behavior_embedding(x), hidden, atol=1e-5, rtol=1e-4)
    head = model.conversion_head.weight[0]
    if output == 'concat':
        expected = torch.cat(hidden.unbind(1), dim=1) @ head
    else:
        expected = sum(hidden.unbind(1)) @ head / (10 if output == 'mean' else 1)
    torch.testing.assert_close(logits.conversion, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        logits.behavior, torch.einsum('bnh,nh->bn', hidden, model.behavior_head),
        atol=1e-5, rtol=1e-4,
    )  # fmt: skip


def test_sum_is_the_mean_times_the_number_of_behaviors(market: HeteroData) -> None:
    mean, total = trained(market), trained(market, output='sum')
    total.load_state_dict(mean.state_dict())
    batch = some_rows(market)
    torch.testing.assert_close(
        total(batch).conversion, 10 * mean(batch).conversion, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(total(batch).behavior, mean(batch).behavior)


def test_concat_has_no_graph(market: HeteroData) -> None:
    model = trained(market, merge='concat')
    batch = some_rows(market)
    _, hidden = first_embedding(model, batch)
    expected = torch.cat(hidden.unbind(1), dim=1) @ model.conversion_head.weight[0]
    torch.testing.assert_close(model(batch).conversion, expected, atol=1e-5, rtol=1e-4)
    assert (
        len(model.behaviors.convs) == 0 and model.edge_index is None and model.edge_weight is None
    )


def test_gru_reads_the_behaviors_in_their_order(market: HeteroData) -> None:
    model = trained(market, merge='gru')
    batch = some_rows(market)
    _, hidden = first_embedding(model, batch)
    cell = torch.nn.GRUCell(6, 6)
    cell.load_state_dict(
        {
            name.removesuffix('_l0'): value
            for name, value in model.behaviors.gru.state_dict().items()
        }
    )
    state = torch.zeros(200, 6)
    behavior = []
    for number in range(10):
        state = cell(hidden[:, number], state)
        behavior.append(state @ model.behavior_head[number])
    logits = model(batch)
    torch.testing.assert_close(logits.behavior, torch.stack(behavior, dim=1), atol=1e-5, rtol=1e-4)
    expected = state @ model.conversion_head.weight[0]
    torch.testing.assert_close(logits.conversion, expected, atol=1e-5, rtol=1e-4)


def test_without_a_merge_there_are_two_towers(market: HeteroData) -> None:
    model = trained(market, merge='none')
    batch = some_rows(market)
    logits = model(batch)
    x = torch.cat([(batch.dense - model.mean) / model.deviation, model.embedding(batch.sparse)], 1)
    assert torch.equal(logits.click, model.click_tower(x)[:, 0])
    assert torch.equal(logits.conversion, model.conversion_tower(x)[:, 0])
    assert logits.behavior is None and model.num_behaviors == 0
    towers = (model.click_tower, model.conversion_tower)
    sizes = [[layer.out_channels for layer in mlp.lins] for mlp in towers]
    assert sizes == [[16, 8, 8, 1]] * 2
    names = {name.split('.')[0] for name, _ in model.named_parameters()}
    assert names == {'embedding', 'click_tower', 'conversion_tower'}
    # The data may have no behaviors at all.
    data = copy.copy(market)
    del data[CLICKS]['edge_label_behavior']
    assert torch.isfinite(build(data, merge='none')(batch).conversion).all()


def test_imputation_is_a_tower_of_its_own(market: HeteroData) -> None:
    model = trained(market, loss='doubly_robust')
    batch = some_rows(market)
    x, _ = first_embedding(model, batch)
    assert torch.equal(model(batch).imputation, model.imputation_tower(x)[:, 0])


def test_division_divides_probabilities(market: HeteroData) -> None:
    model = trained(market, merge='none', loss='division')
    batch = some_rows(market, 3000)
    logits = model(batch)
    x = torch.cat([(batch.dense - model.mean) / model.deviation, model.embedding(batch.sparse)], 1)
    assert torch.equal(logits.both, model.conversion_tower(x)[:, 0])
    num_clipped = 0
    for click, both, conversion in zip(*(logits[index].tolist() for index in (0, 3, 1))):
        quotient = (1 + math.exp(-click)) / (1 + math.exp(-both))
        if quotient < 1 - 1e-3:
            assert conversion == pytest.approx(math.log(quotient / (1 - quotient)), abs=1e-3)
        elif quotient >= 1:
            # A probability of 1, as far as its logit is finite.
            assert conversion == pytest.approx(math.log(1e6), abs=0.1)
            num_clipped += 1
    assert 0 < num_clipped < 3000

    # Where it is clipped the loss still trains the two together.
    clipped = logits.both > logits.click
    (gradient,) = torch.autograd.grad(model.loss(logits, batch), logits.both)
    expected = (logits.both.sigmoid() - batch.conversion) / 3000
    torch.testing.assert_close(gradient, expected)
    assert bool((gradient[clipped] != 0).all())


def test_division_of_extreme_logits_is_finite() -> None:
    logit = torch.tensor([-300.0, -20.0, 0.0, 20.0, 300.0])
    click, both = (side.clone().requires_grad_() for side in torch.cartesian_prod(logit, logit).t())
    quotient = logit_of_quotient(both, click)
    quotient.sum().backward()
    for value in (quotient, click.grad, both.grad):
        assert bool(value.isfinite().all())
    assert logit_of_quotient(torch.tensor(-300.0), torch.tensor(0.0)).item() == pytest.approx(
        -300 + math.log(2), abs=1e-4
    )


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_what_follows_a_click_is_not_read(market: HeteroData, kwargs: dict[str, Any]) -> None:
    model = trained(market, **kwargs)
    batch = some_rows(market)
    expected = model(batch)
    for other in (
        without_clicks(batch),
        batch._replace(
            label=1 - batch.label, conversion=1 - batch.conversion, behavior=1 - batch.behavior
        ),
        batch._replace(label=None, conversion=None, behavior=None),
        # Nor are the ids, but through the fields.
        batch._replace(user=batch.user.flip(0), item=batch.item.flip(0)),
    ):
        for name, value in outputs(model(other)).items():
            assert torch.equal(value, getattr(expected, name)), name


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_rows_do_not_influence_each_other(market: HeteroData, kwargs: dict[str, Any]) -> None:
    model = trained(market, **kwargs)
    batch = some_rows(market)
    whole = outputs(model(batch))
    some = torch.tensor([3, 3, 150])
    parts = ([7], some, torch.arange(200).flip(0))
    for rows in parts:
        part = ExposureBatch(*(value[rows] for value in batch[:-1]))
        for name, value in outputs(model(part)).items():
            torch.testing.assert_close(value, whole[name][rows], atol=1e-5, rtol=1e-4)


def test_every_input_is_read(market: HeteroData) -> None:
    model = trained(market, loss='doubly_robust')
    batch = some_rows(market, 50)
    expected = outputs(model(batch))
    columns = [*((batch.sparse, c) for c in range(13)), *((batch.dense, c) for c in range(48))]
    for table, column in columns:
        other = table.clone()
        other[:, column] = other[:, column] * 5 + 1
        name = 'sparse' if table is batch.sparse else 'dense'
        for key, value in outputs(model(batch._replace(**{name: other}))).items():
            assert not torch.equal(value, expected[key]), (name, column, key)


def test_queries_are_read_in_their_order(market: HeteroData) -> None:
    # Each column of a field has its own place in the towers, though they share their rows.
    model = trained(market)
    batch = some_rows(market, 50)
    other = batch.sparse.clone()
    other[:, -4:] = other[:, -4:].flip(1)
    assert not torch.allclose(model(batch._replace(sparse=other)).click, model(batch).click)


def click_parameters(model: GMCM) -> list[Tensor]:
    return list(model.click_tower.parameters())


def total_and_click(model: GMCM, batch: ExposureBatch) -> tuple[Tensor, Tensor]:
    logits = model(batch)
    click = F.binary_cross_entropy_with_logits(logits.click, batch.label)
    return model.loss(logits, batch), click


@pytest.mark.parametrize('merge', ['graph', 'none'])
@pytest.mark.parametrize('loss', LOSSES)
def test_conversions_do_not_train_the_click_tower(
    market: HeteroData, loss: str, merge: str
) -> None:
    model = build(market, loss=loss, merge=merge).train()
    total, click = total_and_click(model, some_rows(market, 500))
    rest = total - click
    parameters = click_parameters(model)
    gradients = torch.autograd.grad(rest, parameters, retain_graph=True, allow_unused=True)
    reached = [
        gradient is not None and bool((gradient.abs() > 1e-7).any()) for gradient in gradients
    ]
    # The last weights of the tower; biases before a normalization never get a gradient.
    assert reached[-2] is (loss == 'esmm')
    if loss != 'esmm':
        for total_gradient, click_gradient in zip(
            torch.autograd.grad(total, parameters, retain_graph=True),
            torch.autograd.grad(click, parameters, retain_graph=True),
        ):
            assert torch.equal(total_gradient, click_gradient)
    # It reaches the rest of the model.
    head = model.conversion_tower.lins[-1].weight if merge == 'none' else model.behavior_head
    for parameter in (head, model.embedding.weight):
        (gradient,) = torch.autograd.grad(rest, parameter, retain_graph=True)
        assert bool((gradient != 0).any())


def test_the_weights_would_train_the_click_tower(
    market: HeteroData, monkeypatch: pytest.MonkeyPatch
) -> None:
    r"""The test above can fail."""
    monkeypatch.setattr(Tensor, 'detach', lambda self: self)
    model = build(market).train()
    total, click = total_and_click(model, some_rows(market, 500))
    gradients = torch.autograd.grad(total - click, click_parameters(model), allow_unused=True)
    assert bool((gradients[-2].abs() > 1e-7).any())


@pytest.mark.parametrize('loss', LOSSES)
def test_doubly_robust_alone_trains_an_imputation(market: HeteroData, loss: str) -> None:
    model = build(market, loss=loss).train()
    assert hasattr(model, 'imputation_tower') is (loss == 'doubly_robust')
    if loss == 'doubly_robust':
        total, _ = total_and_click(model, some_rows(market, 500))
        total.backward()
        weight = model.imputation_tower.lins[-1].weight
        assert bool((weight.grad != 0).any())


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_every_parameter_gets_a_gradient(market: HeteroData, kwargs: dict[str, Any]) -> None:
    model = build(market, **kwargs).train()
    batch = some_rows(market, 500)
    model.loss(model(batch), batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool((parameter.grad != 0).any()), name


def test_layers_share_the_bias_of_the_graph(market: HeteroData) -> None:
    model = build(market, num_layers=3).train()
    biases = [name for name, _ in model.named_parameters() if name.endswith('edge_bias')]
    assert biases == ['behaviors.convs.0.edge_bias']
    assert all(
        conv.edge_bias is model.behaviors.convs[0].edge_bias for conv in model.behaviors.convs
    )
    batch = some_rows(market, 500)
    model.loss(model(batch), batch).backward()
    assert bool((model.behaviors.convs[2].edge_bias.grad != 0).all())
    # And still do when copied, pickled and moved.
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.double()):
        assert twin.behaviors.convs[2].edge_bias is twin.behaviors.convs[0].edge_bias


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('dtype', [torch.bool, torch.long, torch.double])
def test_labels_of_any_type(market: HeteroData, loss: str, dtype: torch.dtype) -> None:
    model = build(market, loss=loss).eval()
    batch = some_rows(market)
    other = batch._replace(
        label=batch.label.to(dtype),
        conversion=batch.conversion.to(dtype),
        behavior=batch.behavior.to(dtype),
    )
    logits = model(batch)
    assert torch.equal(model.loss(logits, other), model.loss(logits, batch))


@pytest.mark.parametrize('merge', ['graph', 'none'])
@pytest.mark.parametrize('loss', LOSSES)
def test_batches_without_clicks(market: HeteroData, loss: str, merge: str) -> None:
    model = build(market, loss=loss, merge=merge).train()
    batch = without_clicks(some_rows(market))
    total, click = total_and_click(model, batch)
    assert bool(total.isfinite())
    # Those that speak of all exposures still do.
    is_zero = loss in ('ipw', 'ipw_mean', 'naive')
    assert (total.item() == click.item()) is is_zero
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
    if is_zero and merge == 'graph':
        assert bool((model.behavior_head.grad == 0).all())


@pytest.mark.parametrize('loss', LOSSES)
def test_training_step_is_the_loss(market: HeteroData, loss: str) -> None:
    task = ClickTask(build(market, loss=loss)).eval()
    batch = some_rows(market)
    expected = task.model.loss(task.model(batch), batch)
    assert torch.equal(task.loss(batch), expected)


# As printed, eq. 18 learns that what was not clicked would not convert.
@pytest.mark.parametrize('loss', LOSSES)
def test_learns_clicks_and_conversions(market: HeteroData, loss: str) -> None:
    data = copy.copy(market)
    clicks = data[CLICKS]
    user, item = clicks.edge_label_index
    clicks.edge_label = (user % 2).float()
    clicks.edge_label_conversion = clicks.edge_label * (item % 3 == 0)
    behavior = (torch.arange(10) % 2 == (item % 3 == 0).long().view(-1, 1)).float()
    clicks.edge_label_behavior = clicks.edge_label.view(-1, 1) * behavior
    # Few rows share a bucket in so large a table, on purpose.
    model = build(data, loss=loss, num_buckets=10_000).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    (batch,) = ExposureLoader(data, 3000)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(model(batch), batch).backward()
        optimizer.step()
    logits = model.eval()(batch)
    clicked = batch.label == 1
    assert ((logits.click > 0) == clicked).float().mean() > 0.98
    both = (logits.click.sigmoid() * logits.conversion.sigmoid()) > 0.5
    assert (both == (batch.conversion == 1)).float().mean() > 0.98
    # On the clicks, for which alone there are labels.
    assert ((logits.behavior > 0) == (batch.behavior == 1))[clicked].float().mean() > 0.98


def test_from_data_standardises_over_the_exposures(market: HeteroData) -> None:
    data = copy.copy(market)
    generator = torch.Generator().manual_seed(0)
    data[CLICKS].edge_label_x = 100 + 7 * torch.randn(3000, 2, generator=generator)
    model = build(data)
    dense = torch.stack(
        [
            torch.cat([*(data['item'][name][item] for name in CONTENTS), x])
            for item, x in zip(data[CLICKS].edge_label_index[1], data[CLICKS].edge_label_x)
        ]
    )
    torch.testing.assert_close(model.mean, dense.double().mean(0).float(), atol=1e-5, rtol=1e-5)
    expected = dense.double().std(0, correction=0).float()
    torch.testing.assert_close(model.deviation, expected, atol=1e-5, rtol=1e-5)
    # What the towers read has mean 0 and deviation 1.
    (batch,) = ExposureLoader(data, 3000)
    assert torch.equal(batch.dense, dense)
    seen = []
    model.click_tower.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(batch)
    read = seen[0][:, :50]
    torch.testing.assert_close(read.mean(0), torch.zeros(50), atol=1e-4, rtol=0)
    torch.testing.assert_close(read.std(0, correction=0), torch.ones(50), atol=1e-4, rtol=0)


def test_ids_never_seen_and_the_largest(market: HeteroData) -> None:
    model = trained(market)
    batch = some_rows(market, 4)
    sparse = torch.tensor([-1, 10**9, 2**62, -(2**62)]).view(4, 1).expand(4, 13)
    logits = model(batch._replace(sparse=sparse))
    for value in outputs(logits).values():
        assert bool(value.isfinite().all())
    assert logits.click.unique().numel() == 4


def test_without_dense_features(market: HeteroData) -> None:
    data = copy.copy(market)
    for name in CONTENTS:
        del data['item'][name]
    model = build(data)
    assert model.click_tower.lins[0].in_channels == 13 * 4
    batch = some_rows(data, 20)
    assert batch.dense.shape == (20, 0)
    x = model.embedding(batch.sparse)
    logits = model.eval()(batch).click
    assert torch.equal(logits, model.click_tower(x)[:, 0]) and logits.std() > 1e-4


def test_scores_of_a_request_are_those_of_the_rows(market: HeteroData) -> None:
    model = trained(market)
    loader = ExposureLoader(market, 3000)
    (whole,) = loader
    expected = outputs(model(whole))
    clicks = market[CLICKS]
    for row in (0, 1234):
        user, item = clicks.edge_label_index[:, row].tolist()
        request = loader.request(
            user,
            torch.tensor([item]),
            query=clicks.edge_label_query[row],
            domain=clicks.edge_label_domain[row],
        )
        for name, value in outputs(model(request)).items():
            torch.testing.assert_close(value[0], expected[name][row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_copies_agree(market: HeteroData, kwargs: dict[str, Any]) -> None:
    model = trained(market, **kwargs)
    batch = some_rows(market)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(7)
    other = GMCM.from_data(market, **{**SMALL, **kwargs}).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for name, value in outputs(twin(batch)).items():
            assert torch.equal(value, getattr(model(batch), name))


def test_loaded_weights_are_not_written_into_the_graph(market: HeteroData) -> None:
    before = market['behavior', 'follows', 'behavior'].edge_weight.clone()
    model = build(market)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state['edge_weight'] += 1
    model.load_state_dict(state)
    assert torch.equal(model.edge_weight, before + 1)
    assert torch.equal(market['behavior', 'follows', 'behavior'].edge_weight, before)


def test_reset_parameters_starts_over(market: HeteroData) -> None:
    for kwargs in VARIANTS:
        model = build(market, **kwargs)
        before = copy.deepcopy(model.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(3)
        model.train()(some_rows(market))
        model.reset_parameters()
        for name, parameter in model.named_parameters():
            # Biases, gains and the graph's bias start at one value, the others at random.
            assert bool((parameter != 3).all()), name
            assert parameter.unique().numel() == before[name].unique().numel(), name
        for name, value in model.named_buffers():
            assert torch.equal(value, before[name]), name
    model = build(market)
    for weight in model.behavior_weight:
        bound = (6 / (8 + 6)) ** 0.5
        assert 0.7 * bound < weight.abs().max() <= bound


def test_sizes_of_the_paper() -> None:
    fields = [f'field_{number}' for number in range(28)]
    graph = {'edge_index': torch.tensor([[0, 1], [1, 0]]), 'edge_weight': torch.ones(2)}
    model = GMCM(fields, 230, 10, **graph)
    width = 230 + 28 * 16
    sizes = [[layer.in_channels for layer in mlp.lins] for mlp in (model.click_tower, model.trunk)]
    assert sizes == [[width, 512, 256, 128, 64], [width, 512, 256]]
    assert model.behavior_weight.shape == (10, 128, 64)
    assert model.behavior_head.shape == (10, 64)
    assert [conv.lin.weight.shape for conv in model.behaviors.convs] == [(64, 64)] * 2
    assert model.conversion_head.weight.shape == (1, 64) and model.conversion_head.bias is None
    assert model.embedding.weight.shape == (100_000, 16)
    for kwargs in ({'output': 'concat', **graph}, {'merge': 'concat'}):
        assert GMCM(fields, 230, 10, **kwargs).conversion_head.weight.shape == (1, 640)


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_export_scores_batches_of_other_sizes(market: HeteroData, kwargs: dict[str, Any]) -> None:
    model = trained(market, **kwargs)
    loader = ExposureLoader(market)
    told = {'query': torch.tensor([12, 5, -1, -1]), 'domain': 1}
    batch = loader.request(7, torch.arange(10), **told)
    size = torch.export.Dim('batch', min=2)
    shapes = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: {0: size}, batch)
    program = torch.export.export(model, (batch,), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    scorer = torch.export.load(file).module(check_guards=False)
    for user, items in ((7, range(10)), (0, range(15)), (24, [3, 5]), (49, [1] * 300)):
        request = loader.request(user, torch.tensor([*items]), **told)
        scores, expected = scorer(request), outputs(model(request))
        assert type(scores) is Logits and outputs(scores).keys() == expected.keys()
        for name, value in outputs(scores).items():
            torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    'kwargs', [{}, {'loss': 'doubly_robust'}, {'merge': 'none', 'loss': 'division'}], ids=str
)
def test_compiled_training_is_one_graph_with_the_same_gradients(
    market: HeteroData, kwargs: dict[str, Any]
) -> None:
    batch = some_rows(market)
    model = build(market, **kwargs)
    twin = copy.deepcopy(model)
    for scorer in (model, torch.compile(twin, fullgraph=True, backend='aot_eager')):
        model.loss(scorer(batch), batch).backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ('g++', 'clang++', 'c++')),
    reason='torch.compile needs a C++ compiler.',
)
def test_compiled_scores_are_the_same(market: HeteroData) -> None:
    batch = some_rows(market)
    model = trained(market, num_layers=1)
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True)(batch)
        torch.testing.assert_close(tuple(out)[:3], tuple(model(batch))[:3], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_bfloat16_autocast_is_close(market: HeteroData, kwargs: dict[str, Any]) -> None:
    model = build(market, **kwargs).train()
    batch = some_rows(market)
    expected = outputs(model(batch))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        logits = model(batch)
        loss = model.loss(logits, batch)
    for name, value in outputs(logits).items():
        if name != 'conversion' or model.objective != 'division':
            torch.testing.assert_close(value.float(), expected[name], atol=0.1, rtol=0)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert bool(parameter.grad.isfinite().all()), name


@needs_cuda
@pytest.mark.parametrize('kwargs', VARIANTS, ids=str)
def test_cuda_agrees_with_cpu(market: HeteroData, kwargs: dict[str, Any]) -> None:
    model = trained(market, **kwargs)
    batch = some_rows(market)
    expected = outputs(model(batch))
    on_device = ExposureBatch(*(value.cuda() for value in batch[:-1]))
    twin = copy.deepcopy(model).cuda()
    for name, value in outputs(twin(on_device)).items():
        torch.testing.assert_close(value.cpu(), expected[name], atol=1e-4, rtol=1e-3)
    loss = twin.loss(twin(on_device), on_device)
    torch.testing.assert_close(loss.cpu(), model.loss(model(batch), batch), atol=1e-4, rtol=1e-4)


def test_repr_tells_the_arguments_apart(market: HeteroData) -> None:
    # A run that is resumed is compared by it.
    text = repr(build(market, loss='naive', output='sum', floor=0.05))
    assert "merge='graph', loss='naive', floor=0.05, form='paper'" in text
    assert "merge='graph', output='sum'" in text
    assert "BehaviorGraphConv(6, 6, num_behaviors=10, form='paper')" in text
    assert len({repr(build(market, **kwargs)) for kwargs in VARIANTS}) == len(VARIANTS)


GRAPH: dict[str, Any] = {
    'num_behaviors': 2,
    'edge_index': torch.tensor([[0, 1], [1, 0]]),
    'edge_weight': torch.ones(2),
}


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'merge': 'mean'}, "'merge' must be one of 'graph', .*, but got 'mean'"),
        ({'loss': 'bce'}, "'loss' must be one of 'ipw', .*, but got 'bce'"),
        ({'output': 'max'}, "'output' must be one of 'mean', .*, but got 'max'"),
        ({'tower_channels': (64,)}, r"'tower_channels' must hold two sizes .* got \(64,\)"),
        ({'tower_channels': 64}, "'tower_channels' must be a sequence of sizes .* got 64"),
        (
            {'tower_channels': (64, 0)},
            r"'tower_channels\[1\]' must be at least 1, .* got 0",
        ),
        ({'tower_channels': (64, 2.5)}, r"'tower_channels\[1\]' must be an integer.* got 2.5"),
        ({'tower_channels': '64'}, "'tower_channels' must be a sequence of sizes .* got '64'"),
        ({'hidden_channels': 0}, "'hidden_channels' must be at least 1, but got 0"),
        ({'num_layers': 0}, "'num_layers' must be at least 1, but got 0"),
        ({'num_buckets': -1}, "'num_buckets' must be at least 1, but got -1"),
        ({'embedding_dim': 1.5}, "'embedding_dim' must be an integer, but got 1.5"),
        ({'floor': 0.0}, r"'floor' must be a number in \(0, 1\], but got 0.0"),
        ({'floor': math.nan}, r"'floor' must be a number in \(0, 1\], but got nan"),
        ({'num_dense': -1}, "'num_dense' must be at least 0, but got -1"),
        ({'num_dense': True}, "'num_dense' must be an integer, but got True"),
        ({'num_behaviors': 2.5}, "'num_behaviors' must be an integer, but got 2.5"),
        ({'num_behaviors': 0}, "merge='graph' needs .* num_behaviors is 0.*take merge='none'"),
        ({'num_behaviors': 0, 'merge': 'gru'}, "merge='gru' needs .* num_behaviors is 0"),
        ({'edge_index': None}, "'edge_index' to be a tensor .*, but got None"),
        ({'edge_weight': None}, "'edge_weight' to be a tensor .*, but got None"),
        ({'edge_weight': torch.ones(3)}, r"'edge_weight' of shape \[2\], but got shape \[3\]"),
        ({'edge_index': torch.tensor([[0, 2], [1, 0]])}, 'behaviors .* from 0 to 2.* from 0 to 1'),
        ({'edge_index': torch.ones(2, 2)}, "'edge_index' of dtype int64, but got torch.float32"),
        ({'form': 'released'}, "'form' must be one of 'paper', 'literal', but got 'released'"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError, IndexError), match=message):
        GMCM(['user'], **{**SMALL, **GRAPH, **kwargs})


def test_wrong_fields() -> None:
    with pytest.raises(TypeError, match="'fields' must be a sequence of names, but got 'user'"):
        GMCM('user', **SMALL, **GRAPH)
    with pytest.raises(ValueError, match='one name or more'):
        GMCM([], **SMALL, **GRAPH)


def test_wrong_batches(market: HeteroData) -> None:
    model = build(market)
    batch = some_rows(market, 20)
    with pytest.raises(ValueError, match=r"'dense' of shape \[B, 48\], but got shape \[20, 47\]"):
        model(batch._replace(dense=batch.dense[:, 1:]))
    with pytest.raises(ValueError, match=r"'ids' of shape \[B, 13\].*but got shape \[20, 12\]"):
        model(batch._replace(sparse=batch.sparse[:, 1:]))
    logits = model(batch)
    for name in ('label', 'conversion', 'behavior'):
        with pytest.raises(ValueError, match=rf"learns from batches with \['{name}'\], but these"):
            model.loss(logits, batch._replace(**{name: None}))
    # Without a merge there is no behavior to learn.
    model = build(market, merge='none')
    value = model.loss(model(batch), batch._replace(behavior=None))
    assert bool(value.isfinite())


def test_wrong_data(market: HeteroData) -> None:
    raw = SyntheticMarket(50, 30, 3000, log=False)[0]
    with pytest.raises(ValueError, match="the node types .*apply BehaviorGraph first.*'merge'"):
        GMCM.from_data(raw)
    assert GMCM.from_data(raw, merge='concat', **SMALL).num_behaviors == 10
    data = copy.copy(market)
    del data[CLICKS]['edge_label_conversion']
    with pytest.raises(ValueError, match=r"needs data.* to have \['edge_label_conversion'\]"):
        GMCM.from_data(data)
    data = copy.copy(raw)
    del data[CLICKS]['edge_label_behavior']
    with pytest.raises(ValueError, match="merge='concat' needs .* num_behaviors is 0"):
        GMCM.from_data(data, merge='concat')
    with pytest.raises(TypeError, match='GMCM.from_data expects a HeteroData .* but got str'):
        GMCM.from_data('log')  # type: ignore[arg-type]
