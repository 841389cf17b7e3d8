r"""Ids and contexts, as messages and as values."""

import numbers
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message

from mag.online import ranking_pb2

#: What a message may take, in bytes.
MAX_MESSAGE = 4 * 2**20
_INTEGERS = range(-(2**63), 2**63)


def decoded(kind: type[Message], packed: bytes) -> Any:
    r"""A message from its bytes.

    Raises:
        ValueError: If they are none of that kind.
    """
    try:
        return kind.FromString(packed)
    except DecodeError as error:
        raise ValueError(
            f'{len(packed)} bytes must be a message {kind.DESCRIPTOR.full_name}, but they are not: '
            f'{error}.'
        ) from error


def id_message(name: str, raw: Any) -> ranking_pb2.Id:
    r"""The message of a raw id."""
    raw = _plain(name, raw)
    if isinstance(raw, int) and raw in _INTEGERS:
        return ranking_pb2.Id(number=raw)
    return _unicode(name, lambda: ranking_pb2.Id(text=str(raw)))


def ids_message(name: str, raw: Iterable[Any]) -> ranking_pb2.Ids:
    r"""The message of raw ids; of several kinds they become texts, which are the same ids."""
    if isinstance(raw, (str, bytes)) or not isinstance(raw, Iterable):
        raise TypeError(f"'{name}' must be a sequence of ids, but got {type(raw).__name__}.")
    values = raw.tolist() if hasattr(raw, 'tolist') else list(raw)
    if not isinstance(values, list):
        raise ValueError(f"'{name}' must be a sequence of ids, but got a single one.")
    kinds = set(map(type, values))
    if kinds not in ({int}, {str}):
        values = [_plain(name, value) for value in values]
        kinds = set(map(type, values))
    if not values or (kinds == {int} and min(values) in _INTEGERS and max(values) in _INTEGERS):
        return ranking_pb2.Ids(numbers=ranking_pb2.Numbers(values=values))
    return _unicode(name, lambda: ranking_pb2.Ids(texts=ranking_pb2.Texts(values=map(str, values))))


def context_messages(context: Mapping[str, Any] | None) -> dict[str, ranking_pb2.Value]:
    r"""The messages of a context."""
    messages = {}
    for key, value in (context or {}).items():
        if not isinstance(key, str):
            raise TypeError(f"Names in 'context' must be texts, but got {key!r}.")
        name = f"context['{key}']"
        if isinstance(value, str):
            message = _unicode(name, lambda text=value: ranking_pb2.Value(text=text))  # type: ignore[misc]
        elif isinstance(value, numbers.Integral) and int(value) in _INTEGERS:
            message = ranking_pb2.Value(integer=int(value))
        elif isinstance(value, numbers.Real):
            message = ranking_pb2.Value(real=float(value))
        else:
            raise TypeError(f"'{name}' must be a text or a number, but got {value!r}.")
        messages[key] = message
    return messages


def read_id(name: str, message: ranking_pb2.Id) -> int | str:
    r"""The raw id of a message.

    Raises:
        ValueError: If there is none.
    """
    kind = message.WhichOneof('kind')
    if kind is None:
        raise ValueError(f"'{name}' must be an id, a text or a number, but none was given.")
    return getattr(message, kind)


def read_ids(name: str, message: ranking_pb2.Ids, most: int) -> list[int] | list[str]:
    r"""The raw ids of a message.

    Raises:
        ValueError: If there are none, or too many.
    """
    kind = message.WhichOneof('kind')
    values = getattr(message, kind).values if kind is not None else ()
    if not 1 <= len(values) <= most:
        raise ValueError(f"'{name}' must be 1 to {most} ids, but got {len(values)}.")
    return list(values)


def read_context(messages: Mapping[str, ranking_pb2.Value]) -> dict[str, str | int | float]:
    r"""The context of messages.

    Raises:
        ValueError: If one has no value.
    """
    context = {}
    for key, message in messages.items():
        kind = message.WhichOneof('kind')
        if kind is None:
            raise ValueError(f"'context[{key!r}]' must be a text or a number, but has no value.")
        context[key] = getattr(message, kind)
    return context


def _plain(name: str, raw: Any) -> int | str:
    if isinstance(raw, (str, uuid.UUID)):
        return str(raw)
    if isinstance(raw, bool) or not isinstance(raw, numbers.Integral):
        raise TypeError(f"'{name}' must have integers or texts as ids, but got {raw!r}.")
    return int(raw)


def _unicode(name: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except UnicodeError as error:
        raise ValueError(f"'{name}' must be Unicode, but {error}.") from error
