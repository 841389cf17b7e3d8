import hashlib
import itertools
import math

import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.datasets import SyntheticMarket
from mag.datasets._market_world import World, _draw_items, draw_exposures
from mag.datasets._micro_behavior import BEHAVIORS, MicroBehavior
from mag.metrics import group_auroc
from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

CLICKS = ('user', 'clicks', 'item')


@pytest.fixture(scope='module')
def market() -> HeteroData:
    return SyntheticMarket(num_exposures=100_000, selection_bias=2.0, log=False)[0]


def fingerprint(data: HeteroData) -> str:
    digest = hashlib.sha256()
    stores = [data.truth, *(dict(store.items()) for store in data.stores[1:])]
    for store in stores:
        for name, value in sorted(store.items()):
            digest.update(name.encode())
            digest.update(
                value.numpy().tobytes() if torch.is_tensor(value) else repr(value).encode()
            )
    return digest.hexdigest()


def deviation(label: torch.Tensor, probability: torch.Tensor) -> float:
    r"""How many standard deviations the number of ones lies from what is expected."""
    variance = (probability * (1 - probability)).sum()
    return float((label.double() - probability).sum() / variance.sqrt())


def test_same_seed_gives_same_bytes() -> None:
    first, again, other = (
        SyntheticMarket(50, 30, 5_000, seed=seed, log=False)[0] for seed in (3, 3, 4)
    )
    assert fingerprint(first) == fingerprint(again)
    assert fingerprint(first) != fingerprint(other)


def test_number_of_threads_changes_no_byte() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fingerprint(SyntheticMarket(50, 30, 5_000, log=False)[0])
        torch.set_num_threads(2)
        two = fingerprint(SyntheticMarket(50, 30, 5_000, log=False)[0])
    finally:
        torch.set_num_threads(threads)
    assert one == two


def test_draws_agree_with_the_probabilities_everywhere(market: HeteroData) -> None:
    clicks, truth = market[CLICKS], market.truth
    clicked = clicks.edge_label == 1
    for label, probability in (
        (clicks.edge_label, truth['click_probability']),
        (clicks.edge_label_conversion[clicked], truth['conversion_probability'][clicked]),
    ):
        # In each tenth of the rows by probability, so that no error can hide behind another.
        for rows in probability.argsort().chunk(10):
            assert abs(deviation(label[rows], probability[rows])) < 4.5


def test_one_exposure_in_five_is_clicked(market: HeteroData) -> None:
    assert market.truth['click_probability'].mean() == pytest.approx(0.2, abs=0.002)


def test_conversion_probability_sums_over_all_states() -> None:
    micro = MicroBehavior()
    weight = list(BEHAVIORS.values())
    for level, logit in ((0, -3.0), (20, 0.5), (63, -1.0)):
        # The pairwise model, state by state, from its published coupling and its odds.
        numerator = 0.0
        for index, state in enumerate(itertools.product((0, 1), repeat=10)):
            bits = state[::-1]
            assert micro.states[index].tolist() == list(bits)
            lift = sum(w * b for w, b in zip(weight, bits, strict=True))
            numerator += micro.probability[level, index] / (1 + math.exp(-logit - lift))
        got = micro.conversion_probability(np.array([level]), np.array([logit]))
        assert got.item() == pytest.approx(numerator, abs=1e-12)


def test_probabilities_follow_the_formula() -> None:
    r"""Exposure by exposure, in the words of the docstring, up to the intercept of clicks."""
    world = World(np.random.default_rng([5, 0]), num_users=40, num_items=60, num_groups=4)
    exposures = draw_exposures(
        world, np.random.default_rng([5, 1]), 2_000, 0.4, 0.2, tqdm(disable=True)
    )
    data = SyntheticMarket(40, 60, 2_000, 4, selection_bias=1.5, seed=5, log=False)[0]
    index = torch.from_numpy(np.stack([exposures.user, exposures.item]))
    assert torch.equal(data[CLICKS].edge_label_index, index)

    micro = MicroBehavior()
    weight = np.array(list(BEHAVIORS.values()))
    intercepts = []
    for row in range(0, 2_000, 10):
        user, item = exposures.user[row], exposures.item[row]
        first, last = world.user_taste[user] @ world.item_taste[item]
        angle = math.pi / 2 * exposures.time[row] / (28 * 86_400)
        match = 0
        if exposures.domain[row] == 1:
            match = 1 if world.category[item] == exposures.intent[row] else -1
        value = (
            world.quality[item]
            + world.price_fit[world.gender[user], world.age_level[user], world.price_level[item]]
        )
        logit = (
            2 * (math.cos(angle) * first + math.sin(angle) * last)
            + world.style_taste[user] @ world.style[world.preferred_modality[user], item]
            + match
            + 1.5 * value
        )
        click = data.truth['click_probability'][row].item()
        intercepts.append(math.log(click / (1 - click)) - logit)

        engagement = 0.8 * value + 0.6 * world.diligence[user]
        level = np.abs(micro.engagement - engagement).argmin()
        chance = 1 / (1 + np.exp(3 - value - world.need[user] - micro.states @ weight))
        conversion = data.truth['conversion_probability'][row].item()
        assert conversion == pytest.approx(micro.probability[level] @ chance, abs=1e-5)
    assert intercepts == pytest.approx([intercepts[0]] * len(intercepts), abs=1e-4)


