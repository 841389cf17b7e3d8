import copy
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot
from torch_geometric.data import HeteroData
from torchmetrics.functional import auroc

from mag.datasets import IdMap, SyntheticMarket
from mag.loader import NegativeLoader
from mag.losses import interest_loss
from mag.nn import InterestScore
from mag.transforms import InterestHypergraph, TemporalSplit, TimeSlots, UserInterest

CLICKS = ('user', 'clicks', 'item')


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


def fitted(data: HeteroData, **kwargs: Any) -> UserInterest:
    kwargs = {'embedding_dim': 8, 'batch_size': 32, **kwargs}
    return UserInterest(**kwargs).fit(data, progress=False)


def weights(transform: UserInterest) -> dict[str, torch.Tensor]:
    assert transform._score is not None
    return transform._score.state_dict()


def same_weights(first: UserInterest, second: UserInterest) -> bool:
    other = weights(second)
    return all(torch.equal(value, other[name]) for name, value in weights(first).items())


def test_interest_is_the_mean_over_items_clicked() -> None:
    data = log()
    data['user'].num_nodes = 32
    data['item'].x_visual[:8] = 0
    data['item'].has_text = torch.arange(20) != 5
    transform = fitted(data)
    out = transform(data)
    interest = out['user'].interest
    assert 'interest' not in data['user'] and transform.modalities == ('visual', 'text')
    assert interest.shape == (32, 2) and interest.dtype == torch.float32
    user, item = data[CLICKS].edge_index
    x = [data['item'].x_visual, data['item'].x_text]
    for node in range(32):
        items = item[user == node].unique()
        score = transform._score(torch.full_like(items, node), items, [v[items, None] for v in x])
        f = score[:, 0].sigmoid()
        for modality, kept in ((0, items >= 8), (1, items != 5)):
            expected = f[kept, modality].mean() if bool(kept.any()) else torch.tensor(0.0)
            torch.testing.assert_close(interest[node, modality], expected)
    assert bool((interest[30:] == 0).all()) and bool((interest[:30, 1] > 0).all())
    assert bool((interest <= 1).all())


@pytest.mark.parametrize('arguments', [{}, {'include_positive': True}, {'logits': True}])
def test_fit_is_adam_on_the_loss_of_pairs(arguments: dict[str, bool]) -> None:
    data = log()
    data['item'].x_visual[:8] = 0
    transform = fitted(data, num_epochs=2, weight_decay=0.1, seed=3, **arguments)
    torch.manual_seed(3)
    score = InterestScore(30, 20, [4, 6], 8)
    decayed = [score.user_embedding.weight, score.item_deviation.weight]
    optimizer = torch.optim.Adam(
        [
            {'params': decayed, 'weight_decay': 0.1},
            {'params': [*score.lin.parameters(), *score.lin_modality.parameters()]},
        ],
        3e-3,
    )
    pairs = data[CLICKS].edge_index.unique(dim=1)
    loader = NegativeLoader(pairs, 30, 20, 32, shuffle=True, seed=3)
    x = [data['item'].x_visual, data['item'].x_text]
    has = torch.stack([torch.arange(20) >= 8, torch.ones(20).bool()], dim=1)
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            own, others = batch.item[:, None], batch.negative
            parts = [
                score(batch.user, batch.item, [values[items] for values in x])
                for items in (own, others)
            ]
            if 'logits' not in arguments:
                parts = [part.sigmoid() for part in parts]
            include_positive = 'include_positive' in arguments
            loss = interest_loss(
                parts[0][:, 0], parts[1], has[own[:, 0]], has[others], include_positive
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    expected = score.state_dict()
    for name, value in weights(transform).items():
        # In sums a bias cancels, and what moves it are roundings.
        if 'bias' in name and 'logits' in arguments:
            continue
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)


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
    assert same_weights(first, second)
    assert torch.equal(first(part)['user'].interest, second(changed)['user'].interest)
    # And all of the others are.
    early = (~late).nonzero().view(-1)
    other = clicks.edge_index.clone()
    other[1, early[-1]] = (other[1, early[-1]] + 7) % 20
    changed[CLICKS].edge_index = other
    assert not same_weights(fitted(changed), first)


