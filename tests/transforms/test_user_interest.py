import copy
import io
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import one_hot
from torch_geometric.data import HeteroData
from torchmetrics.functional import auroc

from mag.datasets import SyntheticMarket
from mag.models import UserInterest
from mag.transforms import InterestHypergraph, TemporalSplit, TimeSlots

CLICKS = ('user', 'clicks', 'item')

GOLDEN_INTEREST = [0.622459331202, 0.437823499114, 0.377540668798]
GOLDEN_LOSS = 0.47882411700302374
GOLDEN_LOSS_OF_LOGITS = -0.1740605801211565


def golden_model(**kwargs: Any) -> UserInterest:
    r"""A user and three items, of which the user clicked the first, with one modality."""
    x = torch.tensor([[1.0, -0.5], [-1.0, 0.0], [0.0, 1.0]])
    model = UserInterest(1, {'visual': x}, embedding_dim=2, **kwargs).double()
    with torch.no_grad():
        model.user_embedding.weight.copy_(torch.tensor([[1.0, -0.5]]))
        model.item_deviation.weight.copy_(torch.tensor([[0.5, 1.0]]).expand(3, 2) - 1)
        model.lin.weight.copy_(torch.tensor([[1.0, 0.0], [0.5, 1.0]]))
        model.lin_modality[0].weight.copy_(torch.eye(2))
        model.lin_modality[0].bias.zero_()
    return model


GOLDEN_ROW = torch.tensor([0]), torch.tensor([0]), torch.tensor([[1, 2]])


def inputs(**kwargs: Any) -> tuple[UserInterest, Tensor, Tensor, Tensor]:
    r"""A model of two modalities, and users, items they clicked and items they did not."""
    torch.manual_seed(0)
    features = {'visual': torch.randn(7, 3), 'text': torch.randn(7, 5)}
    model = UserInterest(4, features, embedding_dim=6, **kwargs)
    torch.nn.init.normal_(model.user_embedding.weight)
    torch.nn.init.normal_(model.item_deviation.weight)
    user, item = torch.tensor([0, 1, 3, 3]), torch.tensor([6, 2, 0, 2])
    return model, user, item, torch.tensor([[1, 2, 4], [0, 1, 3], [5, 5, 6], [1, 3, 4]])


def log(seed: int = 0, num_users: int = 30, num_items: int = 20) -> HeteroData:
    generator = torch.Generator().manual_seed(seed)
    data = HeteroData()
    data['user'].num_nodes, data['item'].num_nodes = num_users, num_items
    data['item'].x_visual = torch.randn(num_items, 4, generator=generator)
    data['item'].x_text = torch.randn(num_items, 6, generator=generator)
    clicks = data[CLICKS]
    clicks.edge_label_index = torch.stack(
        [torch.randint(size, (400,), generator=generator) for size in (num_users, num_items)]
    )
    clicks.edge_label = (torch.rand(400, generator=generator) < 0.5).float()
    clicks.edge_label_time = torch.arange(400)
    clicked = clicks.edge_label == 1
    clicks.edge_index = clicks.edge_label_index[:, clicked]
    clicks.time = clicks.edge_label_time[clicked]
    return data


def fitted(data: HeteroData, seed: int = 0, **kwargs: Any) -> UserInterest:
    torch.manual_seed(0)
    model = UserInterest.from_data(data, embedding_dim=8)
    return model.fit(data, batch_size=32, seed=seed, progress=False, **kwargs)


def test_golden_interest_and_loss() -> None:
    model = golden_model()
    user, item, negative = GOLDEN_ROW
    scores = model.logits(user, item, torch.tensor([[0, 1, 2]]))
    assert scores.flatten().tolist() == pytest.approx([0.5, -0.25, -0.5], abs=1e-12)
    assert scores.sigmoid().flatten().tolist() == pytest.approx(GOLDEN_INTEREST, abs=1e-11)
    assert model(user, item).item() == pytest.approx(GOLDEN_INTEREST[0], abs=1e-11)
    assert model.loss(user, item, negative).item() == pytest.approx(GOLDEN_LOSS, abs=1e-12)
    loss = golden_model(logits=True).loss(user, item, negative).item()
    assert loss == pytest.approx(GOLDEN_LOSS_OF_LOGITS, abs=1e-12)
    # The interests as they enter the loss of S3-Rec's code, and the other reading of eq. 10.
    target = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    entropy = torch.nn.functional.binary_cross_entropy(
        scores.flatten().sigmoid(), target, reduction='sum'
    )
    assert entropy.item() == pytest.approx(1.524093388239057, abs=1e-12)
    shared = model.lin(model.x_0[0]) @ (1 + model.item_deviation.weight[0])
    literal = (shared * model.user_embedding.weight[0]).sigmoid().tolist()
    assert literal == pytest.approx([0.622459331202, 0.437823499114], abs=1e-11)


