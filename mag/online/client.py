r"""What asks a server, in a thread that waits or in an event loop."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import grpc
import numpy as np

from mag.checks import check_integers, check_numbers
from mag.online.closing import Closing
from mag.online.messages import MAX_MESSAGE, context_messages, id_message, ids_message
from mag.online.ranker import MacroEdges
from mag.online.ranking_pb2 import (
    DESCRIPTOR,
    ExplainRequest,
    ExplainResponse,
    RankRequest,
    RankResponse,
    RecordRequest,
    RecordResponse,
    SwapRequest,
    SwapResponse,
    WhatIfRequest,
    WhatIfResponse,
)

_S = TypeVar('_S', bound='AsyncClient')
_RESPONSES: dict[str, Any] = {
    'Rank': RankResponse,
    'Explain': ExplainResponse,
    'WhatIf': WhatIfResponse,
    'Record': RecordResponse,
    'Swap': SwapResponse,
}
_INTEGERS = range(-(2**63), 2**63)
# Events in a message.
_NUM_TOGETHER = 8192
_OPTIONS = [
    ('grpc.max_receive_message_length', MAX_MESSAGE),
    # Who appends events knows whether they can be sent again; gRPC does not.
    ('grpc.enable_retries', 0),
    # A server that was started again is found after a second, not after two minutes.
    ('grpc.initial_reconnect_backoff_ms', 100),
    ('grpc.max_reconnect_backoff_ms', 1000),
    # Proxies of the environment are those of browsers.
    ('grpc.enable_http_proxy', 0),
]


class Overloaded(ConnectionError):
    r"""A server that takes no more requests at once: another may, or this one later."""


@dataclass(frozen=True)
class Ranking:
    r"""What a server answered.

    Args:
        items (Sequence): The items, as they were asked.
        probability (numpy.ndarray): How likely each is clicked, float32 of shape :obj:`[N]`.
        position (int): The position in the log that this is as of.
        snapshot (str): The name of the snapshot that answered.
        degraded (tuple[str, ...]): Why it is not as fresh or as good as it could be.
    """

    items: Sequence[Any]
    probability: np.ndarray
    position: int
    snapshot: str
    degraded: tuple[str, ...]

    @property
    def order(self) -> np.ndarray:
        r"""The places of the items, int64 of shape :obj:`[N]`, from the likeliest on; equally
        likely ones as they were asked."""
        return np.argsort(-self.probability, kind='stable')


@dataclass(frozen=True)
class Explanation:
    r"""What a server answered, and what moves it.

    Args:
        ranking (Ranking): The probabilities of the items.
        blocks (tuple[str, ...]): The names of the parts of what the model reads.
        without (numpy.ndarray): How likely each item would be clicked without each block, float32
            of shape :obj:`[N, len(blocks)]`.
        user (MacroEdges): The clusters in which the user has the most clicked items.
        items (tuple[MacroEdges, ...]): Those in which each item has the most users.
    """

    ranking: Ranking
    blocks: tuple[str, ...]
    without: np.ndarray
    user: MacroEdges
    items: tuple[MacroEdges, ...]

    @property
    def moved(self) -> np.ndarray:
        r"""How much each block adds to each probability, float32 of shape
        :obj:`[N, len(blocks)]`."""
        return self.ranking.probability[:, None] - self.without


class _Call(NamedTuple):
    r"""What both clients ask, and what they make of the answer."""

    method: str
    request: Any
    read: Callable[[Any], Any]


class Client(Closing):
    r"""Asks a server, and waits for its answer. It may be used by several threads.

    .. code-block:: python

        with Client('127.0.0.1:50051') as client:
            ranking = client.rank('user 7', ['tea', 'rice'], context={'device': 'phone'})

    Args:
        address (str): Host and port of the server.
        authority (str or os.PathLike, optional): A file of PEM with the certificates that the
            server's stands on, or its own. Without one the connection is not encrypted.
            (default: :obj:`None`)
        certificate (str or os.PathLike, optional): A file of PEM with the client's own certificate,
            where the server asks for it. (default: :obj:`None`)
        key (str or os.PathLike, optional): The file of its private key. (default: :obj:`None`)
    """

    def __init__(
        self,
        address: str,
        authority: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        self.address = address
        if (credentials := _credentials(authority, certificate, key)) is None:
            self._channel = grpc.insecure_channel(address, _OPTIONS)
        else:
            self._channel = grpc.secure_channel(address, credentials, _OPTIONS)
        self._methods = {name: _method(self._channel, name) for name in _RESPONSES}

    def rank(
        self,
        user: Any,
        items: Sequence[Any],
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float = 1.0,
    ) -> Ranking:
        r"""How likely a user clicks each of some items.

        Args:
            user (int or str): The raw id of the user.
            items (Sequence): Those of the items, at least one.
            time (int, optional): When they are shown, in seconds. (default: now)
            context (Mapping[str, Any], optional): What else is known, texts and numbers by name.
                (default: :obj:`None`)
            timeout (float, optional): Seconds that the answer may take. (default: :obj:`1.0`)

        Raises:
            ConnectionError: If the server cannot be reached, or ends.
            Overloaded: If it takes no more requests at once, which is a :class:`ConnectionError`.
            RuntimeError: If it failed.
            TimeoutError: If there was no answer in time.
            TypeError: If ids are neither integers nor texts, or a context neither text nor number.
            ValueError: If the server refuses the request.
        """
        return self._ask(_rank(user, items, time, context), timeout)

    def explain(
        self,
        user: Any,
        items: Sequence[Any],
        num_edges: int = 10,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float = 10.0,
    ) -> Explanation:
        r"""How likely a user clicks each of some items, and what moves it.

        Args and errors are those of :meth:`rank`.

        Args:
            num_edges (int, optional): How many macro edges of each node are told at most.
                (default: :obj:`10`)

        Raises:
            NotImplementedError: If what scores there cannot tell.
            ValueError: If the answer would be longer than a message may be.
        """
        return self._ask(_explain(user, items, num_edges, time, context), timeout)

    def what_if(
        self,
        user: Any,
        items: Sequence[Any],
        clicked: Any,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float = 1.0,
    ) -> tuple[Ranking, Ranking]:
        r"""How likely a user clicks each of some items as things are, and as they were after one
        more click, which is recorded nowhere.

        Args and errors are those of :meth:`rank`.

        Args:
            clicked (int or str): The raw id of the item that is clicked, one of :obj:`items` or
                another.

        Raises:
            NotImplementedError: If what scores there cannot tell.
        """
        return self._ask(_what_if(user, items, clicked, time, context), timeout)

    def record(
        self,
        users: Sequence[Any],
        items: Sequence[Any],
        times: Sequence[int],
        clicked: Sequence[bool],
        position: int | None = None,
        timeout: float = 10.0,
    ) -> int:
        r"""Appends events to the log, in their order, and returns the position of the next one.

        After an error nobody knows how many of them are there. Where they have positions, all can
        be sent again, and none is there twice; without any events, it returns the end of the log.

        Args:
            users (Sequence): The raw id of the user of each event.
            items (Sequence): That of the item.
            times (Sequence[int]): When it was shown, in seconds.
            clicked (Sequence[bool]): Whether it was clicked.
            position (int, optional): The position of the first of them, at most the end of the log.
                (default: the end)
            timeout (float, optional): Seconds that all may take. (default: :obj:`10.0`)

        Raises:
            ConnectionError: As :meth:`rank` does; so it does :obj:`Overloaded`,
                :class:`RuntimeError` and :class:`TimeoutError`.
            ValueError: If lengths differ, an id is not known, events before :obj:`position` are
                missing, or others are there.
        """
        return self._ask(_record(users, items, times, clicked, position), timeout)

    def _ask(self, call: _Call, timeout: float) -> Any:
        check_numbers('(0, inf)', timeout=timeout)
        try:
            return call.read(self._methods[call.method](call.request, timeout=timeout))
        except grpc.RpcError as error:
            raise _translated(error, self.address, timeout) from error

    def close(self) -> None:
        r"""Closes the connection."""
        self._channel.close()

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.address!r})'


class AsyncClient:
    r"""Asks a server as :class:`Client` does, in the event loop in which it was made.

    .. code-block:: python

        async with AsyncClient('127.0.0.1:50051') as client:
            rankings = await asyncio.gather(*(client.rank(user, items) for user in users))

    Args:
        address (str): As in :class:`Client`.
        authority (str or os.PathLike, optional): As in :class:`Client`. (default: :obj:`None`)
        certificate (str or os.PathLike, optional): As in :class:`Client`. (default: :obj:`None`)
        key (str or os.PathLike, optional): As in :class:`Client`. (default: :obj:`None`)
    """

    def __init__(
        self,
        address: str,
        authority: str | os.PathLike[str] | None = None,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
    ) -> None:
        self.address = address
        if (credentials := _credentials(authority, certificate, key)) is None:
            self._channel = grpc.aio.insecure_channel(address, _OPTIONS)
        else:
            self._channel = grpc.aio.secure_channel(address, credentials, _OPTIONS)
        self._methods = {name: _method(self._channel, name) for name in _RESPONSES}

    async def rank(
        self,
        user: Any,
        items: Sequence[Any],
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float = 1.0,
    ) -> Ranking:
        r"""As :meth:`Client.rank`."""
        return await self._ask(_rank(user, items, time, context), timeout)

    async def explain(
        self,
        user: Any,
        items: Sequence[Any],
        num_edges: int = 10,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float = 10.0,
    ) -> Explanation:
        r"""As :meth:`Client.explain`."""
        return await self._ask(_explain(user, items, num_edges, time, context), timeout)

    async def what_if(
        self,
        user: Any,
        items: Sequence[Any],
        clicked: Any,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        timeout: float = 1.0,
    ) -> tuple[Ranking, Ranking]:
        r"""As :meth:`Client.what_if`."""
        return await self._ask(_what_if(user, items, clicked, time, context), timeout)

    async def record(
        self,
        users: Sequence[Any],
        items: Sequence[Any],
        times: Sequence[int],
        clicked: Sequence[bool],
        position: int | None = None,
        timeout: float = 10.0,
    ) -> int:
        r"""As :meth:`Client.record`."""
        return await self._ask(_record(users, items, times, clicked, position), timeout)

    async def _ask(self, call: _Call, timeout: float) -> Any:
        check_numbers('(0, inf)', timeout=timeout)
        try:
            return call.read(await self._methods[call.method](call.request, timeout=timeout))
        except grpc.RpcError as error:
            raise _translated(error, self.address, timeout) from error

    async def close(self) -> None:
        r"""Closes the connection."""
        await self._channel.close()

    async def __aenter__(self: _S) -> _S:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.address!r})'


def swap(address: str, snapshot: str, timeout: float = 600.0) -> None:
    r"""Has a server load a snapshot and answer with it from then on.

    Args:
        address (str): Host and port of its :obj:`Admin`.
        snapshot (str): The name of the snapshot.
        timeout (float, optional): Seconds that this may take; the server goes on afterwards.
            (default: :obj:`600.0`)

    Raises:
        ConnectionError: If the server cannot be reached, or ends.
        RuntimeError: If the snapshot cannot serve, and the one before goes on.
        TimeoutError: If there was no answer in time.
        ValueError: If the name is none.
    """
    check_numbers('(0, inf)', timeout=timeout)
    with grpc.insecure_channel(address, _OPTIONS) as channel:
        try:
            _method(channel, 'Swap')(SwapRequest(snapshot=snapshot), timeout=timeout)
        except grpc.RpcError as error:
            raise _translated(error, address, timeout) from error


def _method(channel: Any, name: str) -> Any:
    r"""What calls a method of :obj:`ranking.proto` by a channel of either kind."""
    for service in DESCRIPTOR.services_by_name.values():
        if name in service.methods_by_name:
            path = f'/{service.full_name}/{name}'
    make = channel.stream_unary if name == 'Record' else channel.unary_unary
    return make(path, lambda message: message.SerializeToString(), _RESPONSES[name].FromString)


def _credentials(*files: str | os.PathLike[str] | None) -> grpc.ChannelCredentials | None:
    r"""Those of an authority, a certificate and its key; without an authority there are none."""
    authority, certificate, key = map(_read, files)
    if (certificate is None) != (key is None) or (authority is None and key is not None):
        raise ValueError(
            "'certificate' must come with 'key', and both with 'authority', but got "
            f'{", ".join(repr(file) for file in files)} for authority, certificate and key.'
        )
    if authority is None:
        return None
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _read(path: str | os.PathLike[str] | None) -> bytes | None:
    if path is None:
        return None
    with open(path, 'rb') as file:
        return file.read()


def _rank_request(
    user: Any, items: Sequence[Any], time: int | None, context: Mapping[str, Any] | None
) -> RankRequest:
    if time is not None:
        check_integers(_INTEGERS.start, _INTEGERS.stop, time=time)
    return RankRequest(
        user=id_message('user', user),
        items=ids_message('items', items),
        time=time,
        context=context_messages(context),
    )


def _rank(
    user: Any, items: Sequence[Any], time: int | None, context: Mapping[str, Any] | None
) -> _Call:
    request = _rank_request(user, items, time, context)
    return _Call('Rank', request, lambda response: _ranking(items, response))


def _explain(
    user: Any,
    items: Sequence[Any],
    num_edges: int,
    time: int | None,
    context: Mapping[str, Any] | None,
) -> _Call:
    check_integers(0, 2**31, num_edges=num_edges)
    request = ExplainRequest(request=_rank_request(user, items, time, context), num_edges=num_edges)

    def read(response: ExplainResponse) -> Explanation:
        blocks = tuple(response.blocks)
        shape = len(response.ranking.probabilities), len(blocks)
        without = np.array(response.without, np.float32).reshape(shape)
        of_items = tuple(map(_edges, response.items))
        ranking = _ranking(items, response.ranking)
        return Explanation(ranking, blocks, without, _edges(response.user), of_items)

    return _Call('Explain', request, read)


def _what_if(
    user: Any,
    items: Sequence[Any],
    clicked: Any,
    time: int | None,
    context: Mapping[str, Any] | None,
) -> _Call:
    request = WhatIfRequest(
        request=_rank_request(user, items, time, context), clicked=id_message('clicked', clicked)
    )

    def read(response: WhatIfResponse) -> tuple[Ranking, Ranking]:
        return _ranking(items, response.before), _ranking(items, response.after)

    return _Call('WhatIf', request, read)


def _record(
    users: Sequence[Any],
    items: Sequence[Any],
    times: Sequence[int],
    clicked: Sequence[bool],
    position: int | None,
) -> _Call:
    requests = _record_requests(users, items, times, clicked, position)
    return _Call('Record', iter(requests), lambda response: response.end)


def _edges(message: Any) -> MacroEdges:
    columns = message.clusters, message.stock, message.live
    return MacroEdges(*(np.array(column, np.int64) for column in columns))


def _ranking(items: Sequence[Any], response: RankResponse) -> Ranking:
    probability = np.array(response.probabilities, np.float32)
    return Ranking(
        items, probability, response.position, response.snapshot, tuple(response.degraded)
    )


def _record_requests(
    users: Sequence[Any],
    items: Sequence[Any],
    times: Sequence[int],
    clicked: Sequence[bool],
    position: int | None,
) -> list[RecordRequest]:
    if position is not None:
        check_integers(0, 2**62, position=position)
    columns = {'users': users, 'items': items, 'times': times, 'clicked': clicked}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f'Events must be of one length, but got {lengths}.')
    time = np.asarray(times)
    is_clicked = np.asarray(clicked)
    if time.size > 0 and time.dtype.kind not in 'iu':
        raise TypeError(f"'times' must be integers, but got {time.dtype}.")
    if not np.isin(is_clicked, (0, 1)).all():
        raise ValueError("'clicked' must be 0 or 1, or booleans, but has others.")
    return list(_messages(users, items, time.tolist(), (is_clicked == 1).tolist(), position))


def _messages(
    users: Sequence[Any],
    items: Sequence[Any],
    times: list[int],
    clicked: list[bool],
    position: int | None,
) -> Iterator[RecordRequest]:
    for row in range(0, len(times), _NUM_TOGETHER):
        part = slice(row, row + _NUM_TOGETHER)
        yield RecordRequest(
            position=position if row == 0 else None,
            users=ids_message('users', users[part]),
            items=ids_message('items', items[part]),
            times=times[part],
            clicked=clicked[part],
        )


def _translated(error: Any, address: str, timeout: float) -> Exception:
    r"""The exception that a status is in Python."""
    status, sentence = error.code(), error.details()
    codes = grpc.StatusCode
    if status == codes.DEADLINE_EXCEEDED:
        return TimeoutError(f'The server at {address} gave no answer within {timeout} seconds.')
    if status == codes.RESOURCE_EXHAUSTED:
        # What gRPC itself says of a message, which no other server would take.
        if 'message larger than max' in sentence:
            return ValueError(f'The server at {address} takes messages of up to 4 MiB: {sentence}.')
        return Overloaded(f'The server at {address} is at its limit: {sentence}')
    if status in (codes.UNAVAILABLE, codes.CANCELLED):
        return ConnectionError(f'The server at {address} cannot be reached, or ends: {sentence}')
    if status == codes.INVALID_ARGUMENT:
        return ValueError(sentence)
    if status == codes.UNIMPLEMENTED:
        return NotImplementedError(f'The server at {address} does not do that: {sentence}')
    return RuntimeError(f'The server at {address} failed with {status.name}: {sentence}')
