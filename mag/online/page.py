r"""The page to look at a server, and what it asks."""

import asyncio
import contextlib
import json
import secrets
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import grpc
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from mag.checks import check_booleans, check_integers
from mag.online.messages import MAX_MESSAGE, context_messages, id_message, ids_message
from mag.online.ranking_pb2 import (
    ExplainRequest,
    ExplainResponse,
    RankRequest,
    RankResponse,
    RecordRequest,
    RecordResponse,
    WhatIfRequest,
    WhatIfResponse,
)

_HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
# Seconds after which a page has asked again.
_PATIENCE = 5.0
_NUM_EDGES = 24
_INTEGERS = -(2**63), 2**63
# Nothing but the page itself, which no other page may show.
_POLICY = (
    "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    'Cache-Control': 'no-store',
    'Referrer-Policy': 'no-referrer',
    'X-Content-Type-Options': 'nosniff',
}
_LOOPBACK = ('localhost', '127.0.0.1', '::1')


class _Call:
    r"""A request of the page, as the methods of a server see one of gRPC."""

    def __init__(self, request: Request, message: bytes) -> None:
        self._client = request.client
        self._end = time.monotonic() + _PATIENCE
        self._messages = iter((message,))

    def time_remaining(self) -> float:
        return self._end - time.monotonic()

    def peer(self) -> str:
        return 'page' if self._client is None else f'{self._client.host}:{self._client.port}'

    async def read(self) -> Any:
        return next(self._messages, grpc.aio.EOF)

    async def abort(self, status: grpc.StatusCode, sentence: str) -> bytes:
        raise HTTPException(_HTTP.get(status, 500), sentence)


