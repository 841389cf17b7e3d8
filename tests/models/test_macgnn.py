import copy
import io
import pickle
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.loader import PairBatch, PairLoader
from mag.models import MacGNN
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

GROUPS = {'user': 'group', 'item': 'category'}
RELEASED = {'form': 'released'}
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='There is no CUDA device.')

# The order in which the golden parameters are numbered.
PARAMETERS = [
    *(f'{table}_embedding.weight' for table in ('user', 'item', 'macro_user', 'macro_item')),
    *(f'user_conv.lin_{name}.weight' for name in ('query', 'key', 'value')),
    *(f'item_conv.lin_{name}.weight' for name in ('query', 'key', 'value')),
    *(f'head.{layer}.{name}' for layer in (0, 2, 4) for name in ('weight', 'bias')),
]
FEATURES = [
    *(0.042336002418, -0.227040748592),
    *(0.030235325467, 0.007251878516, -0.036271018074, 0.022936260344),
    *(-0.032273279591, 0.013448432425, 0.021080234371, -0.030993378119),
    *(-0.002076382005, 0.002115609646, 0.000315573482, -0.002378259459),
    *(-0.227040748592, -0.287677282399),
    *(-0.059043135212, 0.042288722836, 0.023846498752, -0.062136012873),
    *(0.030235325467, 0.007251878516, -0.036271018074, 0.022936260344),
    *(-0.059043135212, 0.042288722836, 0.023846498752, -0.062136012873),
]
# Of the eight features, absent macro nodes and paddings touch two.
FEATURES_UNMASKED = [
    *FEATURES[:16],
    *(-0.03287933358, 0.011693097676, 0.023147242365, -0.030958401046),
    *FEATURES[20:24],
    *(-0.019656896415, 0.014078944848, 0.007939079694, -0.020686590647),
]
LOGITS_MASKED_EVAL = [-0.049182777225, -0.047738226052, -0.045408130257]


def coarse(graph: HeteroData, num_hops: int = 2) -> HeteroData:
    if 'cutoff' not in graph['user', 'clicks', 'item']:
        graph, _, _ = TemporalSplit(0.1, 0.9, 0.95, num_windows=1)(graph)
    return MacroCoarsen(GROUPS, num_hops)(RecentNeighbors(3)(graph))


def golden_model(**kwargs: Any) -> MacGNN:
    model = MacGNN(3, 4, 2, 2, embedding_dim=2, hidden_channels=(6, 4), temperature=0.8, **kwargs)
    parameters = dict(model.double().named_parameters())
    with torch.no_grad():
        for offset, name in enumerate(PARAMETERS, start=1):
            values = torch.arange(parameters[name].numel(), dtype=torch.float64)
            parameters[name].copy_((0.3 * (values + offset).sin()).view_as(parameters[name]))
    return model


def golden_batch(graph: HeteroData) -> PairBatch:
    batch = PairLoader(coarse(graph)).request([0, 1, 2], [0, 3, 2])
    return batch._replace(
        user_hops=tuple(counts.double() for counts in batch.user_hops),
        item_hops=tuple(counts.double() for counts in batch.item_hops),
    )


def log_batch(log: HeteroData, num_hops: int = 2) -> PairBatch:
    (batch,) = PairLoader(coarse(log, num_hops))
    return batch


@pytest.mark.parametrize(
    'kwargs, training, features, row_sums, logits',
    [
        (
            {'form': 'released', 'attention': True},
            False,
            FEATURES_UNMASKED,
            [-0.729202191016, -0.845410460757, 0.883892263379],
            [-0.04838549292, -0.038501083108, -0.066383519337],
        ),
        (
            {},
            False,
            FEATURES,
            [-0.791967186905, -0.828927057134, 0.862059479248],
            LOGITS_MASKED_EVAL,
        ),
        (
            {},
            True,
            FEATURES,
            [-0.791967186905, -0.828927057134, 0.862059479248],
            [-0.049755564763, -0.036265303848, -0.067230254584],
        ),
    ],
    ids=['released', 'paper-eval', 'paper-train'],
)
def test_golden_forward(
    toy_graph: HeteroData,
    kwargs: dict[str, Any],
    training: bool,
    features: list[float],
    row_sums: list[float],
    logits: list[float],
) -> None:
    model = golden_model(**kwargs).train(training)
    batch = golden_batch(toy_graph)
    out = model.features(batch)
    torch.testing.assert_close(out[0].tolist(), features, atol=1e-11, rtol=0)
    torch.testing.assert_close(out.sum(dim=1).tolist(), row_sums, atol=1e-11, rtol=0)
    torch.testing.assert_close(model(batch).tolist(), logits, atol=1e-11, rtol=0)


