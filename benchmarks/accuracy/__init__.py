r"""How well models predict."""

import sys
from types import SimpleNamespace

# DeepCTR-Torch asks PyPI for a newer version whenever it is imported; a benchmark needs no network.
sys.modules.setdefault(
    'deepctr_torch.utils',
    SimpleNamespace(check_version=lambda version: None),  # type: ignore
)
