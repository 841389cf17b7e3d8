r"""The server that ranks and records."""

import asyncio
import ipaddress
import json
import logging
import os
import signal
import ssl
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

import grpc
import numpy as np
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import start_http_server

from mag.checks import check_booleans, check_integers, check_numbers
from mag.online.answers import explain_response, rank_response, what_if_response
from mag.online.event_stream import EventStream
from mag.online.events import EVENT
from mag.online.id_register import IdRegister
from mag.online.messages import MAX_MESSAGE, decoded, read_context, read_id, read_ids
from mag.online.metrics import Metrics
from mag.online.ranker import Explained, Offers, Ranked, Ranker
from mag.online.ranking_pb2 import (
    DESCRIPTOR,
    ExplainRequest,
    RankRequest,
    RecordRequest,
    RecordResponse,
    SwapRequest,
    SwapResponse,
    WhatIfRequest,
)

_LOGGER = logging.getLogger(__name__)
# What each method asks a ranker, and how its answer is said.
_ASKED: dict[str, tuple[str, Callable[[Any, int], Any]]] = {
    'Rank': ('rank', rank_response),
    'Explain': ('explain', explain_response),
    'WhatIf': ('what_if', what_if_response),
}
_RANKING, _ADMIN = (DESCRIPTOR.services_by_name[name].full_name for name in ('Ranking', 'Admin'))
# Each waits for its next events most of the time.
_MAX_RECORDING = 64
# Events that one message appends.
_MAX_EVENTS = 65_536
# Users, items and values of a context that the page offers.
_NUM_OFFERS = 50
# Requests that a ranker answers before it serves.
_NUM_WARM = 8
# Headers, in which a status travels with three bytes for one, end at 8 KiB.
_MAX_SENTENCE = 1500
_OPTIONS = [
    ('grpc.max_receive_message_length', MAX_MESSAGE),
    # Of two servers on one port each would get some of the requests.
    ('grpc.so_reuseport', 0),
]


class _Question(NamedTuple):
    user: int | str
    items: list[int] | list[str]
    time: int
    context: dict[str, str | int | float]


