import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from torch import Tensor
from torch.nn import Module
from torch_geometric.data import HeteroData

from mag.loader.row_loader import RowLoader
from mag.pipeline.request import Request

#: Makes the parts of a log.
Split = Callable[[HeteroData], Sequence[HeteroData]]


class Prepared(NamedTuple):
    r"""A log that a model can be trained on.

    Attributes:
        source: What the model is built from.
        parts: Those of training, validation and test, as :meth:`Recipe.loader` takes them.
        history: The log that loaders read the clicks of, as they were before each row.
    """

    source: HeteroData
    parts: Sequence[Any]
    history: Any


def one_window(train_start: float) -> dict[str, Any]:
    r"""Arguments of TemporalSplit for models that do not roll over windows and read more than the
    past, so that users without one can stay."""
    shares = {'train_start': train_start, 'val_start': 0.8, 'test_start': 0.9}
    return {**shares, 'num_windows': 1, 'keep_cold': True}


class Served(ABC):
    r"""What requests read: a log as of its end.

    Attributes:
        source (HeteroData): What a model is built from and grows by.
    """

    source: HeteroData

    @abstractmethod
    def batch(self, request: Request) -> Any:
        r"""The batch of a request."""

    def update(self, recipe: 'Recipe', log: Any, first: int) -> bool:
        r"""Reads the events of a longer log from some row on, if they add nothing but counts.

        Args:
            recipe: One that has decided of the longer log.
            log: The longer log.
            first: The first row that is new.

        Returns:
            Whether it could; else it has changed nothing.
        """
        return False


class Loaded(Served):
    r"""What a loader alone tells of a request.

    Args:
        source: What a model is built from and grows by.
        loader: The loader.
    """

    def __init__(self, source: HeteroData, loader: Any) -> None:
        self.source, self.loader = source, loader


class Recipe(ABC):
    r"""How a log is told to a model, in training and at a request, by transforms that are fitted on
    its first part.

    Args:
        seed: That of what is drawn in :meth:`prepare`.
        **arguments: Those of the model.

    Raises:
        TypeError: If the model has no such argument, or its value is none of JSON.
    """

    #: The class of the model.
    model: ClassVar[type[Module]]
    #: What is kept of a log besides clicks and attributes, see :meth:`RawLog.of`.
    reads: ClassVar[Collection[str]] = ()
    #: How the log is split, unless it is said: arguments of TemporalSplit.
    split: ClassVar[Mapping[str, Any]]
    #: Arguments of ClickTask.
    task: ClassVar[Mapping[str, Any]]
    #: What training stops by, one of the metrics of the task.
    monitor: ClassVar[str]
    #: The names of the probabilities that the model tells.
    predicts: ClassVar[tuple[str, ...]] = ('click',)
    #: Whether a model holds what it reads of the log, so that it grows with each event.
    is_in_model: ClassVar[bool] = False

    def __init__(self, seed: int, **arguments: Any) -> None:
        model: Any = self.model
        known = _parameters(model.__init__) | _parameters(model.from_data)
        known |= _parameters(type(self).__init__)
        for name, value in arguments.items():
            if name not in known:
                raise TypeError(
                    f'{self.model.__name__} has no argument {name!r}; it takes {sorted(known)}.'
                )
            check_json(name, value)
        self.seed = seed
        self.arguments = arguments

    @abstractmethod
    def prepare(self, data: Any, split: Split, progress: bool) -> Prepared:
        r"""Splits a log, and fits the transforms on its training part."""

    @abstractmethod
    def loader(self, part: Any, history: Any, **arguments: Any) -> RowLoader:
        r"""Loads the rows of a part."""

    @abstractmethod
    def serve(self, log: Any) -> Served:
        r"""What requests read after the end of a log."""

    def build(self, source: HeteroData) -> Module:
        r"""The model, whose weights have still to be learned."""
        return self.model.from_data(source, **self.arguments)  # type: ignore[attr-defined]

    def keep(self, log: Any) -> 'Recipe':
        r"""One that has decided of all nodes of a log what is decided once."""
        return self

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        r"""What was fitted, as tensors and as values of JSON."""
        return {}, {}

    # Most fit something; who does not need not say so.
    def load_fitted_state(  # noqa: B027
        self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> None:
        r"""Takes what :meth:`fitted_state` gave for a recipe with the same arguments."""

    def summary(self, log: Any) -> dict[str, Any]:
        r"""What was fitted, for people, as values of JSON."""
        return {}


def _parameters(function: Callable[..., Any]) -> set[str]:
    r"""The names of the arguments that have a default."""
    return {
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    }


def check_json(name: str, value: Any) -> None:
    r"""Raises a :class:`TypeError` unless a value can be saved."""
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"'{name}' must be a value that JSON has, as it is saved, but got {value!r}."
        ) from error