def test_value_is_that_of_brand_seller_and_price() -> None:
    world = World(np.random.default_rng(0), num_users=10, num_items=2_000, num_groups=8)
    for group in (world.brand, world.seller):
        count = np.maximum(np.bincount(group), 1)
        within = world.quality - (np.bincount(group, world.quality) / count)[group]
        # Four parts in nine each; groups of ten or twenty items alone would take a tenth.
        assert within.var() / world.quality.var() < 0.7
    # Each gender and age level has a price that suits it, and the farther the less.
    assert (np.diff(world.price_fit, n=2) <= 1e-6).all()
    assert world.price_fit.std() > 0.3
    assert len(np.unique(world.price_fit.argmax(2))) > 2


def test_purchases_depend_on_what_came_before_them(market: HeteroData) -> None:
    clicks = market[CLICKS]
    clicked = clicks.edge_label == 1
    probability = market.truth['conversion_probability'][clicked]
    bought, behavior = clicks.edge_label_conversion[clicked], clicks.edge_label_behavior[clicked]
    # More than the probability tells, which is the mean over all that may happen after a click.
    surplus = [
        deviation(bought[happened], probability[happened]) for happened in behavior.bool().t()
    ]
    assert all(surplus[number] > 10 for number in (0, 1, 2))
    nothing = behavior.sum(1) == 0
    assert deviation(bought[nothing], probability[nothing]) < -10


def test_engagement_makes_every_behavior_likelier() -> None:
    micro = MicroBehavior()
    assert micro.engagement == pytest.approx([-4 + number / 8 for number in range(64)])
    assert micro.level(np.array([-9.0, -4.0, 0.07, 3.8, 9.0])).tolist() == [0, 0, 33, 62, 63]
    odds = micro.probability[:, [2**number for number in range(10)]] / micro.probability[:, :1]
    steps = np.diff(np.log(odds), axis=0)
    assert (steps > 0.01).all() and steps == pytest.approx(steps[:1].repeat(63, axis=0))


def test_log_odds_of_behaviors_are_the_coupling() -> None:
    r"""In a pairwise model the log odds ratio of two, all others 0, is their coupling."""
    micro = MicroBehavior()
    for level in (0, 31, 63):
        p = micro.probability[level]
        for i, j in itertools.combinations(range(10), 2):
            odds = math.log(p[2**i + 2**j] * p[0] / (p[2**i] * p[2**j]))
            assert odds == pytest.approx(micro.coupling[i, j], abs=1e-9)


def test_drawn_states_have_the_probabilities_of_their_level() -> None:
    micro = MicroBehavior()
    level = np.repeat([5, 32, 60], 200_000)
    state = micro.draw(level, np.random.default_rng(0))
    for value in (5, 32, 60):
        expected = 200_000 * micro.probability[value]
        observed = np.bincount(state[level == value], minlength=1024)
        common = expected > 5
        chi_square = ((observed - expected)[common] ** 2 / expected[common]).sum()
        degrees = common.sum() - 1
        assert abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


def test_behaviors_follow_clicks_only_and_are_correlated(market: HeteroData) -> None:
    clicks = market[CLICKS]
    behavior, clicked = clicks.edge_label_behavior, clicks.edge_label == 1
    assert behavior.shape == (100_000, 10)
    assert behavior[~clicked].sum() == 0
    assert clicks.edge_label_conversion[~clicked].sum() == 0
    correlation = torch.corrcoef(behavior[clicked].t())
    across = correlation[:4, 4:8]
    for block in (correlation[:4, :4], correlation[4:8, 4:8]):
        pairs = block[~torch.eye(4, dtype=torch.bool)]
        assert pairs.min() > across.max() + 0.05
    assert (behavior[clicked].mean(0) > 0.02).all()