def test_released_attention_sums_the_values() -> None:
    # With alpha = 1 an aggregation is the plain weighted sum, and a recent list the plain sum.
    model = golden_model(**RELEASED)
    recent = torch.tensor([[-1, 0, 3]])
    counts = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    batch = PairBatch(
        torch.tensor([0]), torch.tensor([0]), (counts,) * 2, (counts,) * 2, recent, recent[:, :2]
    )
    value = model.item_conv.lin_value.weight
    weight = torch.tensor([4 ** (1 / 0.8), 1], dtype=torch.float64)
    user_hop1 = value @ (weight / weight.sum() @ model.macro_item_embedding.weight)
    user_recent = value @ (model.item_embedding.weight[1] + model.item_embedding.weight[4])
    features = model.features(batch)[0]
    torch.testing.assert_close(features[2:6], user_hop1)
    torch.testing.assert_close(features[10:14], user_recent)


def test_released_attention_is_inert_and_waits_for_no_gradient(click_log: HeteroData) -> None:
    for attention, inert in ((False, True), (True, False)):
        model = MacGNN.from_data(coarse(click_log), attention=attention)
        batch = log_batch(click_log)
        F.binary_cross_entropy_with_logits(model(batch), batch.label).backward()
        for name, parameter in model.named_parameters():
            if inert and ('query' in name or 'key' in name):
                assert parameter.grad is None and not parameter.requires_grad
            else:
                assert parameter.grad.abs().sum() > 0, name


def test_number_of_parameters() -> None:
    # The paper's code counts 72 413, with 190 of a category table that it never reads.
    sizes = (943, 1682, 20, 19)
    released = sum(p.numel() for p in MacGNN(*sizes, **RELEASED).parameters())
    assert released == 72_413 - 190
    # An alpha for each of 280 features instead of one for each of 2 layers.
    assert sum(p.numel() for p in MacGNN(*sizes).parameters()) == released + 280 - 2
    model = MacGNN(*sizes)
    assert model.user_conv.lin_query.weight.shape == (20, 10)
    assert model.user_embedding.weight.shape == (944, 10)


@pytest.mark.parametrize(
    'kwargs, in_channels',
    [
        ({}, 140),
        ({'weighting': False}, 140),
        ({'recent': False}, 100),
        ({'num_hops': 1}, 100),
        ({'item_graph': False}, 100),
        ({'num_hops': 3}, 180),
        ({'num_hops': 1, 'recent': False, 'item_graph': False}, 40),
    ],
)
def test_ablations_read_less(
    click_log: HeteroData, kwargs: dict[str, Any], in_channels: int
) -> None:
    data = coarse(click_log, num_hops=3)
    batch = log_batch(click_log, num_hops=3)
    model = MacGNN.from_data(data, **{'num_hops': 2, **kwargs}).eval()
    assert model.head[0].in_features == in_channels
    out = model(batch)
    assert out.shape == batch.label.shape and bool(out.isfinite().all())
    reads = {
        'user_hops': True,
        'item_hops': model.item_graph,
        'user_recent': model.recent,
        'item_recent': model.recent,
    }
    for name, is_read in reads.items():
        value = getattr(batch, name)
        other = tuple(c.flip(0) for c in value) if isinstance(value, tuple) else value.flip(0)
        assert torch.equal(model(batch._replace(**{name: other})), out) is not is_read
    # Hops beyond num_hops are not read.
    other = tuple(c if k < model.num_hops else c + 1 for k, c in enumerate(batch.user_hops))
    assert torch.equal(model(batch._replace(user_hops=other)), out)
    counts = tuple(5 * c for c in batch.user_hops)
    assert (
        torch.equal(model(batch._replace(user_hops=counts)), out) is not model.user_conv.weighting
    )


