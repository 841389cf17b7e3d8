r"""Logs that programs read."""

import datetime
import json
import logging

# What every record has; what else one has was given as extra.
_STANDARD = {*vars(logging.makeLogRecord({})), 'message', 'asctime', 'taskName'}


class JsonFormatter(logging.Formatter):
    r"""Formats each record of :mod:`logging` as one line of JSON: its time in UTC, level, logger
    and message, what was given as :obj:`extra`, and the traceback of an exception.

    >>> facts = {'name': 'mag', 'levelname': 'INFO', 'msg': 'serves', 'created': 0.5, 'port': 50051}
    >>> print(JsonFormatter().format(logging.makeLogRecord(facts)).replace(', ', '\n'))
    {"time": "1970-01-01T00:00:00.500+00:00"
    "level": "INFO"
    "logger": "mag"
    "message": "serves"
    "port": 50051}
    """

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line = {
            'time': time.isoformat(timespec='milliseconds'),
            'level': record.levelname,
            'logger': record.name,
            'message': record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _STANDARD},
        }
        if record.exc_info:
            line['exception'] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