def make_page(
    answer: Callable[[str, bytes, Any], Awaitable[bytes]],
    state: Callable[[], Mapping[str, Any]],
    host: str,
    is_encrypted: bool,
) -> FastAPI:
    r"""The page and what it asks, as an application of ASGI. A request becomes the message that a
    client of gRPC sends, so that it is checked, limited, counted and answered as one.

    Args:
        answer (Callable[[str, bytes, Any], Awaitable[bytes]]): Answers the message of a method, or
            calls :meth:`abort` of what is given as the context.
        state (Callable[[], Mapping[str, Any]]): What is told above the page.
        host (str): Where the server listens.
        is_encrypted (bool): Whether it does so by TLS.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    text = (files('mag.online') / 'page.html').read_text(encoding='utf-8')

    @app.get('/')
    async def show() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = {'Content-Security-Policy': _POLICY.format(nonce)}
        return HTMLResponse(text.replace('NONCE', nonce), headers=policy)

    @app.get('/api/state')
    async def tell_state() -> JSONResponse:
        return JSONResponse(state())

    @app.get('/api/offers')
    async def tell_offers(request: Request) -> Response:
        packed = await answer('Offers', b'', _Call(request, b''))
        return Response(packed, media_type='application/json')

    @app.post('/api/explain')
    async def explain(request: Request) -> JSONResponse:
        body = await _body(request)
        with _refusing():
            number = body.get('num_edges', _NUM_EDGES)
            check_integers(0, 2**31, num_edges=number)
            message = ExplainRequest(request=_rank_request(body), num_edges=number)
        call = _Call(request, b'')
        packed = await answer('Explain', message.SerializeToString(), call)
        response = ExplainResponse.FromString(packed)
        num_blocks = len(response.blocks)
        return JSONResponse(
            {
                **_ranking(response.ranking),
                'blocks': list(response.blocks),
                'without': [
                    list(response.without[place * num_blocks : (place + 1) * num_blocks])
                    for place in range(len(response.ranking.probabilities))
                ],
                'user': _edges(response.user),
                'items': [*map(_edges, response.items)],
            }
        )

    @app.post('/api/what_if')
    async def what_if(request: Request) -> JSONResponse:
        body = await _body(request)
        with _refusing():
            message = WhatIfRequest(request=_rank_request(body))
            if 'clicked' in body:
                message.clicked.CopyFrom(id_message('clicked', body['clicked']))
        packed = await answer('WhatIf', message.SerializeToString(), _Call(request, b''))
        response = WhatIfResponse.FromString(packed)
        return JSONResponse(
            {'before': _ranking(response.before), 'after': _ranking(response.after)}
        )

    @app.post('/api/record')
    async def record(request: Request) -> JSONResponse:
        body = await _body(request)
        with _refusing():
            ids = {
                f'{name}s': ids_message(f'{name}s', [body[name]])
                for name in ('user', 'item')
                if name in body
            }
            when, clicked = body.get('time', int(time.time())), body.get('clicked', True)
            check_integers(*_INTEGERS, time=when)
            check_booleans(clicked=clicked)
            message = RecordRequest(**ids, times=[when], clicked=[clicked])
        packed = await answer('Record', b'', _Call(request, message.SerializeToString()))
        return JSONResponse({'end': RecordResponse.FromString(packed).end})

    @app.middleware('http')
    async def guard(
        request: Request, respond: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        refused = _refused(request, None if is_encrypted else {*_LOOPBACK, host})
        response: Response = (
            JSONResponse({'detail': refused[1]}, refused[0])
            if refused
            else (await respond(request))
        )
        response.headers.update(_HEADERS)
        return response

    return app


def _refused(request: Request, hosts: set[str] | None) -> tuple[int, str] | None:
    r"""Why a request is not answered that another page in the same browser may have sent."""
    host = request.headers.get('host', '')
    # Its name may be one that points to this machine since a moment ago. With TLS the certificate
    # tells; what Starlette has for this takes [::1] for another name.
    if hosts is not None and _name(host) not in hosts:
        return 400, f"'Host' must be that of this server, but got {host[:200]!r}."
    if request.method != 'POST':
        return None
    origin = request.headers.get('origin')
    if origin not in (None, f'{request.url.scheme}://{host}'):
        return 403, f"'Origin' must be that of this server, but got {str(origin)[:200]!r}."
    # Of this type a browser sends nothing to others before it has asked them.
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if kind != 'application/json':
        return 415, f"'Content-Type' must be 'application/json', but got {kind[:200]!r}."
    return None


def _name(host: str) -> str | None:
    try:
        return urlsplit(f'//{host}').hostname
    except ValueError:
        return None


class PageServer(uvicorn.Server):
    r"""Serves an application in the event loop that runs.

    Args:
        app (FastAPI): The application.
        host (str): The address that it listens at.
        port (int): The port, or :obj:`0` for one that is free.
        certificate (str, optional): A file of PEM. (default: :obj:`None`)
        key (str, optional): The file of its private key. (default: :obj:`None`)
        client_authority (str, optional): A file of PEM that certificates of clients must stand on.
            (default: :obj:`None`)

    Attributes:
        port (int): The port.

    Raises:
        OSError: If the port is taken.
    """

    def __init__(
        self,
        app: FastAPI,
        host: str,
        port: int,
        certificate: str | None = None,
        key: str | None = None,
        client_authority: str | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            lifespan='off',
            log_config=None,
            access_log=False,
            server_header=False,
            # Nobody stands between who asks and what answers.
            proxy_headers=False,
            ws='none',
            ssl_certfile=certificate,
            ssl_keyfile=key,
            ssl_ca_certs=client_authority,
            ssl_cert_reqs=ssl.CERT_NONE if client_authority is None else ssl.CERT_REQUIRED,
        )
        super().__init__(config)
        # Not in a task, whose failure nobody would hear of.
        config.load()
        family = socket.AF_INET6 if ':' in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family)
        self.port: int = self._socket.getsockname()[1]
        self._serving: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # They are for the server that it is a part of.
        yield

    def start(self) -> None:
        r"""Starts to serve."""
        self._serving = asyncio.create_task(self.serve([self._socket]))

    async def stop(self, grace: float) -> None:
        r"""Takes no more requests and answers those in flight, for so many seconds at most."""
        if self._serving is None:
            self._socket.close()
            return
        self.config.timeout_graceful_shutdown = grace  # type: ignore[assignment]
        self.should_exit = True
        await self._serving


def _rank_request(body: Mapping[str, Any]) -> RankRequest:
    context = body.get('context', {})
    if not isinstance(context, dict):
        raise TypeError(f"'context' must be an object of JSON, but got {context!r}.")
    message = RankRequest(context=context_messages(context))
    if 'user' in body:
        message.user.CopyFrom(id_message('user', body['user']))
    if 'items' in body:
        message.items.CopyFrom(ids_message('items', body['items']))
    if 'time' in body:
        check_integers(*_INTEGERS, time=body['time'])
        message.time = body['time']
    return message


def _ranking(message: RankResponse) -> dict[str, Any]:
    return {
        'probabilities': list(message.probabilities),
        'position': message.position,
        'snapshot': message.snapshot,
        'degraded': list(message.degraded),
    }


def _edges(message: Any) -> dict[str, Sequence[int]]:
    return {name: list(getattr(message, name)) for name in ('clusters', 'stock', 'live')}


async def _body(request: Request) -> dict[str, Any]:
    r"""The object of JSON that a request holds."""
    packed = bytearray()
    async for chunk in request.stream():
        packed += chunk
        if len(packed) > MAX_MESSAGE:
            raise HTTPException(413, f'A request has {MAX_MESSAGE} bytes at most.')
    try:
        body = json.loads(packed)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, f'A request must be JSON, but is not: {error}.') from error
    if not isinstance(body, dict):
        raise HTTPException(
            400, f'A request must be an object of JSON, but got {type(body).__name__}.'
        )
    return body


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise HTTPException(400, str(error)) from error
