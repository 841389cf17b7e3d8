from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from mag.checks import check_integers
from mag.context_values import UNKNOWN, as_values, encode_context, for_each, is_nothing
from mag.datasets._log_roles import RECOMMENDATION, SEARCH
from mag.pipeline.known_log import KnownLog

_DOMAINS = dict.fromkeys(RECOMMENDATION, 0) | dict.fromkeys(SEARCH, 1)


class Request(NamedTuple):
    r"""The candidates of a request, by the numbers of a log.

    Attributes:
        user: Their users, :obj:`-1` for an unknown one, shape :obj:`[B]`.
        item: The items, likewise.
        time: When, int64 seconds, shape :obj:`[B]`.
        contexts: By name the categorical attributes of the exposures, shape :obj:`[B]`, or
            :obj:`[B, T]` of a query.
        x: Their features, shape :obj:`[B, F]`; :obj:`None` if there are none.
    """

    user: Tensor
    item: Tensor
    time: Tensor
    contexts: dict[str, Tensor]
    x: Tensor | None


def read_request(
    log: KnownLog,
    names: Sequence[str],
    others: Collection[str],
    separator: str,
    user: Any,
    items: Any,
    time: Any,
    context: Mapping[str, Any] | None,
) -> Request:
    r"""Reads raw ids and names.

    Args:
        log: Whose numbers are told.
        names: Those of the context that must be told.
        others: Those that may be told and are not read.
        separator: What stands between the terms of a query.
        user: The id of the user, or one for each item.
        items: The ids of the items.
        time: When; by default the second after the last event.
        context: By name a value, or one for each item.

    Raises:
        TypeError: If an id cannot be compared with those of the log, or a feature is no number.
        ValueError: If there is not one of each for the request, or one for each item, a name is
            missing or unknown, or the time is before the last event.
    """
    item = log.look_up('item', items)
    if item.dim() != 1:
        raise ValueError(
            f"'items' must be a list of ids, shape [B], but got shape {list(item.shape)}."
        )
    number = item.numel()
    time = log.end if time is None else time
    # Such as the largest time of a table.
    time = int(time) if isinstance(time, np.integer) else time
    check_integers(log.end - 1, below=2**63, time=time)
    if context is not None and not isinstance(context, Mapping):
        raise TypeError(f"'context' must be a dictionary of names, but got {context!r}.")
    given = dict(context or {})
    known = {*log.contexts, *log.features, *others}
    if not set(names) <= set(given) <= known:
        raise ValueError(
            f"'context' must tell {list(names) or 'nothing'}, but told "
            f'{sorted(given) or "nothing"}.'
        )
    contexts = {}
    for name in log.contexts:
        if name == 'query' and name in given:
            contexts[name] = _queries(log, given[name], separator)
        elif name == 'domain' and name in given:
            contexts[name] = _domains(given[name])
        elif name in given:
            contexts[name] = encode_context(log.maps[name], given[name])
    if 'query' in log.contexts:
        _complete(log, contexts)
    x = None
    if set(log.features) <= set(given) and log.features:
        x = torch.stack(
            [for_each(name, _numbers(name, given[name]), number) for name in log.features], dim=1
        )
    return Request(
        for_each('user', log.look_up('user', _as_list(user)), number),
        item,
        torch.full((number,), time),
        {name: for_each(name, value, number) for name, value in contexts.items()},
        x,
    )


def request_of(log: KnownLog, events: Mapping[str, Tensor], rows: Tensor) -> Request:
    r"""Rows of a later log as a request.

    Args:
        log: Whose numbers are told.
        events: What :meth:`KnownLog.encode` returned.
        rows: Which of them, shape :obj:`[B]`.
    """
    user, item, time = (events[name][rows] for name in ('user', 'item', 'time'))
    contexts = {name: events[name][rows] for name in log.contexts}
    if 'query' in contexts:
        width = log.query_width
        query = contexts['query'][:, :width]
        contexts['query'] = pad(query, (0, width - query.size(1)), value=-1)
    x = events['x'][rows] if log.features else None
    return Request(user, item, time, contexts, x)


