import math
from collections.abc import Callable

import numpy as np
import torch
from torch_geometric.data import HeteroData, InMemoryDataset
from tqdm import tqdm

from mag.checks import check_integers, check_numbers
from mag.datasets._market_outcomes import draw_outcomes
from mag.datasets._market_world import (
    DAY,
    MODALITIES,
    PERIOD,
    Exposures,
    World,
    draw_exposures,
)
from mag.datasets._micro_behavior import BEHAVIORS, MicroBehavior
from mag.datasets._occasion import NUM_OCCASIONS, Occasion
from mag.datasets._queries import DOMAINS


class SyntheticMarket(InMemoryDataset):
    r"""A simulated shop whose truth is known: who would click what, who would buy what they never
    clicked, and why.

    .. code-block:: python

        data = SyntheticMarket(selection_bias=2.0)[0]
        data['user', 'clicks', 'item'].edge_label_conversion
        data.truth['conversion_probability']  # of every exposure, also the unclicked

    Users and items belong to planted groups with a taste each; what a user likes drifts from one
    group to another over four weeks. Users differ in activity, items in popularity, by power laws.
    An exposure :math:`(u, i, t)` comes from recommendation, or from search with a query of one to
    four terms, most of which belong to the category the user looks for. It is clicked, and a
    clicked one converted, with the probabilities

    .. math::
        P(\mathrm{click}) &= \sigma \left( c_0 + \mathrm{affinity}_{uit} + \mathrm{style}_{ui} +
        \mathrm{match}_{it} + \beta \, \mathrm{value}_{ui} + \gamma \, \mathrm{fit}_{uit} \right)
        \\
        P(\mathrm{conversion} \mid \mathrm{click}) &= \sum_{\mathbf{b}} P(\mathbf{b} \mid e_{ui}) \,
        \sigma \left( d_0 + \mathrm{value}_{ui} + \mathrm{need}_u + \mathbf{w} \cdot \mathbf{b}
        \right).

    The value of an item to a user depends on brand, seller and item, and on how the price level
    suits the user's age level and gender. It drives conversion always, and clicks with the strength
    :math:`\beta`, the :obj:`selection_bias`: at 0 the clicked exposures convert like the others
    would, at larger ones better and better. Affinity is that of tastes; style is that of the user's
    preferred modality (visual, acoustic or text) with the item's content there; a match is an item
    of the category searched for. A search has one of two occasions, and a last term that tells it;
    fit is how near the price level is to the one that this user wants on this occasion, and
    :math:`\gamma` the :obj:`occasion_strength`: at 0 there are no occasions, at larger ones what a
    user clicked before tells what they click now, if it was searched for on the same occasion, and
    misleads if not. With an :obj:`id_lifetime`, users are known by ids that expire, as cookies do,
    each user's at times of their own: what is learned about an id is soon of no use, and what the
    id has clicked is all there is to read. Between click and conversion come the ten
    micro-behaviors :math:`\mathbf{b}`, drawn from a pairwise model that depends on the engagement
    :math:`e`.

    The :class:`~torch_geometric.data.HeteroData` holds

    * :obj:`data['user']`: the categoricals :obj:`gender` and :obj:`age_level`;
    * :obj:`data['item']`: the categoricals :obj:`category`, :obj:`brand`, :obj:`seller` and
      :obj:`price_level`, and the contents :obj:`x_visual`, :obj:`x_acoustic` and :obj:`x_text`,
      each of shape :obj:`[num_items, 16]`;
    * :obj:`data['user', 'clicks', 'item']`: the clicks (:obj:`edge_index`, :obj:`time`,
      :obj:`query`, :obj:`domain`) and the exposures (:obj:`edge_label_index`, :obj:`edge_label`,
      :obj:`edge_label_time`, :obj:`edge_label_query`, :obj:`edge_label_domain`,
      :obj:`edge_label_behavior` of shape :obj:`[num_exposures, 10]`,
      :obj:`edge_label_conversion`), both ordered by time in seconds. A query holds ids of terms,
      shape :obj:`[4]` or, with occasions, :obj:`[5]`, padded with :obj:`-1`; that of a
      recommendation is the empty query, term :obj:`0`. :obj:`edge_label_row` is the row of the
      exposure in :obj:`data.truth`, which a split keeps;
    * :obj:`data.truth`, a dictionary: for each exposure :obj:`click_probability`,
      :obj:`conversion_probability` (given a click) and :obj:`intent` (the category looked for, in
      search and in half of the recommendations, else :obj:`-1`); :obj:`user_group` (at the start
      and at the end, shape :obj:`[num_users, 2]`), :obj:`item_group`,
      :obj:`preferred_modality` (an index into :obj:`names['modality']`), :obj:`behavior_coupling`
      (shape :obj:`[10, 10]`); with occasions, :obj:`occasion` of each exposure (:obj:`-1` for a
      recommendation) and :obj:`occasion_price`, the price levels that each user wants, of shape
      :obj:`[num_users, 2]`; with an :obj:`id_lifetime`, :obj:`person`, whose id each user is, and
      a row for each id in all that is told of users; and :obj:`bayes_optimal`, the AUC and log loss
      that nobody can expect to beat, of :obj:`click`, of :obj:`conversion` on clicks, and of
      :obj:`click_and_conversion` (see :func:`mag.metrics.bayes_optimal` for those of a part).

    The same arguments give the same bytes.

    Args:
        num_users (int, optional): (default: :obj:`2_000`)
        num_items (int, optional): (default: :obj:`1_000`)
        num_exposures (int, optional): One in five is clicked. (default: :obj:`200_000`)
        num_groups (int, optional): Groups of users, and of items, which have three categories each.
            (default: :obj:`8`)
        selection_bias (float, optional): :math:`\beta`; 2 is strong. (default: :obj:`1.0`)
        search_share (float, optional): The share of exposures from search. (default: :obj:`0.4`)
        query_noise (float, optional): The share of query terms that say nothing.
            (default: :obj:`0.2`)
        occasion_strength (float, optional): :math:`\gamma`; 4 is strong. (default: :obj:`0.0`)
        id_lifetime (float, optional): Days after which a user goes on with another id, a node of
            its own, so that there are several times :obj:`num_users` of them; :obj:`None` for
            never. (default: :obj:`None`)
        seed (int, optional): (default: :obj:`0`)
        transform (callable, optional): Applied to the data on every access.
        log (bool, optional): Whether to show progress. (default: :obj:`True`)

    Raises:
        TypeError: If a number is none.
        ValueError: If a number is out of range.
    """

    def __init__(
        self,
        num_users: int = 2_000,
        num_items: int = 1_000,
        num_exposures: int = 200_000,
        num_groups: int = 8,
        selection_bias: float = 1.0,
        search_share: float = 0.4,
        query_noise: float = 0.2,
        occasion_strength: float = 0.0,
        id_lifetime: float | None = None,
        seed: int = 0,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        log: bool = True,
    ) -> None:
        strengths = {'selection_bias': selection_bias, 'occasion_strength': occasion_strength}
        check_integers(1, num_users=num_users, num_items=num_items, num_groups=num_groups)
        # A single exposure has no rank, so no AUC.
        check_integers(2, num_exposures=num_exposures)
        check_integers(0, seed=seed)
        check_numbers('[0, 1]', search_share=search_share, query_noise=query_noise)
        check_numbers('[0, inf)', **strengths)
        if id_lifetime is not None:
            check_numbers('[0.01, inf)', id_lifetime=id_lifetime)
        super().__init__(None, transform, log=log)
        world = World(np.random.default_rng([seed, 0]), num_users, num_items, num_groups)
        rng = np.random.default_rng([seed, 1])
        with tqdm(total=3 * num_exposures, desc='Simulating', disable=not log, leave=False) as bar:
            exposures = draw_exposures(world, rng, num_exposures, search_share, query_noise, bar)
            occasion = None
            if occasion_strength > 0:
                # Draws of its own, which leave the market without occasions as it is.
                own = np.random.default_rng([seed, 2])
                occasion = Occasion(own, num_users, world.num_prices, exposures.domain)
                query = occasion.add_term(exposures.query, world.num_terms)
                exposures = exposures._replace(query=query)
            self._data = _to_data(world, exposures, occasion, strengths, rng, bar)
        if id_lifetime is not None:
            _expire_ids(self._data, id_lifetime, np.random.default_rng([seed, 3]))
        self.slices = None

    @property
    def names(self) -> dict[str, list[str]]:
        r"""The names of the columns of :obj:`edge_label_behavior`, of the modalities and of the
        values of :obj:`edge_label_domain`."""
        return {
            'behavior': list(BEHAVIORS),
            'modality': list(MODALITIES),
            'domain': list(DOMAINS),
        }