def test_ablations_leave_the_other_features_as_they_are(toy_graph: HeteroData) -> None:
    batch = golden_batch(toy_graph)

    def features(**kwargs: Any) -> Tensor:
        # Parameters after the features differ in size, so only those before are numbered.
        model = MacGNN(3, 4, 2, 2, embedding_dim=2, temperature=0.8, **kwargs).double()
        parameters = dict(model.named_parameters())
        full = dict(golden_model().named_parameters())
        with torch.no_grad():
            for name in PARAMETERS[:10]:
                parameters[name].copy_(full[name])
        return model.features(batch)

    whole = torch.tensor(FEATURES, dtype=torch.float64)
    e_u, u1, u2, rs_u, e_i, i1, i2, rs_i = whole.split([2, 4, 4, 4, 2, 4, 4, 4])
    for kwargs, expected in (
        ({'recent': False}, [e_u, u1, u2, e_i, i1, i2]),
        ({'num_hops': 1}, [e_u, u1, rs_u, e_i, i1, rs_i]),
        ({'item_graph': False}, [e_u, u1, u2, rs_u, e_i, rs_i]),
    ):
        torch.testing.assert_close(features(**kwargs)[0], torch.cat(expected), atol=1e-11, rtol=0)


@pytest.mark.parametrize('num_hops', [1, 2, 3])
def test_hops_alternate_between_users_and_items(click_log: HeteroData, num_hops: int) -> None:
    model = MacGNN.from_data(coarse(click_log, num_hops)).eval()
    batch = log_batch(click_log, num_hops)
    features = model.features(batch).split(
        [10, *[20] * (num_hops + 1), 10, *[20] * (num_hops + 1)], dim=1
    )
    user, item = model.user_embedding(batch.user), model.item_embedding(batch.item)
    assert torch.equal(features[0], user) and torch.equal(features[num_hops + 2], item)
    users = (model.user_conv, model.macro_user_embedding.weight, user)
    items = (model.item_conv, model.macro_item_embedding.weight, item)
    for hop in range(1, num_hops + 1):
        # A user reaches items at odd hops; an item reaches users at odd hops.
        for start, hops, (conv, macro, target) in (
            (0, batch.user_hops, items if hop % 2 else users),
            (num_hops + 2, batch.item_hops, users if hop % 2 else items),
        ):
            expected = conv((macro, target), hops[hop - 1])
            torch.testing.assert_close(features[start + hop], expected)


def test_padding_of_recent_lists_does_not_matter(click_log: HeteroData) -> None:
    model = MacGNN.from_data(coarse(click_log)).eval()
    batch = log_batch(click_log)
    out = model(batch)
    longer = batch._replace(
        user_recent=F.pad(batch.user_recent, (2, 0), value=-1),
        item_recent=F.pad(batch.item_recent, (0, 5), value=-1),
    )
    torch.testing.assert_close(model(longer), out)
    with torch.no_grad():
        model.user_embedding.weight[0] = 1e3
        model.item_embedding.weight[0] = -1e3
    torch.testing.assert_close(model(batch), out)


def test_the_row_of_the_padding_gets_no_gradient(click_log: HeteroData) -> None:
    model = MacGNN.from_data(coarse(click_log))
    batch = log_batch(click_log)
    assert bool((batch.user_recent < 0).any())
    model(batch).sum().backward()
    assert model.item_embedding.weight.grad[0].abs().sum() == 0
    assert model.user_embedding.weight.grad[0].abs().sum() == 0


def test_evaluation_is_independent_of_the_batch_unless_dice_is_released(
    click_log: HeteroData,
) -> None:
    loader = PairLoader(coarse(click_log))
    items = torch.arange(15)
    for kwargs, independent in (({}, True), (RELEASED, False)):
        model = MacGNN.from_data(coarse(click_log), **kwargs).eval()
        whole = model(loader.request(3, items))
        part = model(loader.request(3, items[:4]))
        assert torch.allclose(whole[:4], part, atol=1e-6) is independent


def test_learns_the_clicks(click_log: HeteroData) -> None:
    torch.manual_seed(0)
    data = coarse(click_log)
    data['user', 'clicks', 'item'].edge_label = (
        data['user', 'clicks', 'item'].edge_label_index.sum(dim=0) % 2
    ).float()
    (batch,) = PairLoader(data)
    model = MacGNN.from_data(data)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(model(batch), batch.label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.6 and losses[-1] < 0.1


def test_copies_agree(click_log: HeteroData) -> None:
    data, batch = coarse(click_log), log_batch(click_log)
    model = MacGNN.from_data(data).train()
    model(batch)
    model.eval()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = MacGNN.from_data(data).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch), model(batch))


