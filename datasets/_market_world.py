from typing import NamedTuple

import numpy as np
from tqdm import tqdm

MODALITIES = ('visual', 'acoustic', 'text')
_CATEGORIES_PER_GROUP = 3
_TERMS_PER_CATEGORY = 5
_QUERY_LENGTH = 4
_TASTE_SIZE, _STYLE_SIZE, _CONTENT_SIZE = 8, 4, 16
DAY = 24 * 3600
PERIOD = 28 * DAY
CHUNK = 1 << 20


class World:
    r"""Who the users are and what the items are, before anything happens."""

    def __init__(
        self, rng: np.random.Generator, num_users: int, num_items: int, num_groups: int
    ) -> None:
        self.num_categories = num_groups * _CATEGORIES_PER_GROUP
        self.num_terms = 1 + self.num_categories * _TERMS_PER_CATEGORY
        self.num_brands, self.num_sellers, self.num_prices, self.num_ages = (
            max(2, num_items // 20), max(2, num_items // 10), 5, 6,
        )  # fmt: skip

        self.activity = _power_law(rng, num_users, exponent=0.8)
        self.user_group = rng.integers(num_groups, size=(num_users, 2))
        centers = _unit(rng.standard_normal((num_groups, _TASTE_SIZE)))
        self.user_taste = _unit(
            centers[self.user_group] + 0.25 * rng.standard_normal((num_users, 2, _TASTE_SIZE))
        ).astype(np.float32)
        self.gender = rng.integers(2, size=num_users)
        self.age_level = rng.integers(self.num_ages, size=num_users)
        self.need = (0.5 * rng.standard_normal(num_users)).astype(np.float32)
        self.diligence = rng.standard_normal(num_users).astype(np.float32)
        self.preferred_modality = rng.integers(len(MODALITIES), size=num_users)
        self.style_taste = _unit(rng.standard_normal((num_users, _STYLE_SIZE))).astype(np.float32)

        self.popularity = _power_law(rng, num_items, exponent=0.8)
        self.category = rng.integers(self.num_categories, size=num_items)
        self.item_group = self.category // _CATEGORIES_PER_GROUP
        self.item_taste = _unit(
            centers[self.item_group] + 0.25 * rng.standard_normal((num_items, _TASTE_SIZE))
        ).astype(np.float32)
        self.brand = rng.integers(self.num_brands, size=num_items)
        self.seller = rng.integers(self.num_sellers, size=num_items)
        self.price_level = rng.integers(self.num_prices, size=num_items)
        style = rng.standard_normal((len(MODALITIES), num_items, _STYLE_SIZE))
        camera = rng.standard_normal((len(MODALITIES), _STYLE_SIZE, _CONTENT_SIZE))
        noise = 0.3 * rng.standard_normal((len(MODALITIES), num_items, _CONTENT_SIZE))
        self.style = style.astype(np.float32)
        # Without a library of products, whose bits depend on the machine.
        self.content = (np.einsum('mis,msc->mic', style, camera) + noise).astype(np.float32)

        # What an item is worth by itself, and how far a price is from what suits a user.
        quality = (
            rng.standard_normal(self.num_brands)[self.brand]
            + rng.standard_normal(self.num_sellers)[self.seller]
            + 0.5 * rng.standard_normal(num_items)
        )
        self.quality = (0.5 * quality).astype(np.float32)
        budget = rng.random((2, self.num_ages, 1)) * (self.num_prices - 1)
        distance = np.abs(np.arange(self.num_prices) - budget)
        self.price_fit = (0.8 * (1.2 - distance)).astype(np.float32)

        # Items in the order of categories, so that those of one are an interval of `share`.
        self.by_category = self.category.argsort(kind='stable')
        self.share = self.popularity[self.by_category].cumsum()
        self.share /= self.share[-1]
        ends = np.searchsorted(
            self.category[self.by_category], np.arange(self.num_categories), side='right'
        )
        self.category_end = np.concatenate([[0.0], self.share])[ends]
        self.category_start = np.concatenate([[0.0], self.category_end[:-1]])


class Exposures(NamedTuple):
    r"""What was shown to whom, when and where; :obj:`progress` is the time from 0 to 1."""

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    progress: np.ndarray
    domain: np.ndarray
    intent: np.ndarray
    query: np.ndarray


def draw_exposures(
    world: World,
    rng: np.random.Generator,
    num_exposures: int,
    search_share: float,
    query_noise: float,
    bar: tqdm,
) -> Exposures:
    r"""Draws in the order of time what is shown to whom, in what domain and for what intent."""
    time = np.sort(rng.integers(PERIOD, size=num_exposures))
    progress = (time / PERIOD).astype(np.float32)
    parts = []
    for start in range(0, num_exposures, CHUNK):
        now = progress[start : start + CHUNK]
        user = _draw(rng, world.activity.cumsum(), now.size)
        domain = (rng.random(now.size) < search_share).astype(np.int64)
        # What a user looks for moves from the first of two groups to the second.
        group = world.user_group[user, (rng.random(now.size) < now).astype(np.int64)]
        intent = group * _CATEGORIES_PER_GROUP + rng.integers(_CATEGORIES_PER_GROUP, size=now.size)
        curious = rng.random(now.size) < np.where(domain == 1, 0.2, 0.5)
        # A search has an intent always, a recommendation where the shop has guessed it.
        anything = rng.integers(world.num_categories, size=now.size)
        intent = np.where(curious, np.where(domain == 1, anything, -1), intent)
        shown = np.where(rng.random(now.size) < 0.2, -1, intent)
        parts.append((user, _draw_items(world, rng, shown), domain, intent,
                      _draw_queries(world, rng, intent, domain, query_noise)))  # fmt: skip
        bar.update(now.size)
    user, item, domain, intent, query = (np.concatenate(column) for column in zip(*parts))
    return Exposures(user, item, time, progress, domain, intent, query)


def _draw_items(world: World, rng: np.random.Generator, category: np.ndarray) -> np.ndarray:
    r"""Draws by popularity an item of each category, or of any where it is -1 or has none."""
    start = np.where(category < 0, 0, world.category_start[category])
    end = np.where(category < 0, 1, world.category_end[category])
    is_empty = end <= start
    start, end = np.where(is_empty, 0, start), np.where(is_empty, 1, end)
    point = start + rng.random(category.size) * (end - start)
    position = np.searchsorted(world.share, point, side='right')
    return world.by_category[np.minimum(position, world.by_category.size - 1)]


def _draw_queries(
    world: World,
    rng: np.random.Generator,
    intent: np.ndarray,
    domain: np.ndarray,
    query_noise: float,
) -> np.ndarray:
    shape = (intent.size, _QUERY_LENGTH)
    telling = (
        1 + intent[:, None] * _TERMS_PER_CATEGORY + rng.integers(_TERMS_PER_CATEGORY, size=shape)
    )
    noise = rng.integers(1, world.num_terms, size=shape)
    query = np.where(rng.random(shape) < query_noise, noise, telling)
    length = rng.integers(1, _QUERY_LENGTH + 1, size=(intent.size, 1))
    query[np.arange(_QUERY_LENGTH) >= length] = -1
    query[domain == 0] = [0] + [-1] * (_QUERY_LENGTH - 1)
    return query


def _power_law(rng: np.random.Generator, size: int, exponent: float) -> np.ndarray:
    r"""Shares that fall with the rank, in random order."""
    share = np.arange(1, size + 1) ** -exponent
    return rng.permutation(share / share.sum())


def _draw(rng: np.random.Generator, cumulative: np.ndarray, size: int) -> np.ndarray:
    position = np.searchsorted(cumulative, rng.random(size) * cumulative[-1], side='right')
    return np.minimum(position, cumulative.size - 1)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
