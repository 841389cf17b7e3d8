import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mag.online import RedisStream, connect

redis = pytest.importorskip('redis', reason='redis-py is not installed: make test installs it')
Events = Callable[[int, int], np.ndarray]


def test_it_returns_bytes(client: Any) -> None:
    client.set('a', b'\xff\x00')
    assert client.get('a') == b'\xff\x00'


class Deserter:
    r"""A server that goes away when it is told to count, each time."""

    def __init__(self) -> None:
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.url = f'redis://127.0.0.1:{self.listener.getsockname()[1]}'
        self.num_counts = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, connection.makefile('rb') as commands:
                # Each begins with how many words it has, and each of these with its length.
                while head := commands.readline():
                    words = []
                    for _ in range(int(head[1:])):
                        length = int(commands.readline()[1:])
                        words.append(commands.read(length + 2)[:-2])
                    if words[0].startswith(b'INCR'):
                        self.num_counts += 1
                        break
                    told = b'maxmemory_policy:noeviction'
                    answer = b'$%d\r\n%b\r\n' % (len(told), told)
                    connection.sendall(answer if words[0] == b'INFO' else b'+OK\r\n')


# redis.Redis(...) would send it again and again.
def test_what_gets_no_answer_is_sent_once() -> None:
    server = Deserter()
    with connect(server.url, timeout=30) as client, pytest.raises(redis.ConnectionError):
        client.incr('count')
    time.sleep(0.2)
    assert server.num_counts == 1
    server.listener.close()