def _to_data(
    world: World,
    exposures: Exposures,
    occasion: Occasion | None,
    strengths: dict[str, float],
    rng: np.random.Generator,
    bar: tqdm,
) -> HeteroData:
    # Brings torchmetrics and what that plots with: two seconds, which no other dataset needs.
    from mag.metrics import bayes_optimal

    micro = MicroBehavior()
    outcomes = draw_outcomes(world, exposures, occasion, strengths, micro, rng, bar)
    data = HeteroData()
    _add_nodes(data, world)
    _add_clicks(data, world, exposures, outcomes.clicked)
    clicks = data['user', 'clicks', 'item']
    clicks.edge_label_behavior = outcomes.behavior
    clicks.edge_label_conversion = torch.from_numpy(outcomes.converted).float()
    if occasion is not None:
        clicks.num_query += NUM_OCCASIONS
    click = torch.from_numpy(outcomes.click_probability)
    conversion = torch.from_numpy(outcomes.conversion_probability)
    data.truth = {
        'click_probability': click,
        'conversion_probability': conversion,
        'intent': torch.from_numpy(exposures.intent),
        'user_group': torch.from_numpy(world.user_group),
        'item_group': torch.from_numpy(world.item_group),
        'preferred_modality': torch.from_numpy(world.preferred_modality),
        'behavior_coupling': torch.from_numpy(micro.coupling),
        'bayes_optimal': {
            name: dict(zip(('auc', 'logloss'), bayes_optimal(*probabilities), strict=True))
            for name, probabilities in (
                ('click', (click,)),
                ('conversion', (conversion, click)),
                ('click_and_conversion', (click * conversion,)),
            )
        },
    }
    if occasion is not None:
        data.truth['occasion'] = torch.from_numpy(occasion.drawn)
        data.truth['occasion_price'] = torch.from_numpy(occasion.price)
    return data


