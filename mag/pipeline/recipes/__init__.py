r"""What a :class:`~mag.pipeline.Pipeline` makes of a log for each model."""

from mag.pipeline.recipes.count_net import CountNetRecipe
from mag.pipeline.recipes.gmcm import GMCMRecipe
from mag.pipeline.recipes.hyperctr import HyperCTRRecipe
from mag.pipeline.recipes.macgnn import MacGNNRecipe
from mag.pipeline.recipes.recipe import Recipe, Served
from mag.pipeline.recipes.simcen import SimCENRecipe
from mag.pipeline.recipes.srjgraph import SRJGraphRecipe
from mag.pipeline.recipes.store_recipe import StoredCountNetRecipe, StoredMacGNNRecipe

#: By the name of a model.
RECIPES: dict[str, type[Recipe]] = {
    'count_net': CountNetRecipe,
    'macgnn': MacGNNRecipe,
    'gmcm': GMCMRecipe,
    'srjgraph': SRJGraphRecipe,
    'hyperctr': HyperCTRRecipe,
    'simcen': SimCENRecipe,
}

#: Those of a log that is on the disk, by the name of a model.
STORE_RECIPES: dict[str, type[Recipe]] = {
    'count_net': StoredCountNetRecipe,
    'macgnn': StoredMacGNNRecipe,
}

__all__ = ['RECIPES', 'STORE_RECIPES', 'Recipe', 'Served']
