r"""Connections to Redis."""

import logging
from typing import TYPE_CHECKING, Any

from mag.checks import check_numbers

if TYPE_CHECKING:
    from redis import Redis

_LOGGER = logging.getLogger(__name__)


def connect(
    url: str,
    *,
    username: str | None = None,
    password: str | None = None,
    timeout: float = 1.0,
    **options: Any,
) -> 'Redis':
    r"""A client of a Redis server that neither repeats a command by itself nor waits without end.
    One that keeps no append-only file is warned of in the log of :mod:`mag.online.redis_client`.

    A command that was sent and got no answer may have been done. What mag sends can be sent again,
    by who knows what it was: a client that did so unseen would hide that the server was started
    again and has lost events.

    .. code-block:: python

        client = connect(
            'rediss://features.example:6380/0', username='scorer', password=password,
            ssl_ca_certs='authority.pem',
        )

    Args:
        url (str): :obj:`"redis://host:port/database"`, :obj:`"rediss://..."` for TLS, which checks
            the name and the certificate of the server, or :obj:`"unix:///path/of/socket"`. What
            else it says, as :obj:`"redis://username:password@host"`, is said nowhere else.
        username (str, optional): The user of the server's access control list.
            (default: :obj:`None`)
        password (str, optional): The password. (default: :obj:`None`)
        timeout (float, optional): Seconds that a connection or an answer may take, which end in
            :class:`redis.TimeoutError`. (default: :obj:`1.0`)
        **options (optional): Further arguments of :class:`redis.Redis`, such as
            :obj:`ssl_ca_certs`, :obj:`ssl_certfile` and :obj:`ssl_keyfile`.

    Raises:
        ModuleNotFoundError: If redis-py is not installed.
        redis.RedisError: If the server cannot be reached or refuses.
        ValueError: If the server may evict what it holds when its memory is full.
    """
    try:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.connection import parse_url
        from redis.retry import Retry
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "connect needs redis-py, which is not installed: pip install 'pyg-mag[online]'."
        ) from error
    if not isinstance(url, str):
        raise TypeError(f"'url' must be a text such as 'redis://host:6379/0', but got {type(url)}.")
    check_numbers('(0, inf)', timeout=timeout)
    # What the URL says would win, without a word.
    given = {
        'username': username,
        'password': password,
        'socket_timeout': timeout,
        'socket_connect_timeout': timeout,
        **options,
    }
    twice = sorted(name for name in parse_url(url) if given.get(name) is not None)
    if twice:
        raise ValueError(
            f"'url' must not say what arguments say, but both have {' and '.join(twice)}."
        )
    if url.startswith('rediss://'):
        # Before 6.0 redis-py took the certificate of any name.
        given = {'ssl_check_hostname': True, **given}
    client = Redis.from_url(url, retry=Retry(NoBackoff(), 0), protocol=2, **given)
    policy = client.info('memory').get('maxmemory_policy')
    place = client.connection_pool.connection_kwargs
    where = place.get('path', place.get('host'))
    if policy != 'noeviction':
        client.close()
        raise ValueError(
            f'The Redis server at {where!r} must keep what it holds, but its maxmemory-policy is '
            f'{policy!r}: set it to noeviction, so that it refuses to write when its memory is '
            f'full.'
        )
    kept = client.info('persistence')
    # While it reads its files, it says that it keeps none.
    if not kept.get('aof_enabled') and not kept.get('loading'):
        _LOGGER.warning(
            'The Redis server at %r loses all since its last dump when it ends: set appendonly to '
            'yes, so that what was answered is kept.',
            where,
        )
    return client