def test_a_whole_log_is_read_up_to_the_fit() -> None:
    data = log()
    train = TemporalSplit(num_windows=1, keep_cold=True)(data)[0]
    transform = fitted(train)
    interest = transform(train)['user'].interest
    assert torch.equal(transform(data)['user'].interest, interest)
    # Whatever was clicked after the first label.
    changed = data.clone()
    late = data[CLICKS].time >= train[CLICKS].cutoff.min()
    assert bool(late.any())
    changed[CLICKS].edge_index[1, late] = (changed[CLICKS].edge_index[1, late] + 7) % 20
    assert torch.equal(transform(changed)['user'].interest, interest)
    changed[CLICKS].edge_index[1, 0] = (changed[CLICKS].edge_index[1, 0] + 7) % 20
    assert not torch.equal(transform(changed)['user'].interest, interest)
    # Nothing tells what of it came before.
    del changed[CLICKS].time
    with pytest.raises(ValueError, match=r"as of time \d+, but .* neither a cutoff nor a 'time'"):
        transform(changed)
    by_user = fitted(TemporalSplit(by='user')(data)[0])
    with pytest.raises(ValueError, match=r'as of position 0.\d+, but .* call it on a part of the'):
        by_user(data)
    # A fit without a clock has read everything.
    assert fitted(changed)(changed)['user'].interest.shape == (30, 2)


def test_interests_learned_from_a_later_part_are_refused() -> None:
    data = log()
    train, val, test = TemporalSplit(num_windows=3)(data)
    transform = fitted(val)
    assert fitted(train)(train)['user'].interest.shape == (30, 2)
    assert transform(test)['user'].interest.shape == (30, 2)
    for twin in (transform, pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
        with pytest.raises(ValueError, match='UserInterest was fitted as of time 35.* is time 12'):
            twin(train)
        assert torch.equal(twin(val)['user'].interest, transform(val)['user'].interest)
    with pytest.raises(ValueError, match='as of time 35.* is position 0.3, and a time and a'):
        transform(TemporalSplit(by='user')(data)[0])
    # A fit begins anew, and knows nothing of the one before.
    transform.fit(train, progress=False)
    assert same_weights(transform, fitted(train))
    assert torch.equal(transform(train)['user'].interest, fitted(train)(train)['user'].interest)


def test_a_later_part_has_the_interests_of_its_own_first_cutoff() -> None:
    train, _, test = TemporalSplit(num_windows=3)(log())
    transform = fitted(train)
    assert not torch.equal(transform(test)['user'].interest, transform(train)['user'].interest)
    early = test[CLICKS].time < test[CLICKS].cutoff.min()
    log_of_test = test.clone()
    log_of_test[CLICKS].edge_index = test[CLICKS].edge_index[:, early]
    log_of_test[CLICKS].time = test[CLICKS].time[early]
    expected = transform(log_of_test)['user'].interest
    assert torch.equal(transform(test)['user'].interest, expected)


def test_who_and_what_is_new_in_a_grown_log_has_no_interest() -> None:
    users, items = (IdMap(range(size)) for size in (30, 20))
    data, later = log(), log(num_users=33, num_items=25)
    later['item'].x_visual[:20], later['item'].x_text[:20] = (
        data['item'].x_visual,
        data['item'].x_text,
    )
    data.id_maps = {'user': users.lineage, 'item': items.lineage}
    transform = fitted(data)
    with pytest.raises(ValueError, match='UserInterest was fitted on {.*}, but the data has {'):
        transform(later)
    later.id_maps = {
        'user': users.extend(range(33)).lineage,
        'item': items.extend(range(25)).lineage,
    }
    interest = transform(later)['user'].interest
    assert interest.shape == (33, 2) and bool((interest[30:] == 0).all())
    # Clicks of and on what was there tell what they told.
    known = (later[CLICKS].edge_index < torch.tensor([[30], [20]])).all(dim=0)
    same = copy.copy(data)
    same[CLICKS].edge_index = later[CLICKS].edge_index[:, known]
    same[CLICKS].time = later[CLICKS].time[known]
    assert torch.equal(interest[:30], transform(same)['user'].interest)
    later.id_maps = {'user': IdMap(['a']).lineage}
    with pytest.raises(ValueError, match='^UserInterest was fitted on the users of the id map'):
        transform(later)


def test_an_unfitted_transform_fits_on_what_it_is_given() -> None:
    data = log()
    transform = UserInterest(embedding_dim=8, batch_size=32)
    interest = transform(data)['user'].interest
    assert torch.equal(interest, fitted(data)(data)['user'].interest)
    assert transform.modalities == () and 'fitted' not in repr(transform)


def test_a_fit_depends_on_its_seed_alone_and_leaves_the_generators_as_they_were() -> None:
    data = log()
    first = fitted(data)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(5)
    again = fitted(data)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected
    assert same_weights(first, again) and repr(first) == repr(again)
    other = fitted(data, seed=1)
    assert not same_weights(first, other)


class Killed(Exception):
    pass


class StopAfter:
    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_epoch_start(self, epoch: int) -> None:
        if epoch == self.step:
            raise Killed


def test_a_fit_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = log()
    # A checkpoint after each loss that is logged.
    monkeypatch.setattr('mag.training.run.SECONDS_BETWEEN_CHECKPOINTS', -1)
    arguments = {'directory': tmp_path, 'progress': False, 'log_every_n_steps': 1}
    transform = UserInterest(embedding_dim=8, batch_size=32)
    with pytest.raises(Killed):
        transform.fit(data, callbacks=[StopAfter(4)], **arguments)
    assert transform.modalities == ()
    transform.fit(data, **arguments)
    assert same_weights(transform, fitted(data))
    with pytest.raises(ValueError, match='other settings: .*learning_rate is 0.003 there, 0.01'):
        UserInterest(8, batch_size=32, learning_rate=0.01).fit(data, **arguments)


@pytest.mark.parametrize('name', ['num_epochs', 'num_negatives'])
def test_a_fit_of_other_arguments_in_the_same_directory_is_refused(
    tmp_path: Path, name: str
) -> None:
    data, arguments = log(), {'embedding_dim': 8, 'batch_size': 32, 'num_epochs': 2}
    UserInterest(**arguments).fit(data, directory=tmp_path, progress=False)
    with pytest.raises(ValueError, match=f'hyper-parameter {name} is .* there, 1 here'):
        UserInterest(**{**arguments, name: 1}).fit(data, directory=tmp_path, progress=False)


def test_a_fit_in_half_precision_gives_interests() -> None:
    data = log()
    transform = UserInterest(8, num_epochs=1, batch_size=32)
    transform.fit(data, progress=False, precision='bf16-true')
    interest = transform(data)['user'].interest
    assert interest.dtype == torch.float32 and 'fitted=' in repr(transform)
    expected = fitted(data, num_epochs=1)(data)['user'].interest
    torch.testing.assert_close(interest, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize('name', ['task', 'max_epochs', 'seed', 'val_loader', 'patience'])
def test_fit_takes_no_argument_that_it_sets_itself(name: str) -> None:
    message = rf"UserInterest.fit takes directory, .*, but got \['{name}'\]: num_epochs and seed"
    with pytest.raises(TypeError, match=message):
        UserInterest().fit(log(), **{name: 3})


def test_clicks_that_are_listed_twice_are_one_pair() -> None:
    data = log()
    twice = data.clone()
    twice[CLICKS].edge_index = twice[CLICKS].edge_index.repeat(1, 2)
    twice[CLICKS].time = twice[CLICKS].time.repeat(2)
    first, second = fitted(data), fitted(twice)
    assert same_weights(first, second)
    assert torch.equal(first(data)['user'].interest, second(twice)['user'].interest)


def test_who_clicked_everything_is_left_out_of_the_fit() -> None:
    data = log(num_users=3, num_items=4)
    del data[CLICKS].time
    data[CLICKS].edge_index = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 2, 3, 2]])
    torch.manual_seed(0)
    before = InterestScore(3, 4, [4, 6], 8).user_embedding.weight
    transform = fitted(data, weight_decay=0.0)
    moved = (weights(transform)['user_embedding.weight'] != before).any(1)
    assert moved.tolist() == [False, True, False]
    data[CLICKS].edge_index = data[CLICKS].edge_index[:, :4]
    with pytest.raises(ValueError, match='did not click, but none of 4 pairs is one'):
        UserInterest().fit(data)