def test_reset_parameters_starts_over(click_log: HeteroData) -> None:
    model = MacGNN.from_data(coarse(click_log))
    before = copy.deepcopy(model.state_dict())
    model(log_batch(click_log))
    model.reset_parameters()
    for name, value in model.state_dict().items():
        if 'alpha' in name or 'running' in name or 'tracked' in name:
            assert torch.equal(value, before[name])
        else:
            assert not torch.equal(value, before[name]), name
    # Xavier: uniform up to sqrt(6 / (rows + columns)).
    bound = (6 / (26 + 10)) ** 0.5
    assert 0.9 * bound < model.user_embedding.weight.abs().max() <= bound


@pytest.mark.parametrize('kwargs', [{}, RELEASED], ids=['paper', 'released'])
def test_export_scores_batches_of_other_sizes(
    click_log: HeteroData, kwargs: dict[str, Any]
) -> None:
    loader = PairLoader(coarse(click_log))
    model = MacGNN.from_data(coarse(click_log), **kwargs).eval()
    batch = loader.request(2, torch.arange(10))
    size = torch.export.Dim('batch', min=2)
    shapes = torch.utils._pytree.tree_map_only(Tensor, lambda tensor: {0: size}, batch)
    program = torch.export.export(model, (batch,), dynamic_shapes=(shapes,))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    # torch writes its guards by replacing names in text, and "user" is the start of "user_hops".
    scorer = torch.export.load(file).module(check_guards=False)
    for user, items in ((2, range(10)), (0, range(15)), (24, [3, 5]), (7, [1] * 300)):
        request = loader.request(user, torch.tensor([*items]))
        torch.testing.assert_close(scorer(request), model(request), atol=1e-6, rtol=1e-5)


