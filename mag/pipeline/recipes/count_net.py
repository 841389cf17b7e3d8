from mag.loader import ExposureLoader
from mag.models import CountNet
from mag.pipeline.recipes.recipe import Recipe

# Of macro nodes it reads the counts at the target alone.
COUNT_NET = Recipe(
    build=CountNet.from_data,
    loader=ExposureLoader,
    coarsen={'num_hops': 1, 'exposure_hops': 0},
    recent=0,
    counts=True,
    contexts=True,
    task={'learning_rate': 1e-2, 'weight_decay': 1e-5, 'average': 0.99},
    monitor='logloss',
    groups={'user': [20], 'item': ['category', 50]},
)
