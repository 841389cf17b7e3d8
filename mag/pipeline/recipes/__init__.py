r"""What a :class:`~mag.pipeline.Pipeline` makes of a log for each model."""

from mag.pipeline.recipes.count_net import COUNT_NET
from mag.pipeline.recipes.macgnn import MACGNN
from mag.pipeline.recipes.recipe import Recipe

#: By the name of a model.
RECIPES: dict[str, Recipe] = {'count_net': COUNT_NET, 'macgnn': MACGNN}

__all__ = ['RECIPES', 'Recipe']
