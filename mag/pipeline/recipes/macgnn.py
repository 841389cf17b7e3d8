from mag.loader import PairLoader
from mag.models import MacGNN
from mag.pipeline.recipes.recipe import Recipe

MACGNN = Recipe(
    build=MacGNN.from_data,
    loader=PairLoader,
    coarsen={'exposure_hops': 0},
    recent=20,
    counts=False,
    contexts=False,
    task={'learning_rate': 1e-2, 'weight_decay': 5e-5},
    monitor='auc',
    groups={'user': 20, 'item': 'category'},
)