def _add_nodes(data: HeteroData, world: World) -> None:
    user, item = data['user'], data['item']
    user.num_nodes, item.num_nodes = world.gender.size, world.category.size
    for store, name, value, num in (
        (user, 'gender', world.gender, 2),
        (user, 'age_level', world.age_level, world.num_ages),
        (item, 'category', world.category, world.num_categories),
        (item, 'brand', world.brand, world.num_brands),
        (item, 'seller', world.seller, world.num_sellers),
        (item, 'price_level', world.price_level, world.num_prices),
    ):
        store[name] = torch.from_numpy(value)
        store[f'num_{name}'] = num
    for name, content in zip(MODALITIES, world.content, strict=True):
        item[f'x_{name}'] = torch.from_numpy(content)


def _add_clicks(data: HeteroData, world: World, exposures: Exposures, clicked: np.ndarray) -> None:
    clicks = data['user', 'clicks', 'item']
    is_click = torch.from_numpy(clicked)
    clicks.edge_label_index = torch.from_numpy(np.stack([exposures.user, exposures.item]))
    clicks.edge_label = is_click.float()
    clicks.edge_label_time = torch.from_numpy(exposures.time)
    clicks.edge_label_query = torch.from_numpy(exposures.query)
    clicks.edge_label_domain = torch.from_numpy(exposures.domain)
    clicks.edge_label_row = torch.arange(clicked.size)
    clicks.edge_index = clicks.edge_label_index[:, is_click]
    for name in ('time', 'query', 'domain'):
        clicks[name] = clicks[f'edge_label_{name}'][is_click]
    clicks.num_query, clicks.num_domain = world.num_terms, len(DOMAINS)


def _expire_ids(data: HeteroData, id_lifetime: float, rng: np.random.Generator) -> None:
    num_persons, lifetime = data['user'].num_nodes, id_lifetime * DAY
    num_ids = 1 + math.ceil(PERIOD / lifetime)
    # How much of its lifetime the first id of each has behind it.
    age = torch.from_numpy(rng.random(num_persons))
    clicks = data['user', 'clicks', 'item']
    for index, time in (('edge_index', 'time'), ('edge_label_index', 'edge_label_time')):
        person, item = clicks[index]
        expired = (clicks[time] / lifetime + age[person]).long()
        clicks[index] = torch.stack([person * num_ids + expired, item])

    for name in ('gender', 'age_level'):
        data['user'][name] = data['user'][name].repeat_interleave(num_ids)
    data['user'].num_nodes = num_persons * num_ids
    for name in {'user_group', 'preferred_modality', 'occasion_price'} & set(data.truth):
        data.truth[name] = data.truth[name].repeat_interleave(num_ids, dim=0)
    data.truth['person'] = torch.arange(num_persons).repeat_interleave(num_ids)