def test_fit_finds_the_modality_that_users_care_for() -> None:
    data = SyntheticMarket(num_users=500, num_items=1000, num_exposures=200_000, log=False)[0]
    num_items = data[CLICKS].edge_index.unique(dim=1)[0].bincount(minlength=500)
    often = num_items >= 20
    assert int(often.sum()) > 400
    preferred = one_hot(data.truth['preferred_modality'], 3)[often]

    def auc(transform: UserInterest) -> float:
        interest = transform(data)['user'].interest[often]
        return auroc(interest.flatten(), preferred.flatten(), task='binary').item()

    # A rate so small that nothing is learned.
    untrained = [
        auc(UserInterest(num_epochs=1, learning_rate=1e-30, seed=seed).fit(data, progress=False))
        for seed in range(10)
    ]
    assert sum(untrained) / 10 == pytest.approx(0.5, abs=0.03)
    assert auc(UserInterest().fit(data, progress=False)) > 0.85


def test_items_that_stay_free_learn_their_own_features_by_heart(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    r"""Which is why their embeddings start at 1 and are decayed."""
    data = SyntheticMarket(num_users=500, num_items=1000, num_exposures=200_000, log=False)[0]
    reset = InterestScore.reset_parameters

    def reset_near_zero(self: InterestScore) -> None:
        reset(self)
        with torch.no_grad():
            self.item_deviation.weight -= 1

    monkeypatch.setattr(InterestScore, 'reset_parameters', reset_near_zero)
    interest = UserInterest(weight_decay=0.0).fit(data, progress=False)(data)['user'].interest
    often = data[CLICKS].edge_index.unique(dim=1)[0].bincount(minlength=500) >= 20
    preferred = one_hot(data.truth['preferred_modality'], 3)[often]
    assert auroc(interest[often].flatten(), preferred.flatten(), task='binary') < 0.65
    assert interest[often].mean() > 0.9


def test_interests_make_hypergraphs() -> None:
    train = TemporalSplit(train_start=0.7, num_windows=1)(TimeSlots(50)(log()))[0]
    out = InterestHypergraph()(fitted(train)(train))
    for node_type in ('user', 'item'):
        assert out[node_type].hyperedge_slot.unique().tolist() == [0, 1, 2, 3, 4, 5]
        assert bool((out[node_type].hyperedge_weight > 0).all())


@pytest.mark.parametrize(
    'kwargs, error, message',
    [
        ({'embedding_dim': 0}, ValueError, "'embedding_dim' must be at least 1, but got 0"),
        ({'embedding_dim': 1.5}, TypeError, "'embedding_dim' must be an integer, but got 1.5"),
        ({'num_epochs': 0}, ValueError, "'num_epochs' must be at least 1, but got 0"),
        ({'batch_size': 0}, ValueError, "'batch_size' must be at least 1, but got 0"),
        ({'num_negatives': 0}, ValueError, "'num_negatives' must be at least 1, but got 0"),
        ({'learning_rate': 0}, ValueError, r"'learning_rate' must be .* \(0, inf\), but got 0"),
        ({'weight_decay': -1}, ValueError, r"'weight_decay' must be .* \[0, inf\), but got -1"),
        ({'include_positive': 1}, TypeError, "'include_positive' must be True or False, but got 1"),
        ({'logits': 'no'}, TypeError, "'logits' must be True or False, but got 'no'"),
        ({'seed': 1.5}, TypeError, "'seed' must be an integer, but got 1.5"),
        ({'seed': 2**32}, ValueError, "'seed' must lie below 4294967296, but got 4294967296"),
    ],
)
def test_wrong_arguments(kwargs: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        UserInterest(**kwargs)


def test_a_fit_that_diverges_stops() -> None:
    with pytest.raises(FloatingPointError, match='loss became nan .* learning rate 1e'):
        fitted(log(), learning_rate=1e30)


def test_wrong_data() -> None:
    data = log()
    transform = fitted(data)
    with pytest.raises(ValueError, match="fitted on {'users': 30, .* has {'users': 25"):
        transform(log(num_users=25))
    with pytest.raises(ValueError, match="'items': 20, .*, but the data has .*'items': 12"):
        transform(log(num_items=12))
    other = data.clone()
    other['item'].x_text = torch.rand(20, 5)
    with pytest.raises(ValueError, match="'x_text': 6}, but the data has .*'x_text': 5}"):
        transform(other)
    del other['item'].x_text, other['item'].x_visual
    with pytest.raises(ValueError, match='UserInterest needs the features of a modality'):
        transform(other)
    with pytest.raises(TypeError, match='UserInterest expects a HeteroData'):
        transform([data])
    part = TemporalSplit()(data)[0]
    del part[CLICKS].time
    with pytest.raises(ValueError, match="UserInterest found a 'cutoff' but no 'time'"):
        UserInterest().fit(part)
    late = data.clone()
    late[CLICKS].time = torch.arange(3)
    with pytest.raises(ValueError, match="UserInterest expects 'time' of shape"):
        transform(late)


def test_repr_tells_every_argument_and_fits_apart() -> None:
    expected = (
        'UserInterest(embedding_dim=8, num_epochs=1, batch_size=32, num_negatives=10, '
        'learning_rate=0.003, weight_decay=0.01, include_positive=True, logits=False, seed=2'
    )
    transform = UserInterest(8, num_epochs=1, batch_size=32, include_positive=True, seed=2)
    assert repr(transform) == f'{expected})'
    first, second = (repr(copy.copy(transform).fit(log(seed), progress=False)) for seed in (0, 1))
    assert first != second
    assert first.startswith(f"{expected}, fitted='") and len(first) == len(expected) + 20