def test_with_the_positive_the_loss_is_a_cross_entropy() -> None:
    target = torch.tensor([0])
    for logits, score in ((False, GOLDEN_INTEREST), (True, [0.5, -0.25, -0.5])):
        model = golden_model(include_positive=True, logits=logits)
        expected = torch.nn.functional.cross_entropy(
            torch.tensor([score], dtype=torch.float64), target
        )
        loss = model.loss(*GOLDEN_ROW)
        torch.testing.assert_close(loss, expected, atol=1e-11, rtol=0)
        assert loss > 0


def test_loss_falls_with_the_interest_in_the_positive() -> None:
    model = golden_model()
    losses = []
    for strength in (0.5, 1.0, 2.0, 4.0):
        scaled = copy.deepcopy(model)
        # Of the three items only that of item 0 has a negative second entry.
        scaled.x_0[0] *= strength
        losses.append(scaled.loss(*GOLDEN_ROW).item())
    assert losses == sorted(losses, reverse=True)


def test_scores_by_hand() -> None:
    model, user, item, negative = inputs()
    scores = model.logits(user, item, negative)
    interest = model(user, item)
    features = [model.x_0, model.x_1]
    for row, modality in itertools.product(range(4), range(2)):
        embedding = (1 + model.item_deviation.weight[item[row]]) * model.user_embedding.weight[
            user[row]
        ]
        attribute = model.lin(model.lin_modality[modality](features[modality])) @ embedding
        torch.testing.assert_close(scores[row, :, modality], attribute[negative[row]])
        torch.testing.assert_close(interest[row, modality], attribute[item[row]].sigmoid())


@pytest.mark.parametrize('include_positive', [False, True])
def test_items_without_a_modality_take_no_part(include_positive: bool) -> None:
    model, user, item, negative = inputs(include_positive=include_positive)
    # The clicked item of row 0, and a negative of row 2.
    model.has_modality[6, 0] = False
    # A negative of rows 0 and 3.
    model.has_modality[4, 1] = False
    parts = []
    for row, modality in itertools.product(range(4), range(2)):
        if (row, modality) == (0, 0):
            continue
        items = [int(node) for node in negative[row] if model.has_modality[node, modality]]
        assert len(items) == (2 if (row, modality) in {(2, 0), (0, 1), (3, 1)} else 3)
        items = [int(item[row]), *items]
        scores = model.logits(user[row : row + 1], item[row : row + 1], torch.tensor([items]))
        score = scores[0, :, modality].sigmoid()
        against = score if include_positive else score[1:]
        parts.append(against.logsumexp(0) - score[0])
    expected = torch.stack(parts).mean()
    torch.testing.assert_close(model.loss(user, item, negative), expected)
    interest = model(user, item)
    assert interest[0, 0] == 0 and bool((interest.flatten()[1:] > 0).all())


def test_rows_that_lack_everything_have_a_loss_and_gradients_of_zero() -> None:
    for include_positive, nobody in itertools.product((False, True), repeat=2):
        model, user, item, negative = inputs(include_positive=include_positive)
        # Of the last row the negatives, or the positive too.
        model.has_modality[slice(None) if nobody else [1, 3, 4]] = False
        rows = slice(3, 4)
        loss = model.loss(user[rows], item[rows], negative[rows])
        assert loss.item() == 0
        loss.backward()
        for parameter in model.parameters():
            assert bool((parameter.grad == 0).all())


