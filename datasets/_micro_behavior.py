import numpy as np

#: What may follow a click, and how much each adds to the logit of a purchase.
BEHAVIORS = {
    'favorite': 0.5,
    'cart': 1.5,
    'coupon': 1.0,
    'compare': 0.25,
    'reviews': 0.5,
    'zoom': 0.25,
    'questions': 0.25,
    'size_guide': 0.5,
    'seller_page': 0.25,
    'share': 0.0,
}
_BUYING, _READING = slice(0, 4), slice(4, 8)
# Weights are multiples of this, so that their sums take few values.
_STEP = 0.25


class MicroBehavior:
    r"""The pairwise model that draws what follows a click,

    .. math::
        P(\mathbf{b} \mid e) \propto \exp \left( \sum_i (h_i + g_i e) \, b_i + \sum_{i < j} J_{ij}
        \, b_i b_j \right), \qquad \mathbf{b} \in \{0, 1\}^{10},

    of an engagement :math:`e` that takes :obj:`num_levels` values, so that all :math:`2^{10}`
    states are enumerated once a level and every probability is exact.

    Attributes:
        coupling (numpy.ndarray): :math:`J`, symmetric with a zero diagonal, shape :obj:`[10, 10]`.
    """

    num_levels = 64

    def __init__(self) -> None:
        num_behaviors = len(BEHAVIORS)
        self.coupling = np.full((num_behaviors, num_behaviors), -0.2)
        self.coupling[_BUYING, _BUYING] = 1.0
        self.coupling[_READING, _READING] = 0.8
        self.coupling[0, 9] = self.coupling[9, 0] = 1.2  # what one likes, one shares
        self.coupling[6, 8] = self.coupling[8, 6] = 1.2  # who asks, looks at who answers
        np.fill_diagonal(self.coupling, 0)
        field = np.array([-2.2, -2.6, -3.2, -2.4, -1.6, -1.4, -2.6, -2.8, -2.2, -3.6])
        slope = np.array([0.5, 0.6, 0.5, 0.2, 0.5, 0.4, 0.3, 0.4, 0.2, 0.1])

        states = np.arange(2**num_behaviors)
        self.states = (states[:, None] >> np.arange(num_behaviors)) & 1
        pairs = 0.5 * ((self.states @ self.coupling) * self.states).sum(1)
        energy = self.states @ (field + slope * self.engagement[:, None]).T + pairs[:, None]
        self.probability = (np.exp(energy) / np.exp(energy).sum(0)).T
        # Level l owns the interval [l, l + 1), so that one binary search serves all levels.
        cumulative = self.probability.cumsum(1)
        self._ends = (cumulative / cumulative[:, -1:] + np.arange(self.num_levels)[:, None]).ravel()

        steps = np.rint(self.states @ (np.array(list(BEHAVIORS.values())) / _STEP)).astype(int)
        self.lift = steps * _STEP
        self._lift_probability = np.zeros((self.num_levels, steps.max() + 1))
        for level in range(self.num_levels):
            self._lift_probability[level] = np.bincount(steps, self.probability[level])

    @property
    def engagement(self) -> np.ndarray:
        r"""The engagement :math:`e` of each level, from -4 up in steps of an eighth."""
        return (np.arange(self.num_levels) - self.num_levels // 2) / 8

    def level(self, engagement: np.ndarray) -> np.ndarray:
        r"""The level nearest to an engagement."""
        return np.clip(
            np.rint(engagement * 8) + self.num_levels // 2, 0, self.num_levels - 1
        ).astype(np.int64)

    def draw(self, level: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        r"""Draws a state, an index into :obj:`states` and :obj:`lift`, for each level."""
        drawn = np.searchsorted(self._ends, level + rng.random(level.size), side='right')
        return drawn - level * len(self.states)

    def conversion_probability(self, level: np.ndarray, logit: np.ndarray) -> np.ndarray:
        r"""The probability of a purchase after a click, over all that may happen in between:
        :math:`\sum_{\mathbf{b}} P(\mathbf{b} \mid e) \, \sigma(\mathrm{logit} + \mathbf{w}
        \cdot \mathbf{b})`, in float64."""
        probability, logit = np.zeros(level.size), logit.astype(np.float64)
        for step, weight in enumerate(self._lift_probability.T):
            probability += weight[level] * sigmoid(logit + step * _STEP)
        return probability


def sigmoid(logit: np.ndarray) -> np.ndarray:
    r"""The logistic function."""
    # What overflows is a probability of 0.
    with np.errstate(over='ignore'):
        return 1 / (1 + np.exp(-logit))