def example_of(log: KnownLog, number: int = 2) -> Request:
    r"""Users and items, of which a program is made: it would take a size of one for a constant."""
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(log.contexts, (number,))
    if 'query' in shapes:
        shapes['query'] = (number, log.query_width)
    # Each of its own, as a program tells inputs apart by their memory.
    contexts = {name: torch.zeros(shape, dtype=torch.long) for name, shape in shapes.items()}
    user, item = (torch.arange(number) % len(log.maps[node]) for node in ('user', 'item'))
    x = torch.zeros(number, len(log.features)) if log.features else None
    return Request(user, item, torch.full((number,), log.end), contexts, x)


def _complete(log: KnownLog, contexts: dict[str, Tensor]) -> None:
    r"""Tells the domain of a query, or the query of a domain, where one of them was told."""
    if 'query' in contexts and 'domain' not in contexts:
        contexts['domain'] = (contexts['query'][:, 0] != 0).long()
    elif 'domain' in contexts and 'query' not in contexts:
        words = [UNKNOWN if is_search else None for is_search in contexts['domain'].tolist()]
        contexts['query'] = _queries(log, words, ' ')


def _queries(log: KnownLog, given: Any, separator: str) -> Tensor:
    r"""The terms of queries, padded as in the log, :obj:`-1` for one that it does not have. That of
    a recommendation is 0, the empty one."""
    width = log.query_width
    terms = [_terms(query, separator)[:width] for query in as_values(given)]
    sizes = np.array([len(of_query) for of_query in terms])
    row = np.repeat(np.arange(len(terms)), sizes)
    found = np.full((len(terms), width), -1)
    code = log.maps['query'].encode([name for of_query in terms for name in of_query])
    found[row, np.arange(len(row)) - np.repeat(sizes.cumsum() - sizes, sizes)] = code
    return torch.from_numpy(found)


def _terms(query: Any, separator: str) -> list[Any]:
    r"""The terms of a query, as EventLog reads them."""
    if isinstance(query, str):
        # A text of separators alone is no search.
        query = [part for part in query.split(separator) if part.strip()] or None
    if is_nothing(query):
        return ['']
    if not isinstance(query, Iterable) or isinstance(query, (bytes, Mapping)):
        # The terms may be ids.
        query = [query]
    names: list[Any] = [part if isinstance(part, bytes) else str(part).strip() for part in query]
    return [name for name in names if name not in ('', UNKNOWN)] or [UNKNOWN]


def _domains(given: Any) -> Tensor:
    words = [str(word).lower() for word in as_values(given)]
    wrong = [word for word in words if word not in _DOMAINS]
    if wrong:
        raise ValueError(f"'domain' must be search or recommendation, but got {wrong[0]!r}.")
    return torch.tensor([_DOMAINS[word] for word in words])


def _numbers(name: str, given: Any) -> Tensor:
    try:
        # What is too large for a float32 becomes infinite.
        with np.errstate(over='ignore'):
            numbers = np.asarray(as_values(given), dtype=np.float64).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise TypeError(f"'{name}' must be a number, or one for each item: {error}.") from error
    if numbers.ndim != 1:
        raise ValueError(f"'{name}' must be a number, or one for each item, but got {given!r}.")
    is_wrong = ~np.isfinite(numbers)
    if is_wrong.any():
        wrong = as_values(given)[int(is_wrong.argmax())]
        raise ValueError(f"'{name}' must be a number that fits a float32, but got {wrong}.")
    return torch.from_numpy(numbers)


def _as_list(value: Any) -> Any:
    r"""One id as a list of one."""
    is_one = isinstance(value, (str, bytes)) or np.ndim(value) == 0
    return [value] if is_one else value
