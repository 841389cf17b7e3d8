from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mag.datasets import IdMap
from mag.loader import PairBatch, PairLoader
from mag.models import MacGNN
from mag.pipeline.raw_log import RawLog
from mag.pipeline.recipes import Served
from mag.pipeline.recipes.macgnn import MacGNNRecipe
from mag.pipeline.request import Request
from mag.transforms import TemporalSplit

USERS = [f'm{number}' for number in range(20)]
ITEMS = {f'm{number}': f'k{number % 3}' for number in range(9)} | {'m9': 'unknown'}


def make_log(
    seed: int, number: int, start: int, users: Sequence[str], items: dict[str, str]
) -> RawLog:
    r"""Random exposures, three a second, half of them clicked, of items with a category."""
    generator = torch.Generator().manual_seed(seed)
    maps = {
        'user': IdMap(users), 'item': IdMap(list(items)), 'category': IdMap(list(items.values()))
    }  # fmt: skip
    names = maps['item'].decode(range(len(items)))
    category = torch.from_numpy(maps['category'].encode([items[name] for name in names]))
    user, item, label = (
        torch.randint(high, (number,), generator=generator) for high in (len(users), len(items), 2)
    )
    time = start + torch.arange(number) // 3
    events = {'user': user, 'item': item, 'time': time, 'label': label.float()}
    return RawLog(maps, {'user': {}, 'item': {'category': category}}, events)


def ask(served: Served, log: RawLog) -> PairBatch:
    r"""The batch of all pairs of users and items, and those of who is unknown."""
    sizes = (len(log.maps[name]) for name in ('user', 'item'))
    user, item = torch.cartesian_prod(*(torch.arange(-1, size) for size in sizes)).t()
    batch = served.batch(Request(user, item, torch.full_like(user, log.end), {}, None))
    assert isinstance(batch, PairBatch)
    return batch


@pytest.mark.parametrize('groups', [{'user': 3, 'item': 4}, {'user': 3, 'item': 'category'}])
def test_events_move_rows_unless_macro_nodes_do(groups: dict[str, Any]) -> None:
    log = make_log(0, 600, 0, USERS, ITEMS)
    recipe = MacGNNRecipe(0, groups)
    prepared = recipe.prepare(log.graph(), TemporalSplit(0.3, 0.7, 0.85, num_windows=3), False)
    recipe = recipe.keep(log)
    served, model = recipe.serve(log), MacGNN.from_data(prepared.source, embedding_dim=2).eval()
    is_learned = groups['item'] != 'category'
    for step, (users, items, moves) in enumerate(
        (
            (USERS, ITEMS, True),
            # Users and items that are new, of categories that are known.
            ([*USERS, 'a', 'z'], ITEMS | {'a': 'k1', 'z': 'k0'}, True),
            # A category that is new, and one that was unknown before.
            (USERS, ITEMS | {'b': 'a1'}, is_learned),
            (USERS, ITEMS | {'m9': 'k1'}, is_learned),
            (USERS, ITEMS, True),
        ),
        start=1,
    ):
        before = ask(served, log)
        longer = log.extend(make_log(step, 40, log.end - 1, users, items))
        recipe = recipe.keep(longer)
        assert served.update(recipe, longer, log.events['time'].numel()) == moves
        if not moves:
            # Nothing has changed.
            torch.testing.assert_close(ask(served, log), before, rtol=0, atol=0)
            served = recipe.serve(longer)
        log = longer
        part = recipe.coarsen(recipe.tell(log.part()))
        batch = ask(served, log)
        expected = PairLoader(part).request(batch.user, batch.item)
        torch.testing.assert_close(batch, expected, rtol=0, atol=0)
        # A model grows by the sizes that are served as by the part.
        other = MacGNN.from_data(part, embedding_dim=2).eval()
        model.grow(served.source)
        other.load_state_dict(model.state_dict())
        assert model.id_maps == other.id_maps
        assert torch.equal(model(batch), other(expected))


def test_a_model_is_built_from_what_is_served() -> None:
    log = make_log(0, 300, 0, USERS, ITEMS)
    recipe = MacGNNRecipe(0, {'user': 3, 'item': 'category'}, embedding_dim=2)
    recipe.prepare(log.graph(), TemporalSplit(0.3, 0.7, 0.85), False)
    recipe = recipe.keep(log)
    models = []
    for source in (recipe.serve(log).source, recipe.coarsen(recipe.tell(log.part()))):
        torch.manual_seed(0)
        models.append(recipe.build(source))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(one, other)
    assert str(models[0]) == str(models[1])