class _Refused(Exception):
    def __init__(self, status: grpc.StatusCode, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Serving:
    r"""A ranker, and how many requests still ask it."""

    def __init__(self, ranker: Ranker) -> None:
        self.ranker = ranker
        self.num_pinned = 0
        self.is_retired = False


class _Health(health_pb2_grpc.HealthServicer):
    r"""Answers health checks. That of grpcio-health-checking keeps who watches until they leave,
    and a server that drains would wait for them."""

    def __init__(self, draining: 'asyncio.Future[None]') -> None:
        self._draining = draining

    async def Check(self, request: Any, context: Any) -> Any:
        if request.service not in ('', _RANKING):
            sentence = f'There is no service {request.service[:100]!r} here.'
            await context.abort(grpc.StatusCode.NOT_FOUND, sentence)
        return self._status('NOT_SERVING' if self._draining.done() else 'SERVING')

    async def Watch(self, request: Any, context: Any) -> None:
        is_known = request.service in ('', _RANKING)
        if not self._draining.done():
            await context.write(self._status('SERVING' if is_known else 'SERVICE_UNKNOWN'))
            # One who leaves does not end it for the others.
            await asyncio.shield(self._draining)
        await context.write(self._status('NOT_SERVING'))

    def _status(self, name: str) -> Any:
        return health_pb2.HealthCheckResponse(status=name)


class Server:
    r"""Serves the services of :obj:`mag/online/ranking.proto` by gRPC: ranks items, explains how,
    records events, and swaps what scores them, with no request that fails for it.

    .. code-block:: python

        server = Server(
            ranker,
            load=load,
            admin_port=50052,
            open_stream=lambda: SqliteStream('events.db'),
            nodes=lambda node_type, raw: id_maps[node_type].encode(raw),
        )
        server.run()  # until SIGTERM

    A request is scored in a thread, as many at a time as there are cores, by the ranker that served
    when it came. What comes beyond :obj:`max_in_flight` is told so at once, with the status
    :obj:`RESOURCE_EXHAUSTED`: more would only wait. What is late before it is scored is not scored.

    It answers health checks of :obj:`grpc.health.v1`. A connection that others can see is encrypted
    or refused.

    Args:
        ranker (Ranker): What scores, from several threads at once; of one that is an
            :class:`~mag.online.Explainer`, :obj:`Explain` and :obj:`WhatIf` are served, too.
            It is closed with the server, or after it was swapped.
        host (str, optional): The address that it listens at. (default: :obj:`"127.0.0.1"`)
        port (int, optional): The port, or :obj:`0` for one that is free. (default: :obj:`50051`)
        certificate (str or os.PathLike, optional): A file of PEM with the certificate of the host
            and those that it stands on. (default: :obj:`None`)
        key (str or os.PathLike, optional): The file of its private key. (default: :obj:`None`)
        client_authority (str or os.PathLike, optional): A file of PEM with certificates: only
            clients, and a Prometheus, whose own stand on them are let in. Without it whoever
            reaches the port is. (default: :obj:`None`)
        load (Callable[[str], Ranker], optional): Loads the ranker of a snapshot that
            :obj:`Admin.Swap` names. (default: :obj:`None`)
        admin_port (int, optional): The port of :obj:`Admin`, on loopback. (default: :obj:`None`)
        open_stream (Callable[[], EventStream], optional): Opens the log that :obj:`Record` appends
            to, in the thread that does so. Of producers that say positions, no other may append to
            it; others may be many, of several servers. (default: :obj:`None`)
        nodes (Callable[[str, Sequence], numpy.ndarray], optional): The nodes of raw ids of
            :obj:`"user"` or :obj:`"item"`, int64, :obj:`-1` for those it does not know.
            (default: :obj:`None`)
        open_register (Callable[[], IdRegister], optional): Opens what gives ids that
            :obj:`nodes` does not know a number, in the same thread. Without one, :obj:`Record`
            refuses them. (default: :obj:`None`)
        metrics_port (int, optional): Where Prometheus finds metrics, at the same address.
            (default: :obj:`None`)
        page_port (int, optional): Where a browser finds a page that shows rankings and what moves
            them, at the same address. (default: :obj:`None`)
        max_items (int, optional): How many items a request may have. (default: :obj:`2000`)
        max_in_flight (int, optional): How many requests are taken at once. (default: two a core)
        reflection (bool, optional): Whether it tells its services to tools that ask.
            (default: :obj:`False`)

    Raises:
        ModuleNotFoundError: If there is to be a page, and what serves it is not installed.
        OSError: If a file cannot be read.
        ValueError: If others can see the connection and it is not encrypted, files are no
            certificate and its key, or one argument lacks another.
    """

    def __init__(
        self,
        ranker: Ranker,
        *,
        host: str = '127.0.0.1',
        port: int = 50051,
        certificate: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        client_authority: str | os.PathLike[str] | None = None,
        load: Callable[[str], Ranker] | None = None,
        admin_port: int | None = None,
        open_stream: Callable[[], EventStream] | None = None,
        nodes: Callable[[str, Sequence[Any]], np.ndarray] | None = None,
        open_register: Callable[[], IdRegister] | None = None,
        metrics_port: int | None = None,
        page_port: int | None = None,
        max_items: int = 2000,
        max_in_flight: int | None = None,
        reflection: bool = False,
    ) -> None:
        _check_together(certificate=certificate, key=key)
        _check_together(load=load, admin_port=admin_port)
        _check_together(open_stream=open_stream, nodes=nodes)
        if open_register is not None and open_stream is None:
            raise ValueError("'open_register' must come with 'open_stream', which was not given.")
        num_cores = len(os.sched_getaffinity(0))
        max_in_flight = 2 * num_cores if max_in_flight is None else max_in_flight
        check_integers(1, max_items=max_items, max_in_flight=max_in_flight)
        for name, value in (
            ('port', port), ('admin_port', admin_port), ('metrics_port', metrics_port),
            ('page_port', page_port),
        ):  # fmt: skip
            if value is not None:
                check_integers(0, 2**16, **{name: value})
        check_booleans(reflection=reflection)
        if certificate is None and not _is_loopback(host):
            raise ValueError(
                f"'host' must be of this machine alone, such as '127.0.0.1', or come with "
                f"'certificate' and 'key', but got {host!r}: others could read what it answers."
            )
        self.host, self.port, self.admin_port, self.metrics_port, self.page_port = (
            host, port, admin_port, metrics_port, page_port,
        )  # fmt: skip
        self.max_items, self.max_in_flight, self.reflection = max_items, max_in_flight, reflection
        self._files = None if certificate is None or key is None else (certificate, key)
        self._client_authority = client_authority
        if self._files is None and client_authority is not None:
            raise ValueError("'client_authority' must come with 'certificate' and 'key'.")
        self._credentials = (
            None if self._files is None else _credentials(*self._files, client_authority)
        )
        self._load, self._open_stream, self._nodes = load, open_stream, nodes
        self._serving = _Serving(ranker)
        self._num_in_flight = self._num_recording = 0
        self._warm: deque[_Question] = deque(maxlen=_NUM_WARM)
        self._scorers = ThreadPoolExecutor(num_cores, 'mag-score')
        self._recorder = ThreadPoolExecutor(1, 'mag-record')
        self._loader = ThreadPoolExecutor(1, 'mag-load')
        self._stream: EventStream | None = None
        self._open_register = open_register
        self._register: IdRegister | None = None
        self._servers: list[grpc.aio.Server] = []
        self._exporter: Any = None
        self._has_begun = False
        self._page: Any = None
        if page_port is not None:
            _page_module()
        self.metrics = Metrics()

    async def start(self) -> None:
        r"""Starts to serve, in the running event loop; a port that was :obj:`0` is known after.

        Raises:
            OSError: If a port is taken.
            RuntimeError: If it was started or stopped before.
        """
        if self._has_begun:
            raise RuntimeError('The server was started or stopped before: make another one.')
        self._begin()
        try:
            if self._open_stream is not None:
                self._stream = await self._loop.run_in_executor(self._recorder, self._open_stream)
            if self._open_register is not None:
                self._register = await self._loop.run_in_executor(
                    self._recorder, self._open_register
                )
            server = self._add_server(
                _RANKING,
                {
                    **{
                        name: grpc.unary_unary_rpc_method_handler(partial(self._answer, name))
                        for name in _ASKED
                    },
                    'Record': grpc.stream_unary_rpc_method_handler(partial(self._answer, 'Record')),
                },
            )
            health_pb2_grpc.add_HealthServicer_to_server(_Health(self._draining), server)
            if self.reflection:
                self._reflect(server)
            self.port = _bound(server, self.host, self.port, self._credentials)
            if self.admin_port is not None:
                admin = self._add_server(
                    _ADMIN,
                    {'Swap': grpc.unary_unary_rpc_method_handler(partial(self._answer, 'Swap'))},
                )
                self.admin_port = _bound(admin, '127.0.0.1', self.admin_port, None)
            if self.metrics_port is not None:
                certificate, key = map(_path, self._files or (None, None))
                self._exporter, _ = start_http_server(
                    self.metrics_port,
                    self.host,
                    self.metrics.registry,
                    certfile=certificate,
                    keyfile=key,
                    client_cafile=_path(self._client_authority),
                    client_auth_required=self._client_authority is not None,
                )
                self.metrics_port = self._exporter.server_port
            if self.page_port is not None:
                module = _page_module()
                self._page = module.PageServer(
                    module.make_page(self._answer, self._state, self.host, self._files is not None),
                    self.host,
                    self.page_port,
                    *map(_path, self._files or (None, None)),
                    _path(self._client_authority),
                )
                self.page_port = self._page.port
            for started in self._servers:
                await started.start()
            if self._page is not None:
                self._page.start()
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, grace: float = 10.0) -> None:
        r"""Takes no more requests, answers those in flight, and closes what it has.

        Args:
            grace (float, optional): Seconds after which what is not answered is given up.
                (default: :obj:`10.0`)
        """
        check_numbers('[0, inf)', grace=grace)
        if not self._has_begun:
            self._begin()
        if self._draining.done():
            return
        self._draining.set_result(None)
        pages = [] if self._page is None else [self._page]
        await asyncio.gather(*(server.stop(grace) for server in [*self._servers, *pages]))
        self._servers = []
        await asyncio.to_thread(self._scorers.shutdown, cancel_futures=True)
        async with self._swapping:
            await asyncio.to_thread(self._close)

    def _begin(self) -> None:
        self._has_begun = True
        self._loop = asyncio.get_running_loop()
        self._swapping = asyncio.Lock()
        self._draining = self._loop.create_future()

    def run(self, grace: float = 10.0, started: Callable[[], None] | None = None) -> None:
        r"""Serves until the process is told to end by :obj:`SIGTERM` or :obj:`SIGINT`, and answers
        then what is in flight.

        Args:
            grace (float, optional): Seconds that this may take. (default: :obj:`10.0`)
            started (Callable[[], None], optional): Called once it serves, and the ports are known.
                (default: :obj:`None`)
        """
        check_numbers('[0, inf)', grace=grace)
        asyncio.run(self._run(grace, started))

    async def _run(self, grace: float, started: Callable[[], None] | None) -> None:
        ended = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, ended.set)
        await self.start()
        where = {'host': self.host, 'port': self.port}
        _LOGGER.info('serves', extra={**where, 'admin_port': self.admin_port})
        if started is not None:
            started()
        await ended.wait()
        _LOGGER.info('drains', extra=where)
        await self.stop(grace)
        _LOGGER.info('ended', extra=where)

    def _close(self) -> None:
        self._loader.submit(_close_ranker, self._serving.ranker)
        self._loader.shutdown()
        if self._exporter is not None:
            self._exporter.shutdown()
            self._exporter.server_close()
        # Last: a log tells here of what it could not keep.
        try:
            if (register := self._register) is not None:
                self._recorder.submit(register.close).result()
            if (stream := self._stream) is not None:
                self._recorder.submit(stream.close).result()
        finally:
            self._recorder.shutdown()

    def _add_server(self, service: str, methods: dict[str, Any]) -> grpc.aio.Server:
        server = grpc.aio.server(options=_OPTIONS)
        handler = grpc.method_handlers_generic_handler(service, methods)
        server.add_generic_rpc_handlers((handler,))
        self._servers.append(server)
        return server

    def _reflect(self, server: grpc.aio.Server) -> None:
        from grpc_reflection.v1alpha import reflection

        checks = health_pb2.DESCRIPTOR.services_by_name['Health'].full_name
        names = (_RANKING, checks, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    async def _answer(self, method: str, request: Any, context: Any) -> bytes:
        r"""Answers a request. Its bytes are read here: of those that are no message gRPC would say
        that the server has failed."""
        begun = time.perf_counter()
        answers: dict[str, Callable[[Any, Any], Awaitable[bytes]]] = {
            **{name: partial(self._ask, name) for name in _ASKED},
            'Record': self._record,
            'Swap': self._swap,
            'Offers': self._offers,
        }
        status, sentence = grpc.StatusCode.OK, ''
        try:
            return await answers[method](request, context)
        except _Refused as error:
            status, sentence = error.status, str(error)
        except ValueError as error:
            status, sentence = grpc.StatusCode.INVALID_ARGUMENT, str(error)
        except asyncio.CancelledError:
            is_late = (left := context.time_remaining()) is not None and left <= 0
            status = getattr(grpc.StatusCode, 'DEADLINE_EXCEEDED' if is_late else 'CANCELLED')
            raise
        except Exception:
            _LOGGER.exception('failed', extra={'method': method})
            status = grpc.StatusCode.INTERNAL
            sentence = 'The server failed to answer; its log says why.'
        finally:
            self.metrics.requests.labels(method, status.name).inc()
            if status == grpc.StatusCode.OK and method in _ASKED:
                self.metrics.latencies.append(time.perf_counter() - begun)
            if _LOGGER.isEnabledFor(logging.DEBUG):
                facts = {'method': method, 'status': status.name, 'peer': context.peer()}
                facts['seconds'] = round(time.perf_counter() - begun, 6)
                _LOGGER.debug('answered', extra=facts)
        short = sentence.encode()[:_MAX_SENTENCE].decode(errors='ignore')
        return await context.abort(status, short)

    async def _ask(self, method: str, request: bytes, context: Any) -> bytes:
        left = context.time_remaining()
        deadline = None if left is None else time.monotonic() + left
        if self._num_in_flight >= self.max_in_flight:
            self.metrics.shed.inc()
            raise _Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f'{self._num_in_flight} requests are in flight, as many as this server takes: ask '
                f'another one, or later.',
            )
        with self.metrics.stage('parse'):
            question, more = self._question(method, request)
        serving = self._serving
        if (ask := getattr(serving.ranker, _ASKED[method][0], None)) is None:
            raise _Refused(
                grpc.StatusCode.UNIMPLEMENTED,
                f'What scores here answers Rank, but no {method}: ask another server.',
            )
        serving.num_pinned += 1
        self._num_in_flight += 1
        self.metrics.in_flight.set(self._num_in_flight)
        job = self._scorers.submit(
            self._score, method, ask, question, more, deadline, time.perf_counter()
        )
        # When its thread has ended, which who asked may not wait for.
        job.add_done_callback(partial(self._in_loop, self._release, serving))
        response = await asyncio.wrap_future(job)
        self._warm.append(question)
        return response

    def _question(self, method: str, request: bytes) -> tuple[_Question, tuple[Any, ...]]:
        r"""What all methods ask, and what this one does more."""
        more: tuple[Any, ...] = ()
        if method == 'Rank':
            message = decoded(RankRequest, request)
        elif method == 'Explain':
            explain = decoded(ExplainRequest, request)
            check_integers(0, num_edges=explain.num_edges)
            message, more = explain.request, (explain.num_edges,)
        else:
            what_if = decoded(WhatIfRequest, request)
            message, more = what_if.request, (read_id('clicked', what_if.clicked),)
        question = _Question(
            read_id('user', message.user),
            read_ids('items', message.items, self.max_items),
            message.time if message.HasField('time') else int(time.time()),
            read_context(message.context),
        )
        return question, more

    def _score(
        self,
        method: str,
        ask: Callable[..., Any],
        question: _Question,
        more: tuple[Any, ...],
        deadline: float | None,
        submitted: float,
    ) -> bytes:
        self.metrics.took('wait', time.perf_counter() - submitted)
        if deadline is not None and time.monotonic() >= deadline:
            raise _Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, 'The deadline passed before it was scored.'
            )
        # What may be switched off is so for each thread.
        with self.metrics.stage('score'), torch.inference_mode():
            answer = ask(*question, *more)
        with self.metrics.stage('serialise'):
            _, respond = _ASKED[method]
            response = respond(answer, len(question.items)).SerializeToString()
        self.metrics.answered(_ranked(answer))
        return response

    async def _offers(self, request: bytes, context: Any) -> bytes:
        r"""What the page offers, as JSON."""
        if (offer := getattr(self._serving.ranker, 'offers', None)) is None:
            return json.dumps(asdict(Offers((), (), {}))).encode()
        offers = await self._loop.run_in_executor(self._scorers, offer, _NUM_OFFERS)
        return json.dumps(asdict(offers)).encode()

    def _state(self) -> dict[str, Any]:
        r"""What the page tells of the last answer and of the last requests."""
        answer, latencies = self.metrics.last, self.metrics.latencies
        p50, p99 = np.quantile(latencies, (0.5, 0.99)).tolist() if latencies else (None, None)
        facts = {
            name: getattr(answer, name, None)
            for name in ('snapshot', 'position', 'lag', 'lag_seconds')
        }
        return facts | {
            'degraded': [] if answer is None else list(answer.degraded),
            'p50': p50,
            'p99': p99,
            'in_flight': self._num_in_flight,
            'max_in_flight': self.max_in_flight,
            'records': self._stream is not None,
        }

    def _in_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        # A loop that has ended has nobody who waits.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    def _release(self, serving: _Serving, job: 'Future[bytes]') -> None:
        self._num_in_flight -= 1
        self.metrics.in_flight.set(self._num_in_flight)
        serving.num_pinned -= 1
        self._close_unused(serving)

    def _close_unused(self, serving: _Serving) -> None:
        if serving.is_retired and serving.num_pinned == 0:
            self._loader.submit(_close_ranker, serving.ranker)

    async def _swap(self, request: bytes, context: Any) -> bytes:
        name = decoded(SwapRequest, request).snapshot
        if not name:
            raise ValueError("'snapshot' must be the name of one, but got ''.")
        # What is begun is done, whether or not who asked waits for it.
        await asyncio.shield(asyncio.ensure_future(self._swap_to(name)))
        return SwapResponse().SerializeToString()

    async def _swap_to(self, name: str) -> None:
        async with self._swapping:
            if self._draining.done():
                raise _Refused(grpc.StatusCode.UNAVAILABLE, 'The server ends.')
            try:
                ranker = await self._loop.run_in_executor(
                    self._loader, self._loaded, name, tuple(self._warm)
                )
            except Exception as error:
                _LOGGER.exception('failed to swap', extra={'snapshot': name})
                raise _Refused(
                    grpc.StatusCode.FAILED_PRECONDITION,
                    f'{name!r} does not serve, and what served goes on: {error}',
                ) from error
            retired, self._serving = self._serving, _Serving(ranker)
            retired.is_retired = True
            self._close_unused(retired)
            _LOGGER.info('swapped', extra={'snapshot': name})

    def _loaded(self, name: str, warm: tuple[_Question, ...]) -> Ranker:
        r"""A ranker that has answered what was asked last."""
        ranker = self._load(name)  # type: ignore[misc]
        try:
            with torch.inference_mode():
                for question in warm:
                    ranker.rank(*question)
        except BaseException:
            ranker.close()
            raise
        return ranker

    async def _record(self, requests: Any, context: Any) -> bytes:
        if (stream := self._stream) is None:
            raise _Refused(grpc.StatusCode.UNIMPLEMENTED, 'This server records no events.')
        if self._num_recording >= _MAX_RECORDING:
            self.metrics.shed.inc()
            raise _Refused(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f'{self._num_recording} streams of events are open, as many as this server takes: '
                f'try later.',
            )
        self._num_recording += 1
        try:
            end, position = None, None
            while (request := await self._next(context)) is not grpc.aio.EOF:
                end, position = await self._loop.run_in_executor(
                    self._recorder, self._append, stream, request, position
                )
            if end is None:
                end = await self._loop.run_in_executor(self._recorder, self._end_of, stream)
        finally:
            self._num_recording -= 1
        return RecordResponse(end=end).SerializeToString()

    async def _next(self, context: Any) -> Any:
        r"""The next message of a stream, unless the server drains."""
        reading = asyncio.ensure_future(context.read())
        await asyncio.wait((reading, self._draining), return_when=asyncio.FIRST_COMPLETED)
        if reading.done():
            return reading.result()
        reading.cancel()
        raise _Refused(grpc.StatusCode.UNAVAILABLE, 'The server ends: go on with another one.')

    def _append(
        self, stream: EventStream, request: bytes, position: int | None
    ) -> tuple[int, int | None]:
        r"""Appends the events of a message, and returns the end of the log and, where the producer
        says positions, that of its next event."""
        message = decoded(RecordRequest, request)
        if message.HasField('position'):
            position = message.position
        try:
            # First: an id without events is nobody's loss, an event without ids is.
            events = self._events(message)
            before = 0 if position is None else stream.end
            if position is not None and position > before:
                self.metrics.gaps.inc()
            end = stream.append(events, position)
        except ValueError:
            raise
        except Exception as error:
            _LOGGER.exception('failed to append', extra={'num_events': len(message.times)})
            raise _Refused(
                grpc.StatusCode.UNAVAILABLE,
                f'The log takes no events now, and some of these may be there: go on from its end. '
                f'{error}',
            ) from error
        num_there = 0 if position is None else min(max(before - position, 0), len(events))
        self.metrics.duplicates.inc(num_there)
        self.metrics.recorded.inc(len(events) - num_there)
        return end, None if position is None else position + len(events)

    def _end_of(self, stream: EventStream) -> int:
        try:
            return stream.end
        except Exception as error:
            _LOGGER.exception('failed to read the end of the log')
            raise _Refused(
                grpc.StatusCode.UNAVAILABLE, f'The log does not tell its end now. {error}'
            ) from error

    def _events(self, message: RecordRequest) -> np.ndarray:
        raw = {
            'user': read_ids('users', message.users, _MAX_EVENTS),
            'item': read_ids('items', message.items, _MAX_EVENTS),
        }
        lengths = [*map(len, raw.values()), len(message.times), len(message.clicked)]
        if len(set(lengths)) != 1:
            raise ValueError(
                "'users', 'items', 'times' and 'clicked' must have one value for each event, but "
                f'have {lengths[0]}, {lengths[1]}, {lengths[2]} and {lengths[3]}.'
            )
        events = np.empty(lengths[0], EVENT)
        events['time'] = message.times
        events['clicked'] = message.clicked
        unknown = {}
        for node_type, ids in raw.items():
            try:
                nodes = self._nodes(node_type, ids)  # type: ignore[misc]
            except TypeError as error:
                raise ValueError(f"'{node_type}s' cannot be looked up: {error}") from error
            is_unknown = nodes < 0
            if is_unknown.any():
                self.metrics.unknown_ids.inc(int(is_unknown.sum()))
                row = int(is_unknown.argmax())
                if self._register is None:
                    raise ValueError(
                        f"'{node_type}s' must be known, but {int(is_unknown.sum())} of {len(ids)} "
                        f'are not, such as {ids[row]!r} in row {row}.'
                    )
                unknown[node_type] = is_unknown
            events[node_type] = nodes
        if unknown and self._register is not None:
            given = self._register.add(
                {node: np.array(raw[node], object)[rows].tolist() for node, rows in unknown.items()}
            )
            for node_type, rows in unknown.items():
                events[node_type][rows] = given.numbers[node_type]
            self.metrics.new_ids.inc(given.num_new)
        return events