def test_zero_features_are_none() -> None:
    features = {'visual': torch.tensor([[0.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), 'text': torch.eye(3)}
    assert UserInterest(2, features).has_modality.tolist() == [[False, True], [True, True]] + [
        [True, True]
    ]


def test_from_data_reads_features_and_which_are_there() -> None:
    data = log()
    data['item'].x_visual[3] = 0
    data['item'].has_text = torch.arange(20) != 5
    model = UserInterest.from_data(data, embedding_dim=4)
    assert model.modalities == ('visual', 'text')
    assert torch.equal(model.x_1, data['item'].x_text.index_fill(0, torch.tensor(5), 0))
    assert (~model.has_modality).nonzero().tolist() == [[3, 0], [5, 1]]
    assert model.user_embedding.weight.shape == (30, 4) and model.item_deviation.weight.shape == (
        20,
        4,
    )
    assert not any('x_' in name or 'has_' in name for name in model.state_dict())


def test_interest_is_the_mean_over_items_clicked() -> None:
    data = log()
    data['user'].num_nodes = 32
    data['item'].x_visual[:8] = 0
    model = fitted(data)
    interest = model.interest(data)
    assert interest.shape == (32, 2)
    user, item = data[CLICKS].edge_index
    for node in range(32):
        items = item[user == node].unique()
        f = model(torch.full_like(items, node), items)
        for modality, kept in ((0, items >= 8), (1, items >= 0)):
            expected = f[kept, modality].mean() if bool(kept.any()) else torch.tensor(0.0)
            torch.testing.assert_close(interest[node, modality], expected)
    assert bool((interest[30:] == 0).all()) and bool((interest[:30, 1] > 0).all())


@pytest.mark.parametrize('by', ['global', 'user'])
def test_only_clicks_before_the_first_label_are_read(by: str) -> None:
    data = log()
    part = TemporalSplit(by=by, keep_cold=True)(data)[0]
    clicks = part[CLICKS]
    clock = clicks.position if by == 'user' else clicks.time
    late = clock >= clicks.cutoff[0]
    assert 20 < int(late.sum()) < late.numel() - 20
    changed = copy.copy(part)
    other = clicks.edge_index.clone()
    # Whoever clicked late clicked something else.
    other[1, late] = (other[1, late] + 7) % 20
    changed[CLICKS].edge_index = other
    first, second = fitted(part), fitted(changed)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name])
    assert torch.equal(first.interest(part), second.interest(changed))
    # And all of the others are.
    early = (~late).nonzero().view(-1)
    other = clicks.edge_index.clone()
    other[1, early[-1]] = (other[1, early[-1]] + 7) % 20
    changed[CLICKS].edge_index = other
    assert not torch.equal(fitted(changed).user_embedding.weight, first.user_embedding.weight)


def test_interests_learned_from_a_later_part_are_refused() -> None:
    data = log()
    train, val, test = TemporalSplit(num_windows=3)(data)
    model = fitted(val)
    assert fitted(train).interest(train).shape == model.interest(test).shape == (30, 2)
    for twin in (model, pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        with pytest.raises(ValueError, match='UserInterest was fitted as of time 35.* is time 12'):
            twin.interest(train)
        assert torch.equal(twin.interest(val), model.interest(val))
    with pytest.raises(ValueError, match='as of time 35.* is position 0.3, and a time and a'):
        model.interest(TemporalSplit(by='user')(data)[0])
    # What goes on to learn from an earlier part knows the later one still.
    model.fit(train, num_epochs=1, progress=False)
    with pytest.raises(ValueError, match='UserInterest was fitted as of time 35.* is time 12'):
        model.interest(train)
    model.fit(TemporalSplit(by='user')(data)[0], num_epochs=1, progress=False)
    with pytest.raises(ValueError, match='UserInterest was fitted as of an unknown time'):
        model.interest(test)
    # Weights that were not learned know nothing.
    model.reset_parameters()
    assert model.interest(train).shape == (30, 2)


def test_a_fit_depends_on_its_seed_alone() -> None:
    data = log()
    torch.manual_seed(0)
    state = fitted(data).state_dict()
    torch.rand(5)
    again, other = fitted(data).state_dict(), fitted(data, seed=1).state_dict()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state['user_embedding.weight'], other['user_embedding.weight'])


def test_clicks_that_are_listed_twice_are_one_pair() -> None:
    data = log()
    twice = data.clone()
    twice[CLICKS].edge_index = twice[CLICKS].edge_index.repeat(1, 2)
    first, second = fitted(data), fitted(twice)
    assert torch.equal(first.user_embedding.weight, second.user_embedding.weight)
    assert torch.equal(first.interest(data), second.interest(twice))


def test_who_clicked_everything_is_left_out_of_the_fit() -> None:
    data = log(num_users=3, num_items=4)
    data[CLICKS].edge_index = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 2, 3, 2]])
    torch.manual_seed(0)
    model = UserInterest.from_data(data, embedding_dim=8)
    before = model.user_embedding.weight.detach().clone()
    model.fit(data, weight_decay=0.0, progress=False)
    moved = (model.user_embedding.weight != before).any(1)
    assert moved.tolist() == [False, True, False]
    data[CLICKS].edge_index = data[CLICKS].edge_index[:, :4]
    with pytest.raises(ValueError, match='did not click, but none of 4 pairs is one'):
        model.fit(data)