def test_selection_bias_grows_with_its_parameter() -> None:
    gaps = []
    for bias in (0.0, 0.5, 1.0, 2.0, 4.0):
        data = SyntheticMarket(num_exposures=100_000, selection_bias=bias, log=False)[0]
        probability, click = data.truth['conversion_probability'], data.truth['click_probability']
        gaps.append(float((click @ probability) / click.sum() - probability.mean()))
    # Without it, the conversions of the clicked exposures are those of all.
    assert abs(gaps[0]) < 0.01
    assert all(gap < following - 0.02 for gap, following in itertools.pairwise(gaps))


def test_selection_bias_leaves_conversion_as_it_is() -> None:
    weak, strong = (
        SyntheticMarket(50, 30, 2_000, selection_bias=bias, log=False)[0].truth
        for bias in (0.0, 3.0)
    )
    assert torch.equal(weak['conversion_probability'], strong['conversion_probability'])
    assert not torch.equal(weak['click_probability'], strong['click_probability'])


def test_activity_and_popularity_follow_power_laws(market: HeteroData) -> None:
    for row, num_nodes in ((0, 2_000), (1, 1_000)):
        count = market[CLICKS].edge_label_index[row].bincount(minlength=num_nodes)
        count = count.sort(descending=True).values.double()
        assert count[: num_nodes // 10].sum() / count.sum() > 0.35
        ranks = torch.arange(10, num_nodes // 4).double()
        x, y = ranks.log(), count[10 : num_nodes // 4].log()
        slope = ((x - x.mean()) @ (y - y.mean())) / ((x - x.mean()) @ (x - x.mean()))
        assert -1.1 < slope < -0.5


def test_interests_drift_from_one_group_to_the_other(market: HeteroData) -> None:
    clicks, truth = market[CLICKS], market.truth
    user, item = clicks.edge_index
    group, moved = truth['item_group'][item], truth['user_group'][:, 0] != truth['user_group'][:, 1]
    share = {}
    for name, part in (('early', clicks.time < 7 * 86_400), ('late', clicks.time >= 21 * 86_400)):
        rows = part & moved[user]
        share[name] = [
            float((group[rows] == truth['user_group'][user[rows], end]).double().mean())
            for end in (0, 1)
        ]
    assert share['early'][0] > 2 * share['early'][1]
    assert share['late'][1] > 2 * share['late'][0]


def test_queries_reveal_the_intent_but_for_the_noise() -> None:
    data = SyntheticMarket(num_exposures=50_000, query_noise=0.3, log=False)[0]
    clicks, intent = data[CLICKS], data.truth['intent']
    query, searched = clicks.edge_label_query, clicks.edge_label_domain == 1
    assert searched.double().mean() == pytest.approx(0.4, abs=0.01)
    assert (query[~searched] == torch.tensor([0, -1, -1, -1])).all()
    assert query.max() < clicks.num_query
    is_term = query[searched] >= 0
    assert (query[searched] != 0).all()
    assert is_term[:, 0].all()
    assert (is_term[:, :-1] >= is_term[:, 1:]).all()
    num_categories = data['item'].num_category
    tells = (query[searched] - 1) // 5 == intent[searched].unsqueeze(1)
    share = tells[is_term].double().mean()
    assert share == pytest.approx(0.7 + 0.3 / num_categories, abs=0.01)
    found = data['item'].category[clicks.edge_label_index[1, searched]] == intent[searched]
    assert found.double().mean() > 0.75


def test_preferred_modality_explains_clicks_best() -> None:
    r"""A regression of a user's clicks on the content in one modality fits best in the one that the
    user prefers."""
    data = SyntheticMarket(24, 500, 60_000, selection_bias=0.0, log=False)[0]
    user, item = data[CLICKS].edge_label_index
    fits = torch.zeros(24, 3)
    for column, name in enumerate(('visual', 'acoustic', 'text')):
        for node in range(24):
            rows = user == node
            x, y = data['item'][f'x_{name}'][item[rows]], data[CLICKS].edge_label[rows]
            x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
            fitted = x @ torch.linalg.lstsq(x, y.unsqueeze(1)).solution
            fits[node, column] = -((y.unsqueeze(1) - fitted) ** 2).mean()
    preferred = data.truth['preferred_modality']
    enough = user.bincount(minlength=24) > 500
    assert enough.sum() > 12
    assert (fits.argmax(1) == preferred)[enough].double().mean() > 0.9


def test_optimum_is_what_the_truth_scores(market: HeteroData) -> None:
    clicks, truth = market[CLICKS], market.truth
    clicked = clicks.edge_label == 1
    both = clicks.edge_label_conversion
    for name, target, probability in (
        ('click', clicks.edge_label, truth['click_probability']),
        ('conversion', both[clicked], truth['conversion_probability'][clicked]),
        (
            'click_and_conversion',
            both,
            truth['click_probability'] * truth['conversion_probability'],
        ),
    ):
        auc, _ = group_auroc(probability, target, torch.zeros_like(target).long())
        logloss = torch.nn.functional.binary_cross_entropy(probability, target.double())
        optimum = truth['bayes_optimal'][name]
        assert float(auc) == pytest.approx(optimum['auc'], abs=0.006)
        assert float(logloss) == pytest.approx(optimum['logloss'], abs=0.006)


def test_occasions_change_clicks_alone_and_as_the_formula_says() -> None:
    arguments = (100, 60, 20_000)
    without = SyntheticMarket(*arguments, log=False)[0]
    data = SyntheticMarket(*arguments, occasion_strength=1.5, log=False)[0]
    for name in ('edge_label_index', 'edge_label_time', 'edge_label_domain'):
        assert torch.equal(data[CLICKS][name], without[CLICKS][name])
    assert torch.equal(data[CLICKS].edge_label_query[:, :4], without[CLICKS].edge_label_query)
    name = 'conversion_probability'
    assert torch.equal(data.truth[name], without.truth[name])

    user, item = data[CLICKS].edge_label_index
    occasion = data.truth['occasion']
    wanted = data.truth['occasion_price'][user, occasion.clamp(min=0)]
    fit = 1.2 - (data['item'].price_level[item] - wanted).abs()
    fit[data[CLICKS].edge_label_domain == 0] = 0
    shift = (
        data.truth['click_probability'].logit()
        - without.truth['click_probability'].logit()
        - 1.5 * fit
    )
    # What is left is the constant that keeps one click in five.
    assert torch.allclose(shift, shift[0], atol=1e-4)
    assert data[CLICKS].edge_label.mean() == pytest.approx(0.2, abs=0.01)


def test_the_last_term_of_a_search_tells_the_occasion() -> None:
    without = SyntheticMarket(50, 30, 5_000, log=False)[0]
    data = SyntheticMarket(50, 30, 5_000, occasion_strength=1.0, log=False)[0]
    is_search = data[CLICKS].edge_label_domain == 1
    occasion, term = data.truth['occasion'], data[CLICKS].edge_label_query[:, 4]
    num_terms = without[CLICKS].num_query
    assert torch.equal(term[is_search], num_terms + occasion[is_search])
    assert set(occasion[is_search].tolist()) == {0, 1}
    assert (occasion[~is_search] == -1).all() and (term[~is_search] == -1).all()
    assert data[CLICKS].num_query == num_terms + 2
    assert data[CLICKS].query.max() == num_terms + 1
    assert 'occasion' not in without.truth


def test_expired_ids_are_of_the_same_person_and_none_outlives_its_time() -> None:
    arguments = (30, 40, 20_000)
    without = SyntheticMarket(*arguments, occasion_strength=1.0, log=False)[0]
    data = SyntheticMarket(*arguments, occasion_strength=1.0, id_lifetime=6.5, log=False)[0]
    person, clicks = data.truth['person'], data[CLICKS]
    assert data['user'].num_nodes == person.numel() == 30 * 6
    for name in ('edge_index', 'edge_label_index'):
        assert torch.equal(person[clicks[name][0]], without[CLICKS][name][0])
        assert torch.equal(clicks[name][1], without[CLICKS][name][1])
    is_click = clicks.edge_label == 1
    assert torch.equal(clicks.edge_index, clicks.edge_label_index[:, is_click])
    for name in ('gender', 'age_level'):
        assert torch.equal(data['user'][name], without['user'][name][person])
    for name in ('user_group', 'preferred_modality', 'occasion_price'):
        assert torch.equal(data.truth[name], without.truth[name][person])
    assert torch.equal(data.truth['click_probability'], without.truth['click_probability'])

    user, time = clicks.edge_label_index[0], clicks.edge_label_time
    first, last = (
        torch.zeros(180, dtype=torch.long).scatter_reduce(0, user, time, way, include_self=False)
        for way in ('amin', 'amax')
    )
    assert (last - first).max() <= 6.5 * 24 * 3600
    # One id after another, each at a time of the person's own.
    same = person[1:] == person[:-1]
    seen = user.bincount(minlength=180) > 0
    both = same & seen[1:] & seen[:-1]
    assert (first[1:][both] > last[:-1][both]).all()
    assert first[1:][both].unique().numel() > 60


def test_rows_find_their_truth_after_a_split(market: HeteroData) -> None:
    for part in TemporalSplit(num_windows=1)(market):
        clicks, truth = part[CLICKS], part.truth
        row = clicks.edge_label_row
        assert torch.equal(clicks.edge_label, market[CLICKS].edge_label[row])
        assert torch.equal(clicks.edge_label_index, market[CLICKS].edge_label_index[:, row])
        assert abs(deviation(clicks.edge_label, truth['click_probability'][row])) < 4.5


def test_is_a_log_like_the_others(market: HeteroData) -> None:
    market.validate()
    train, _, _ = TemporalSplit(num_windows=3)(market)
    macro = MacroCoarsen({'user': 4, 'item': 'category'})(RecentNeighbors(5)(train))
    assert macro['user'].recent.shape == (2_000, 3, 5)
    clicks = market[CLICKS]
    assert (clicks.edge_label_time.diff() >= 0).all()
    assert torch.equal(clicks.edge_index, clicks.edge_label_index[:, clicks.edge_label == 1])
    assert torch.equal(clicks.query, clicks.edge_label_query[clicks.edge_label == 1])


def test_tiny_markets() -> None:
    data = SyntheticMarket(1, 1, 2, num_groups=1, search_share=1.0, query_noise=0.0, log=False)[0]
    assert data[CLICKS].edge_label_index.tolist() == [[0, 0], [0, 0]]
    assert data[CLICKS].edge_label_domain.tolist() == [1, 1]


def test_where_a_category_has_no_item_any_is_shown() -> None:
    r"""As if the noise of recommendations had drawn it: by popularity alone."""
    world = World(np.random.default_rng(0), num_users=10, num_items=30, num_groups=40)
    empty = np.setdiff1d(np.arange(world.num_categories), world.category)
    # The last one has no items after it, either.
    assert empty[-1] == world.num_categories - 1
    for category in (empty[0], empty[len(empty) // 2], empty[-1]):
        item = _draw_items(world, np.random.default_rng(1), np.full(20_000, category))
        share = np.bincount(item, minlength=30) / 20_000
        assert share == pytest.approx(world.popularity, abs=0.015)


@pytest.mark.filterwarnings('error')
def test_one_in_five_is_clicked_at_any_selection_bias() -> None:
    for bias in (0.0, 50.0, 500.0, 1e6):
        data = SyntheticMarket(300, 200, 20_000, selection_bias=bias, log=False)[0]
        assert data.truth['click_probability'].mean() == pytest.approx(0.2, abs=0.01)


def test_names_are_those_of_the_columns() -> None:
    dataset = SyntheticMarket(5, 5, 50, log=False)
    assert len(dataset.names['behavior']) == dataset[0][CLICKS].edge_label_behavior.size(1)
    assert dataset.names['modality'] == ['visual', 'acoustic', 'text']
    assert dataset.names['domain'] == ['recommendation', 'search']
    assert len(dataset) == 1


@pytest.mark.parametrize(
    ('name', 'value', 'error', 'said'),
    [
        ('occasion_strength', -0.5, ValueError, r'a number in \[0, inf\), but got -0.5'),
        ('occasion_strength', math.nan, ValueError, r'a number in \[0, inf\), but got nan'),
        ('selection_bias', math.inf, ValueError, r'a number in \[0, inf\), but got inf'),
        ('occasion_strength', '1', TypeError, r"a number in \[0, inf\), but got '1'"),
    ],
)
def test_strengths_are_finite_and_not_negative(
    name: str, value: object, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=f"'{name}' must be.*{said}"):
        SyntheticMarket(50, 30, 500, log=False, **{name: value})


@pytest.mark.parametrize('lifetime', [0.0, -1.0, math.nan, math.inf])
def test_a_lifetime_is_a_number_of_days(lifetime: float) -> None:
    with pytest.raises(ValueError, match=f"'id_lifetime' must be.*but got {lifetime}"):
        SyntheticMarket(50, 30, 500, id_lifetime=lifetime, log=False)
    for other in (True, '7'):
        with pytest.raises(TypeError, match=f"'id_lifetime' must be.*but got {other!r}"):
            SyntheticMarket(50, 30, 500, id_lifetime=other, log=False)
