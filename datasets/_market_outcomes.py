r"""What follows an exposure in a simulated market, and how likely it was."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mag.datasets._market_world import CHUNK, Exposures, World
from mag.datasets._micro_behavior import BEHAVIORS, MicroBehavior, sigmoid
from mag.datasets._occasion import Occasion

_CLICK_RATE = 0.2


class Outcomes(NamedTuple):
    r"""What followed each exposure: whether it was clicked, which of the :math:`B` behaviors
    followed, shape :obj:`[L, B]`, and whether it converted; and the probabilities of a click, and
    of a conversion after one."""

    clicked: np.ndarray
    behavior: Tensor
    converted: np.ndarray
    click_probability: np.ndarray
    conversion_probability: np.ndarray


def draw_outcomes(
    world: World,
    exposures: Exposures,
    occasion: Occasion | None,
    strengths: dict[str, float],
    micro: MicroBehavior,
    rng: np.random.Generator,
    bar: tqdm,
) -> Outcomes:
    r"""Draws for each exposure what follows it."""
    num_exposures = exposures.user.size
    click_logit, conversion_logit = (np.empty(num_exposures, np.float32) for _ in range(2))
    level = np.empty(num_exposures, np.int8)
    for start in range(0, num_exposures, CHUNK):
        rows = slice(start, start + CHUNK)
        value = _value(world, exposures, rows)
        click_logit[rows] = _interest(world, exposures, rows) + strengths['selection_bias'] * value
        if occasion is not None:
            price = world.price_level[exposures.item[rows]]
            fit = occasion.fit(exposures.user[rows], price, rows)
            click_logit[rows] += strengths['occasion_strength'] * fit
        conversion_logit[rows] = value + world.need[exposures.user[rows]]
        level[rows] = micro.level(0.8 * value + 0.6 * world.diligence[exposures.user[rows]])
        bar.update(value.size)
    click_logit += _intercept(click_logit)
    conversion_logit -= 3.0

    click_probability, conversion_probability = (np.empty(num_exposures) for _ in range(2))
    clicked, converted = (np.zeros(num_exposures, bool) for _ in range(2))
    behavior = torch.zeros(num_exposures, len(BEHAVIORS))
    states = torch.from_numpy(micro.states).float()
    for start in range(0, num_exposures, CHUNK):
        rows = slice(start, start + CHUNK)
        now = level[rows].astype(np.int64)
        click_probability[rows] = sigmoid(click_logit[rows].astype(np.float64))
        conversion_probability[rows] = micro.conversion_probability(now, conversion_logit[rows])
        clicked[rows] = rng.random(now.size) < click_probability[rows]
        which = clicked[rows].nonzero()[0]
        state = micro.draw(now[which], rng)
        behavior[start + torch.from_numpy(which)] = states[torch.from_numpy(state)]
        chance = sigmoid(conversion_logit[rows][which] + micro.lift[state])
        converted[start + which] = rng.random(which.size) < chance
        bar.update(now.size)
    return Outcomes(clicked, behavior, converted, click_probability, conversion_probability)


def _value(world: World, exposures: Exposures, rows: slice) -> np.ndarray:
    user, item = exposures.user[rows], exposures.item[rows]
    fit = world.price_fit[world.gender[user], world.age_level[user], world.price_level[item]]
    return world.quality[item] + fit


def _interest(world: World, exposures: Exposures, rows: slice) -> np.ndarray:
    r"""What draws a click on any occasion and says nothing about a conversion."""
    user, item, progress = (
        column[rows] for column in (exposures.user, exposures.item, exposures.progress)
    )
    tastes = np.einsum('nkd,nd->nk', world.user_taste[user], world.item_taste[item])
    angle = progress * (math.pi / 2)
    affinity = np.cos(angle) * tastes[:, 0] + np.sin(angle) * tastes[:, 1]
    modality = world.preferred_modality[user]
    style = np.einsum('nd,nd->n', world.style_taste[user], world.style[modality, item])
    is_match = exposures.intent[rows] == world.category[item]
    match = np.where(exposures.domain[rows] == 1, np.where(is_match, 1.0, -1.0), 0.0)
    return (2 * affinity + style + match).astype(np.float32)


def _intercept(logit: np.ndarray) -> float:
    r"""What to add to the logits for one click in five, by bisection on some of them."""
    logit = logit[:: max(1, logit.size // 100_000)].astype(np.float64)
    high = max(100.0, 2 * float(np.abs(logit).max()))
    low = -high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if sigmoid(logit + middle).mean() > _CLICK_RATE else (middle, high)
        )
    return low