def test_fit_finds_the_modality_that_users_care_for() -> None:
    data = SyntheticMarket(num_users=500, num_items=1000, num_exposures=200_000, log=False)[0]
    torch.manual_seed(0)
    model = UserInterest.from_data(data)
    num_items = data[CLICKS].edge_index.unique(dim=1)[0].bincount(minlength=500)
    often = num_items >= 20
    assert int(often.sum()) > 400
    preferred = one_hot(data.truth['preferred_modality'], 3)[often]

    def auc() -> float:
        interest = model.interest(data)[often]
        return auroc(interest.flatten(), preferred.flatten(), task='binary').item()

    untrained = []
    for _ in range(10):
        model.reset_parameters()
        untrained.append(auc())
    assert sum(untrained) / 10 == pytest.approx(0.5, abs=0.03)
    model.fit(data, progress=False)
    assert auc() > 0.85

    # Item embeddings that start near 0, and stay free, learn their own features by heart instead.
    model.reset_parameters()
    with torch.no_grad():
        model.item_deviation.weight -= 1
    model.fit(data, weight_decay=0.0, progress=False)
    assert auc() < 0.65
    assert model.interest(data)[often].mean() > 0.9


def test_interests_make_hypergraphs() -> None:
    train = TemporalSplit(train_start=0.7, num_windows=1)(TimeSlots(50)(log()))[0]
    train['user'].interest = fitted(train).interest(train)
    out = InterestHypergraph()(train)
    for node_type in ('user', 'item'):
        assert out[node_type].hyperedge_slot.unique().tolist() == [0, 1, 2, 3, 4, 5]
        assert bool((out[node_type].hyperedge_weight > 0).all())


def test_compiled_training_is_one_graph_with_the_same_gradients() -> None:
    model, *row = inputs()
    model.has_modality[2, 0] = False
    compiled = torch.compile(model.loss, fullgraph=True, backend='aot_eager')
    losses = model.loss(*row), compiled(*row)
    parameters = list(model.parameters())
    expected, found = (torch.autograd.grad(loss, parameters) for loss in losses)
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(found, expected)


def test_export_takes_other_batches() -> None:
    model, user, item, _ = inputs()
    size = torch.export.Dim('batch')
    program = torch.export.export(model, (user, item), dynamic_shapes=({0: size}, {0: size}))
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for num in (1, 3, 50):
        args = torch.randint(4, (num,)), torch.randint(7, (num,))
        torch.testing.assert_close(exported(*args), model(*args))


def test_gradient() -> None:
    model, *row = inputs()
    model.double()
    model.has_modality[4, 1] = False

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self) -> Tensor:
            return self.model.loss(*row)

    loss = Loss()
    names = [name for name, _ in loss.named_parameters()]

    def run(*values: Tensor) -> Tensor:
        return functional_call(loss, dict(zip(names, values)), ())

    values = [value.detach().clone().requires_grad_() for value in model.parameters()]
    assert torch.autograd.gradcheck(run, values)


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        ({'num_users': 0}, ValueError, "'num_users' must be a positive integer, but got 0"),
        ({'embedding_dim': 1.5}, ValueError, "'embedding_dim' must be a positive integer"),
        ({'features': {}}, ValueError, 'UserInterest needs the features of a modality or more'),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        UserInterest(**{'num_users': 2, 'features': {'text': torch.rand(3, 2)}, **kwargs})


def test_other_precisions_have_interests() -> None:
    data = log()
    model = UserInterest.from_data(data, embedding_dim=4)
    expected = model.interest(data)
    torch.testing.assert_close(model.double().interest(data), expected)
    torch.testing.assert_close(model.bfloat16().interest(data), expected, atol=2e-2, rtol=0)


def test_a_fit_that_diverges_stops() -> None:
    model = UserInterest.from_data(log(), embedding_dim=4)
    with pytest.raises(FloatingPointError, match='UserInterest became nan with learning_rate=1e'):
        model.fit(log(), learning_rate=1e30, progress=False)


def test_wrong_data() -> None:
    data = log()
    model = UserInterest.from_data(data, embedding_dim=4)
    with pytest.raises(ValueError, match='built for 30 users, but the data has 25'):
        model.interest(log(num_users=25))
    with pytest.raises(ValueError, match='built for 20 items, but the data has 12'):
        model.fit(log(num_items=12))
    with pytest.raises(TypeError, match="'seed' must be an integer, but got 1.5"):
        model.fit(data, seed=1.5)
    with pytest.raises(ValueError, match="'learning_rate' must be positive, but got 0"):
        model.fit(data, learning_rate=0)
    with pytest.raises(ValueError, match="'weight_decay' must be at least 0, but got -1"):
        model.fit(data, weight_decay=-1)
    part = TemporalSplit()(data)[0]
    del part[CLICKS].time
    with pytest.raises(ValueError, match="UserInterest found a 'cutoff' but no 'time'"):
        model.fit(part)
    with pytest.raises(ValueError, match="'num_negatives' must be a positive integer, but got 0"):
        model.fit(data, num_negatives=0)


def test_repr_tells_the_modalities() -> None:
    text = repr(golden_model(logits=True))
    assert "modalities=['visual'], include_positive=False, logits=True" in text