def test_an_answer_of_a_hung_server_is_not_waited_for(redis_server: Any, client: Any) -> None:
    with connect(redis_server.url, timeout=2) as other:
        redis_server.send(signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(redis.TimeoutError):
                other.incr('count')
            assert 1.9 < time.monotonic() - started < 30
        finally:
            redis_server.send(signal.SIGCONT)
        # It was done, though nobody heard of it.
        while client.get('count') is None:
            time.sleep(0.01)
        time.sleep(0.3)
        assert client.get('count') == b'1'
        # The late answer is not taken for that of another command.
        assert other.incr('another') == 1


def test_who_connects_to_a_hung_server_does_not_wait(redis_server: Any, client: Any) -> None:
    redis_server.send(signal.SIGSTOP)
    try:
        started = time.monotonic()
        with pytest.raises(redis.TimeoutError):
            connect(redis_server.url, timeout=0.2)
        assert time.monotonic() - started < 30
    finally:
        redis_server.send(signal.SIGCONT)


def test_a_server_that_is_not_there_is_told_of_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(redis.ConnectionError, match='nobody'):
        connect(f'unix://{tmp_path}/nobody')
    assert time.monotonic() - started < 30


@pytest.mark.parametrize('policy', ['allkeys-lru', 'volatile-ttl'])
def test_a_server_that_evicts_is_refused(redis_server: Any, client: Any, policy: str) -> None:
    client.config_set('maxmemory-policy', policy)
    try:
        with pytest.raises(ValueError, match=f'maxmemory-policy is {policy!r}: set it to noev'):
            connect(redis_server.url, timeout=30)
    finally:
        client.config_set('maxmemory-policy', 'noeviction')
    connect(redis_server.url, timeout=30).close()


def test_a_server_that_keeps_no_file_is_warned_of(
    redis_server: Any, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    connect(redis_server.url, timeout=30).close()
    assert caplog.records == []
    client.config_set('appendonly', 'no')
    try:
        connect(redis_server.url, timeout=30).close()
    finally:
        client.config_set('appendonly', 'yes')
    (record,) = caplog.records
    assert 'loses all since its last dump when it ends: set appendonly to yes' in record.message


@pytest.fixture
def user(client: Any) -> Iterator[str]:
    r"""A user who may do what a stream does, and nothing else."""
    client.acl_setuser(
        'producer',
        enabled=True,
        passwords=['+p@ss/word'],
        keys=['mag:*'],
        commands=[
            '-@all', '+info', '+eval', '+xadd', '+xrange', '+xrevrange', '+xtrim', '+multi', '+exec'
        ],
    )  # fmt: skip
    yield 'producer'
    client.acl_deluser('producer')


@pytest.mark.parametrize('in_url', [False, True])
def test_a_user_needs_few_rights(
    redis_server: Any, user: str, events_between: Events, in_url: bool
) -> None:
    url = redis_server.url
    if in_url:
        given = connect(
            url.replace('unix://', f'unix://{user}@') + '?password=p@ss/word', timeout=30
        )
    else:
        given = connect(url, username=user, password='p@ss/word', timeout=30)
    with given as client:
        stream = RedisStream(client)
        stream.append(events_between(0, 100), 0)
        stream.append(events_between(0, 200), 0)
        stream.trim(100)
        np.testing.assert_array_equal(stream.read(100), events_between(100, 200))
        with pytest.raises(redis.exceptions.NoPermissionError):
            RedisStream(client, 'other').append(events_between(0, 1), 0)
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.flushall()


def test_a_wrong_password_is_refused(redis_server: Any, user: str) -> None:
    with pytest.raises(redis.AuthenticationError):
        connect(redis_server.url, username=user, password='wrong', timeout=30)


class Tls:
    r"""Decrypts what comes and passes it on, as a server with TLS would answer it.

    Args:
        folder: Where its certificate is.
        path: The socket of the server.
    """

    def __init__(self, folder: Path, path: str) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / 'certificate', folder / 'key')
        self.path = path
        self.listener = socket.create_server(('127.0.0.1', 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        try:
            with (
                self.context.wrap_socket(plain, server_side=True) as there,
                socket.socket(socket.AF_UNIX) as server,
            ):
                server.connect(self.path)
                answers = threading.Thread(target=_copy, args=(server, there), daemon=True)
                answers.start()
                _copy(there, server)
                answers.join()
        except OSError:
            plain.close()


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return


@pytest.fixture
def tls(redis_server: Any, client: Any, tmp_path: Path) -> Iterator[Tls]:
    if shutil.which('openssl') is None:
        pytest.skip('there is no openssl, which makes a certificate')
    subprocess.run(
        [
            'openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '1', '-subj',
            '/CN=localhost', '-addext', 'subjectAltName=DNS:localhost', '-keyout', 'key', '-out',
            'certificate',
        ],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )  # fmt: skip
    server = Tls(tmp_path, str(redis_server.folder / 'socket'))
    yield server
    server.listener.close()


def test_tls(tls: Tls, tmp_path: Path, user: str, events_between: Events) -> None:
    certificate = str(tmp_path / 'certificate')
    with connect(
        f'rediss://localhost:{tls.port}/0',
        username=user,
        password='p@ss/word',
        timeout=30,
        ssl_ca_certs=certificate,
    ) as client:
        stream = RedisStream(client)
        stream.append(events_between(0, 9000), 0)
        np.testing.assert_array_equal(stream.read(0, 9000), events_between(0, 9000))
    # Nobody says who it is.
    with pytest.raises(redis.ConnectionError, match='certificate verify failed'):
        connect(f'rediss://localhost:{tls.port}', timeout=30)
    # It is another than it says.
    with pytest.raises(redis.ConnectionError, match='certificate is not valid for'):
        connect(f'rediss://127.0.0.1:{tls.port}', timeout=30, ssl_ca_certs=certificate)
    # Without TLS nothing is understood.
    with pytest.raises(redis.RedisError):
        connect(f'redis://localhost:{tls.port}', timeout=30)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TypeError, match="'url' must be a text such as 'redis://host:6379/0'"):
        connect(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='Redis URL must specify one of the following schemes'):
        connect('http://host')
    for timeout in (0, -1, float('inf')):
        with pytest.raises(ValueError, match=r"'timeout' must be a number in \(0, inf\)"):
            connect('redis://host', timeout=timeout)


def test_what_is_said_twice_is_refused_and_no_secret_is_shown() -> None:
    with pytest.raises(ValueError, match='both have password and username') as told:
        connect('redis://me:secret@host', username='you', password='other')
    assert 'secret' not in str(told.value)
    with pytest.raises(ValueError, match='both have ssl_ca_certs'):
        connect('rediss://host?ssl_ca_certs=a', ssl_ca_certs='b')
    with pytest.raises(ValueError, match='both have socket_timeout'):
        connect('redis://host?socket_timeout=9')


def test_who_has_no_redis_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'redis', None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'pyg-mag\[online\]'"):
        connect('redis://host')
