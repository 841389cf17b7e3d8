r"""Which ids the nodes of a graph stand for, as far as a graph says it: what was made for the nodes
of one log is refused on those of another, and taken where its ids only grew."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch_geometric.data import HeteroData

_Module = TypeVar('_Module', bound=torch.nn.Module)


def id_maps(data: Any) -> dict[str, str]:
    r"""What :obj:`data.id_maps` says: for :obj:`"user"`, :obj:`"item"` and each categorical
    attribute the :attr:`~mag.datasets.IdMap.lineage` of its values. Of a graph that says nothing,
    such as one made by hand, nothing; models and exposures say that of their graph."""
    found = getattr(data, 'id_maps', None)
    return dict(found) if isinstance(found, Mapping) else {}


def has_grown(one: str, other: str) -> bool:
    r"""Whether two lineages are of maps of which one has all ids of the other at the same nodes."""
    # The last of each is the map of now.
    ones, others = one.split(), other.split()
    return ones[-1] in others or others[-1] in ones


def require_same_ids(
    caller: str, known: Mapping[str, str], given: Mapping[str, str], what: str = 'this data'
) -> None:
    r"""Raises a :class:`ValueError` unless ids that both know are those of one log, or of one that
    grew into the other.

    Args:
        caller: Who knows ids, and how, such as :obj:`"MacroCoarsen was fitted on"`.
        known: The lineages it knows.
        given: Those that :obj:`what` has.
        what: What it was given.
    """
    # Users and items first, and in the same order in each process.
    for name in (name for name in known if name in given):
        if not has_grown(known[name], given[name]):
            there, here = known[name].split()[-1], given[name].split()[-1]
            whose = {'user': 'users', 'item': 'items'}.get(name, f'values of {name!r}')
            raise ValueError(
                f'{caller} the {whose} of the id map {there}, but {what} has those of {here}, in '
                f'which an id is another node: read its log with ids= the dataset that the former '
                f'came from, which keeps its ids and adds the new ones.'
            )


def remember_ids(model: _Module, data: HeteroData) -> _Module:
    r"""Gives a model that was built from a graph the attribute :obj:`id_maps` of the graph, if that
    has one."""
    found = id_maps(data)
    if found:
        model.id_maps = found  # type: ignore[assignment]
    return model


def ids_of(module: torch.nn.Module) -> dict[str, str]:
    r"""The lineages that a model, and all models in it, were built for."""
    found: dict[str, str] = {}
    for part in module.modules():
        found |= id_maps(part)
    return found


def require_ids_of(module: torch.nn.Module, loader: Any, what: str) -> None:
    r"""Raises a :class:`ValueError` unless a loader loads rows of the log that a model, and all
    models in it, were built for, or of one that it grew to and whose ids their tables have rows
    for. A table is a module with :obj:`num_values`, by the names of what it embeds.

    Args:
        module: The model, or a task.
        loader: A loader of :mod:`mag.loader` or its dataset, or a loader of PyG's. Of another
            nothing is known.
        what: What the message calls it.
    """
    # PyG's loaders hold the graph, those of mag its exposures.
    graph = getattr(loader, 'data', None)
    exposures = getattr(getattr(loader, 'dataset', loader), 'exposures', None)
    given = id_maps(graph if isinstance(graph, HeteroData) else exposures)
    for part in module.modules():
        known, name = id_maps(part), type(part).__name__
        require_same_ids(f'{name} was built for', known, given, what)
        sizes = {of: _size(given[of]) for of in known if of in given}
        grown = {of: size for of, size in sizes.items() if size > _size(known[of])}
        for field, number in _tables(part).items() if grown else ():
            # Exposures name an attribute by whose it is, too.
            of = field if field in grown else field.removeprefix('user_').removeprefix('item_')
            if number < grown.get(of, 0):
                raise ValueError(
                    f'{name} has rows for {number} values of {field!r}, but {what} is of a log '
                    f'that grew to {grown[of]}: call model.grow(data) with a part of that log, or '
                    f'task.grow(data) where a ClickTask averages the weights.'
                )


def _tables(module: torch.nn.Module) -> dict[str, int]:
    r"""How many values the tables of a model have rows for, by what they embed."""
    found: dict[str, int] = {}
    for part in module.modules():
        numbers = getattr(part, 'num_values', None)
        found |= numbers if isinstance(numbers, Mapping) else {}
    return found


def _size(lineage: str) -> int:
    return int(lineage.split()[-1].partition(':')[0])
