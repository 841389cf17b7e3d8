from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch


class Recipe(NamedTuple):
    r"""How a model of clicks is made, trained and asked."""

    #: Builds the model from a part that was transformed.
    build: Callable[..., torch.nn.Module]
    #: Loads rows, and makes the batch of a request.
    loader: Callable[..., Any]
    #: Arguments of :class:`~mag.transforms.MacroCoarsen`.
    coarsen: Mapping[str, Any]
    #: How many recent neighbors are listed, none if 0.
    recent: int
    #: Whether the counts at the target are read.
    counts: bool
    #: Whether the attributes of the exposure are read.
    contexts: bool
    #: Arguments of :class:`~mag.training.ClickTask`.
    task: Mapping[str, Any]
    #: What training stops by, one of the metrics of the task.
    monitor: str
    #: How users and items are grouped unless it is said.
    groups: Mapping[str, Any]
