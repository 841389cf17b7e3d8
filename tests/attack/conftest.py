from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy


class Attack:
    r"""Tries a check on many examples.

    .. code-block:: python

        def test_sum(attack):
            attack(check_sum, st.lists(st.integers()), examples=100)

    Checks are plain functions, so that a test can run one on code with a planted fault and expect
    it to fail. What draws its examples elsewhere takes the fixtures :obj:`attack_factor` and
    :obj:`attack_seed` instead.

    Args:
        factor (int): What numbers of examples are multiplied by.
        seed (int): What examples are drawn from.
    """

    def __init__(self, factor: int, seed: int) -> None:
        self.factor = factor
        self.seed = seed

    def __call__(
        self,
        check: Callable[..., None],
        *strategies: SearchStrategy,
        examples: int,
        shrink: bool = True,
    ) -> None:
        r"""Runs :obj:`check` on arguments drawn from the strategies.

        Args:
            check (callable): What raises an :class:`AssertionError` for an example that fails.
            *strategies (SearchStrategy): One for each of its arguments.
            examples (int): How many examples, times :obj:`factor`.
            shrink (bool, optional): If set to :obj:`False`, an example that fails is not made
                smaller, as nobody reads it where a failure is expected. (default: :obj:`True`)
        """

        # A slow machine fails no test, and what is kept between runs is the seed alone.
        @hypothesis.seed(self.seed)
        @hypothesis.settings(
            max_examples=examples * self.factor,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            suppress_health_check=[hypothesis.HealthCheck.too_slow],
            phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        )
        @hypothesis.given(st.tuples(*strategies))
        def attacked(arguments: tuple) -> None:
            check(*arguments)

        attacked()


@pytest.fixture
def attack(attack_factor: int, attack_seed: int) -> Attack:
    r"""What runs checks, such as :obj:`attack(check, strategy, examples=100)`."""
    return Attack(attack_factor, attack_seed)