def _page_module() -> Any:
    try:
        return import_module('mag.online.page')
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'Server(page_port=...) needs {error.name}, which is not installed: pip install '
            f"'pyg-mag[page]'."
        ) from error


def _ranked(answer: Any) -> Ranked:
    r"""The scores of an answer, as things are."""
    if isinstance(answer, tuple):
        return answer[0]
    return answer.ranked if isinstance(answer, Explained) else answer


def _close_ranker(ranker: Ranker) -> None:
    try:
        ranker.close()
    except Exception:
        _LOGGER.exception('failed to close a ranker')


def _check_together(**values: Any) -> None:
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == 1:
        (given,) = set(values) - set(missing)
        raise ValueError(f"'{given}' must come with '{missing[0]}', which was not given.")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'


def _path(path: str | os.PathLike[str] | None) -> str | None:
    return None if path is None else os.fspath(path)


def _credentials(
    certificate: str | os.PathLike[str],
    key: str | os.PathLike[str],
    client_authority: str | os.PathLike[str] | None,
) -> grpc.ServerCredentials:
    # gRPC takes any files, and fails when somebody connects.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        raise ValueError(
            f"'certificate' and 'key' must be files of PEM that belong together, but "
            f'{os.fspath(certificate)!r} and {os.fspath(key)!r} are not: {error}.'
        ) from error
    authority = None
    if client_authority is not None:
        try:
            context.load_verify_locations(client_authority)
        except ssl.SSLError as error:
            raise ValueError(
                f"'client_authority' must be a file of PEM with certificates, but "
                f'{os.fspath(client_authority)!r} is not: {error}.'
            ) from error
        with open(client_authority, 'rb') as file:
            authority = file.read()
    with open(key, 'rb') as key_file, open(certificate, 'rb') as certificate_file:
        pair = (key_file.read(), certificate_file.read())
    return grpc.ssl_server_credentials([pair], authority, authority is not None)


def _bound(
    server: grpc.aio.Server, host: str, port: int, credentials: grpc.ServerCredentials | None
) -> int:
    where = f'[{host}]:{port}' if ':' in host else f'{host}:{port}'
    try:
        if credentials is None:
            return server.add_insecure_port(where)
        return server.add_secure_port(where, credentials)
    except RuntimeError as error:
        raise OSError(f'The server cannot listen at {where}: {error}') from error