def test_compiled_training_is_one_graph_with_the_same_gradients(click_log: HeteroData) -> None:
    batch = log_batch(click_log)
    model = MacGNN.from_data(coarse(click_log))
    twin = copy.deepcopy(model)
    # Inductor would spend minutes on what is asserted here; the next test has it compile.
    for scorer in (model, torch.compile(twin, fullgraph=True, backend='aot_eager')):
        F.binary_cross_entropy_with_logits(scorer(batch), batch.label).backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(other.grad, parameter.grad, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(
    not any(shutil.which(name) for name in ('g++', 'clang++', 'c++')),
    reason='torch.compile needs a C++ compiler.',
)
def test_compiled_scores_are_the_same(click_log: HeteroData) -> None:
    batch = log_batch(click_log)
    # One hop: most of the time goes to the compiler, kernel by kernel.
    model = MacGNN.from_data(coarse(click_log), num_hops=1).eval()
    with torch.no_grad():
        out = torch.compile(model, fullgraph=True)(batch)
        torch.testing.assert_close(out, model(batch), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('kwargs', [{}, RELEASED], ids=['paper', 'released'])
def test_bfloat16_autocast_is_close(click_log: HeteroData, kwargs: dict[str, Any]) -> None:
    batch = log_batch(click_log)
    model = MacGNN.from_data(coarse(click_log), **kwargs)
    expected = model(batch)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = model(batch)
    torch.testing.assert_close(out.float(), expected, atol=3e-2, rtol=0)
    F.binary_cross_entropy_with_logits(out.float(), batch.label).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), name


@needs_cuda
def test_cuda_agrees_with_cpu(click_log: HeteroData) -> None:
    batch = log_batch(click_log)
    model = MacGNN.from_data(coarse(click_log)).eval()
    on_device = PairBatch(
        *(
            tuple(table.cuda() for table in value) if isinstance(value, tuple) else value.cuda()
            for value in batch
        )
    )
    expected = model(batch)
    twin = copy.deepcopy(model).cuda()
    torch.testing.assert_close(twin(on_device).cpu(), expected, atol=1e-5, rtol=1e-4)
    with torch.autocast('cuda', dtype=torch.bfloat16):
        torch.testing.assert_close(twin(on_device).float().cpu(), expected, atol=3e-2, rtol=0)


def test_from_data_reads_what_there_is(click_log: HeteroData, toy_graph: HeteroData) -> None:
    model = MacGNN.from_data(coarse(click_log, num_hops=3), embedding_dim=4)
    assert model.num_hops == 3 and model.recent
    assert model.user_embedding.weight.shape == (26, 4)
    assert model.item_embedding.weight.shape == (16, 4)
    assert model.macro_user_embedding.weight.shape == (3, 4)
    assert model.macro_item_embedding.weight.shape == (4, 4)
    assert not MacGNN.from_data(MacroCoarsen(GROUPS)(toy_graph)).recent


def test_from_data_names_the_step_that_is_missing(toy_graph: HeteroData) -> None:
    with pytest.raises(ValueError, match='reads 1 hops, but the data has 0: apply MacroCoarsen'):
        MacGNN.from_data(toy_graph)
    data = MacroCoarsen(GROUPS)(toy_graph)
    with pytest.raises(ValueError, match='reads 3 hops, but the data has 2.*num_hops=3'):
        MacGNN.from_data(data, num_hops=3)
    with pytest.raises(ValueError, match='asked for recent neighbors.*RecentNeighbors first'):
        MacGNN.from_data(data, recent=True)


@pytest.mark.parametrize(
    'name, value',
    [
        ('num_users', 0),
        ('num_items', -1),
        ('num_macro_users', 2.5),
        ('num_macro_items', True),
        ('num_hops', 0),
        ('embedding_dim', None),
    ],
)
def test_wrong_sizes(name: str, value: Any) -> None:
    sizes = {'num_users': 3, 'num_items': 4, 'num_macro_users': 2, 'num_macro_items': 2}
    message = f"'{name}' must be (an integer|at least 1), but got {value}"
    with pytest.raises((TypeError, ValueError), match=message):
        MacGNN(**{**sizes, name: value})


def test_wrong_options() -> None:
    for kwargs, message in (
        ({'form': 'new'}, "'form' must be one of 'paper', 'released', but got 'new'"),
        ({'temperature': 0}, r"'temperature' must be a number in \(0, inf\], but got 0"),
        ({'hidden_channels': (8, 0)}, r"'hidden_channels\[1\]' must be at least 1, but got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            MacGNN(3, 4, 2, 2, **kwargs)


def test_wrong_types() -> None:
    with pytest.raises(TypeError, match="'hidden_channels' must be a sequence.*got 8"):
        MacGNN(3, 4, 2, 2, hidden_channels=8)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match='MacGNN.from_data expects a HeteroData .*, but got str'):
        MacGNN.from_data('log')  # type: ignore[arg-type]


def test_the_form_says_what_the_layers_do_and_ablations_change_it() -> None:
    def parts(**kwargs: Any) -> tuple[str, bool, str]:
        model = MacGNN(3, 4, 2, 2, **kwargs)
        assert model.user_conv.form == model.item_conv.form
        assert model.user_conv.mask_zero is model.item_conv.mask_zero
        return model.user_conv.form, model.user_conv.mask_zero, model.head[1].form

    assert parts() == ('paper', True, 'paper')
    assert parts(form='released') == ('released', False, 'released')
    # "w/o attention", and what the golden numbers of the released code have.
    assert parts(attention=False) == ('released', True, 'paper')
    assert parts(form='released', attention=True) == ('paper', False, 'released')
    assert parts(form='released', mask_zero=True) == ('released', True, 'released')
    assert parts(mask_zero=False) == ('paper', False, 'paper')


def test_options_reach_the_layers() -> None:
    defaults = {
        'temperature': 1.9,
        'form': 'paper',
        'mask_zero': True,
        'weighting': True,
        'renormalize': False,
    }
    others = {
        'temperature': 0.7,
        'form': 'released',
        'mask_zero': False,
        'weighting': False,
        'renormalize': True,
    }
    for kwargs, expected in (({}, defaults), (others, others)):
        model = MacGNN(3, 4, 2, 2, **kwargs)
        for conv in (model.user_conv, model.item_conv):
            assert {name: getattr(conv, name) for name in expected} == expected


@pytest.mark.parametrize('form', ['paper', 'released'])
@pytest.mark.parametrize('num_hops', [1, 2])
@pytest.mark.parametrize('item_graph', [True, False])
@pytest.mark.parametrize('recent', [True, False])
def test_every_trained_parameter_gets_a_gradient(
    click_log: HeteroData, form: str, num_hops: int, item_graph: bool, recent: bool
) -> None:
    data = coarse(click_log)
    model = MacGNN.from_data(
        data, form=form, num_hops=num_hops, item_graph=item_graph, recent=recent
    )
    model(log_batch(click_log)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (parameter.grad is not None), name


@pytest.mark.parametrize('kwargs', [{}, RELEASED, {'renormalize': True}])
def test_counts_of_float32_serve_other_precisions(
    click_log: HeteroData, kwargs: dict[str, Any]
) -> None:
    batch = log_batch(click_log)
    model = MacGNN.from_data(coarse(click_log), **kwargs).eval()
    expected = model(batch)
    torch.testing.assert_close(
        copy.deepcopy(model).double()(batch), expected.double(), atol=1e-6, rtol=1e-5
    )
    low = copy.deepcopy(model).bfloat16()(batch)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, atol=0.05, rtol=0.05)


def test_requests_of_nothing_and_batches_without_recent_lists(click_log: HeteroData) -> None:
    loader = PairLoader(coarse(click_log))
    model = MacGNN.from_data(coarse(click_log)).eval()
    assert model(loader.request(0, torch.tensor([], dtype=torch.long))).shape == (0,)
    batch = loader.request(0, torch.tensor([1, 2], dtype=torch.uint8))
    for name, node_type in (('user_recent', 'items'), ('item_recent', 'users')):
        with pytest.raises(ValueError, match=f'no recent {node_type}.*RecentNeighbors'):
            model(batch._replace(**{name: torch.empty(2, 0, dtype=torch.long)}))


def test_batches_that_do_not_fit_the_model(toy_graph: HeteroData) -> None:
    model = MacGNN.from_data(coarse(toy_graph, num_hops=3)).eval()
    batch = log_batch(toy_graph)
    with pytest.raises(ValueError, match='reads 3 hops, but the batch has 2 of the user'):
        model(batch)
    with pytest.raises(ValueError, match=r'counts of shape \[12, 5\] for 12 targets'):
        MacGNN(3, 4, 2, 5).eval()(batch)


@pytest.mark.parametrize(
    'kwargs',
    [
        {},
        RELEASED,
        {'num_hops': 1},
        {'num_hops': 3, 'renormalize': True},
        {'recent': False, 'weighting': False},
        {'item_graph': False},
        {'temperature': 0.02},
        {'mask_zero': False},
    ],
    ids=str,
)
def test_states_of_items_and_one_user_give_the_logits_of_all_pairs(
    click_log: HeteroData, kwargs: dict[str, Any]
) -> None:
    data = coarse(click_log, num_hops=3)
    loader = PairLoader(data)
    model = MacGNN.from_data(data, **{'num_hops': 2, **kwargs}).eval().double()
    items = torch.arange(-1, 15)
    for user in (-1, 0, 7):
        batch = _doubles(loader.request(user, items))
        # A count so high that the weights of others round to 0.
        batch.item_hops[0][3, :1] = 1e9
        state = model.item_state(batch.item, batch.item_hops, batch.item_recent)
        of_user = batch.user[:1], tuple(of[:1] for of in batch.user_hops), batch.user_recent[:1]
        for rows in (torch.arange(16), torch.tensor([3, 3, 0]), torch.tensor([5, 2])):
            expected = model(_rows(batch, rows))
            torch.testing.assert_close(
                model.score_request(*of_user, state[rows]), expected, rtol=0, atol=1e-12
            )
        # A state is that of its row alone.
        again = model.item_state(
            batch.item[3:5], tuple(of[3:5] for of in batch.item_hops), batch.item_recent[3:5]
        )
        torch.testing.assert_close(again, state[3:5], rtol=0, atol=1e-15)


def _doubles(batch: PairBatch) -> PairBatch:
    return batch._replace(
        user_hops=tuple(of.double() for of in batch.user_hops),
        item_hops=tuple(of.double() for of in batch.item_hops),
    )


def _rows(batch: PairBatch, rows: Tensor) -> PairBatch:
    return torch.utils._pytree.tree_map_only(Tensor, lambda of: of[rows], batch)


def test_states_that_are_none_of_the_model(click_log: HeteroData) -> None:
    data = coarse(click_log)
    model = MacGNN.from_data(data).eval()
    batch = PairLoader(data).request(0, torch.arange(4))
    of_user = batch.user[:1], tuple(of[:1] for of in batch.user_hops), batch.user_recent[:1]
    state = model.item_state(batch.item, batch.item_hops, batch.item_recent)
    with pytest.raises(ValueError, match=rf'item_state made, but got shape \[4, {14}\]'):
        model.score_request(*of_user, state[:, :14])
    with pytest.raises(TypeError, match="expects 'state' of floats, but got torch.int64"):
        model.score_request(*of_user, state.long())
