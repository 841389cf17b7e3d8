import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip('grpc', reason='gRPC is not installed: make test installs it')
pytest.importorskip('fastapi', reason='FastAPI is not installed: make test installs it')

from mag.online import Client, SqliteStream  # noqa: E402

SOURCE = Path(__file__).parents[2] / 'examples' / 'online.py'
COLUMNS = ['user=who', 'item=what', 'time=when', 'label=clicked', 'category=kind']


# Twice: the second time what was fitted is there, and the stream begins anew.
def test_a_log_is_served_while_its_end_is_replayed(log: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, str(SOURCE), '--dataset', 'event-log', '--path', str(log), '--columns',
        *COLUMNS, '--epochs', '1', '--rate', '2000', '--port', '0', '--page-port', '0',
        '--no-browser',
    ]  # fmt: skip
    folder = tmp_path / 'runs' / 'online-event-log-count_net-seed0'
    for _ in range(2):
        with subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            try:
                fitted, serves = process.stdout.readline(), process.stdout.readline()
                assert fitted.startswith('Fitted on 3,200 exposures: ')
                (address,) = re.findall(r'Serves at (\S+), and a page at http://127', serves)
                deadline = time.monotonic() + 60
                with Client(address) as client:
                    while client.rank('u1', ['i1', 'i2']).position < 4000:
                        assert time.monotonic() < deadline
                process.send_signal(signal.SIGTERM)
                assert process.wait(30) == 0
            finally:
                process.kill()
        with SqliteStream(folder / 'events.db') as stream:
            assert stream.end == 4000
            lines = log.read_text().splitlines()[1:]
            events = stream.read(3200)
            assert events['time'].tolist() == [int(line.split(',')[2]) for line in lines[3200:]]
            assert events['clicked'].tolist() == [int(line.split(',')[3]) for line in lines[3200:]]
        assert (folder / 'shop').is_dir()
