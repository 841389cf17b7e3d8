r"""A log of events of :mod:`mag.online`, as a pipeline reads it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mag.checks import check_integers
from mag.datasets import IdMap
from mag.online import EVENT, EventStream, IdRegister
from mag.pipeline.raw_log import RawLog
from mag.pipeline.snapshot import events_of

_NODES = ('user', 'item')
# Events, or ids, that are read at once.
_PIECE = 2**16


def num_shared(stream: EventStream, events: np.ndarray) -> int:
    r"""How many of the first events of a log are those that a pipeline knows: all, or as many as
    there are. Of those that were trimmed nothing is told.

    Args:
        stream: The log.
        events: All events of the pipeline, whose times never go back.

    Raises:
        ValueError: If others are there.
    """
    position = min(stream.start, len(events))
    latest = int(events['time'][position - 1]) if position > 0 else None
    while position < len(events):
        held = stream.read(position, _PIECE)[: len(events) - position]
        if len(held) == 0:
            break
        latest = _raise_times(held, latest)
        given = events[position : position + len(held)]
        if held.tobytes() != given.tobytes():
            row = int((held != given).argmax())
            raise ValueError(
                f'{stream!r} has the event {held[row]} at position {position + row}, where the '
                f'pipeline has {given[row]}.'
            )
        position += len(held)
    return position


def share_ids(register: IdRegister, maps: Mapping[str, IdMap]) -> None:
    r"""Has a register know the ids of a snapshot, by the same numbers: it begins with them, or
    they go on from those that it began with.

    Raises:
        ValueError: If it has other ids by these numbers.
    """
    register.begin(maps)
    for node, first in register.first.items():
        own = list(map(str, maps[node].decode(np.arange(first, len(maps[node])))))
        held = _ids(register, node, first, len(own))
        found = held + own[len(held) :]
        numbers = register.add({node: own[len(held) :]}).numbers[node]
        is_other = numbers != np.arange(first + len(held), first + len(own))
        if found != own or is_other.any():
            raise ValueError(
                f'{register!r} gives {node}s other numbers than {maps[node]!r} from {first} on: '
                f'events that the pipeline has read elsewhere brought ids in another order. Load '
                f'one that was saved before that, and have it read this log.'
            )


def follow(known: RawLog, stream: EventStream, register: IdRegister, at: int | None) -> RawLog:
    r"""The log of a pipeline with the events of a stream up to a position at its end.

    An event whose time is before that of an earlier one is taken to have happened with it, as the
    stream knew nothing of it before. What a stream does not tell of an exposure is unknown.

    Args:
        known: The log, whose events are the first of the stream.
        stream: The log of events.
        register: The ids of those that came after the first snapshot.
        at: The position; the end by default.

    Raises:
        ValueError: If there is no such position, the first events are others, or numbers have no
            ids, or others than the log has.
    """
    number, end = known.num_events, stream.end
    if at is None and end < number:
        raise ValueError(
            f'{stream!r} ends at position {end}, but must begin with the {number} events that the '
            f'pipeline knows: it is another log, or lacks some, which a server appends.'
        )
    at = end if at is None else at
    check_integers(0, at=at)
    if at > end:
        raise ValueError(f"'at' must be at most the end of {stream!r}, {end}, but got {at}.")
    if at < number:
        raise ValueError(
            f"'at' must be at least {number}, as the pipeline knows the events before it and "
            f'forgets none, but got {at}: load one that was saved earlier, such as that beside an '
            f'older snapshot.'
        )
    num_shared(stream, events_of(known))
    share_ids(register, known.maps)
    events = _events(stream, number, at)
    if len(events) == 0:
        return known
    _raise_times(events, known.end - 1)
    maps: dict[str, Any] = dict(known.maps)
    for node in _NODES:
        maps[node] = _grown(register, node, maps[node], int(events[node].max()) + 1)
    later: dict[str, Any] = {
        name: torch.from_numpy(events[name].astype(np.int64)) for name in (*_NODES, 'time')
    }
    later['label'] = torch.from_numpy(events['clicked'].astype(np.float32))
    for name in known.contexts:
        later[name] = torch.full((len(events),), -1)
    told = {name: maps[name] for name in (*_NODES, *known.contexts)}
    other = RawLog(told, {node: {} for node in _NODES}, later)
    # New ids come in the order of their numbers, where a log of its own would sort them.
    return replace(known, maps=maps).extend(other)


def _events(stream: EventStream, start: int, stop: int) -> np.ndarray:
    pieces = [np.empty(0, EVENT)]
    while start < stop:
        pieces.append(stream.read(start, min(_PIECE, stop - start)))
        if len(pieces[-1]) == 0:
            raise ValueError(
                f'{stream!r} ended at position {stop} a moment ago, and ends at {start} now: it '
                f'has lost events. Try again once they, or others, are there.'
            )
        start += len(pieces[-1])
    return np.concatenate(pieces)


def _raise_times(events: np.ndarray, latest: int | None) -> int:
    r"""Raises times that go back to the latest one before them, which is given back."""
    if latest is not None:
        events['time'] = np.maximum(events['time'], latest)
    events['time'] = np.maximum.accumulate(events['time'])
    return int(events['time'][-1])


def _ids(register: IdRegister, node: str, first: int, number: int) -> list[str]:
    r"""As many ids from one on as there are, up to a number."""
    found: list[str] = []
    while len(found) < number:
        some = register.read(node, first + len(found), min(_PIECE, number - len(found)))
        if not some:
            break
        found += some
    return found


def _grown(register: IdRegister, node: str, known: IdMap, number: int) -> IdMap:
    r"""A map with the ids of a register up to a number."""
    if number <= len(known):
        return known
    new = _ids(register, node, len(known), number - len(known))
    grown = known.append(_as_numbers(new) if known.kind == 'integer' else new)
    if len(grown) != number:
        raise ValueError(
            f'The log has events of {node} {number - 1}, but the ids that are known and those of '
            f'{register!r} end before {len(grown)}: the log is that of another register.'
        )
    return grown


def _as_numbers(texts: list[str]) -> list[Any]:
    r"""What is written as numbers are, as numbers, if all are: a map of numbers stays one."""
    if all(text.removeprefix('-').isdecimal() and str(int(text)) == text for text in texts):
        return list(map(int, texts))
    return texts
