import numpy as np

NUM_OCCASIONS = 2


class Occasion:
    r"""What a user searches for: on each occasion, such as for themselves or as a present, they
    want another price level.

    Attributes:
        price (numpy.ndarray): The price levels that users want, shape
            :obj:`[num_users, NUM_OCCASIONS]`.
        drawn (numpy.ndarray): The occasion of each exposure, :obj:`-1` for a recommendation, shape
            :obj:`[num_exposures]`.
    """

    def __init__(
        self, rng: np.random.Generator, num_users: int, num_prices: int, domain: np.ndarray
    ) -> None:
        self.price = rng.integers(num_prices, size=(num_users, NUM_OCCASIONS))
        drawn = rng.integers(NUM_OCCASIONS, size=domain.size)
        self.drawn = np.where(domain == 1, drawn, -1)

    def add_term(self, query: np.ndarray, num_terms: int) -> np.ndarray:
        r"""Appends to the query of a search the term that tells its occasion."""
        term = np.where(self.drawn >= 0, num_terms + self.drawn, -1)
        return np.concatenate([query, term[:, None]], axis=1)

    def fit(self, user: np.ndarray, price_level: np.ndarray, rows: slice) -> np.ndarray:
        r"""How near a price level is to the one wanted, 0 in a recommendation."""
        occasion = self.drawn[rows]
        distance = np.abs(price_level - self.price[user, np.maximum(occasion, 0)])
        return np.where(occasion >= 0, 1.2 - distance, 0).astype(np.float32)
