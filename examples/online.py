r"""From nothing to a running server: fits a model on the first part of a log, serves it, and
replays the rest as a live stream, on a page to look at.

    python examples/online.py --dataset movielens-100k

Ctrl-C ends it. What it serves is asked by others, too: `mag rank`, or `mag.online.Client`. Your own
clicks, as CSV or Parquet:

    python examples/online.py --dataset event-log --path clicks.parquet \
        --columns user=uid item=sku time=ts label=clicked category=department
"""

import argparse

from options import make_log_parser, make_output, parse_log_args


def parse_args() -> argparse.Namespace:
    parser = make_log_parser('Serve a click log that goes on.', 6)
    parser.add_argument('--model', choices=('count_net', 'macgnn'), default='count_net')
    parser.add_argument('--share', type=float, default=0.8, help='of the log that is fitted')
    parser.add_argument('--rate', type=float, default=20.0, help='replayed events a second')
    parser.add_argument('--port', type=int, default=50051, help='of gRPC')
    parser.add_argument('--page-port', type=int, default=8080, help='of the page')
    parser.add_argument(
        '--browser',
        action=argparse.BooleanOptionalAction,
        default=True,
        help='open the page in one',
    )
    return parse_log_args(parser)


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import tempfile
import threading
import time
import webbrowser
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow
import torch
from logs import load_dataset
from tqdm import tqdm

from mag.datasets import EventLog
from mag.online import Client
from mag.pipeline import Pipeline
from mag.pipeline.serving import make_server, write_served
from mag.schema import CLICKS

COLUMNS = {
    'user': 'user', 'item': 'item', 'time': 'time', 'label': 'clicked', 'category': 'category'
}  # fmt: skip


def read_log(args: argparse.Namespace) -> dict[str, np.ndarray]:
    r"""The columns of a log, in the order of time."""
    dataset = load_dataset(args)
    data = dataset[0]
    user, item = data[CLICKS].edge_label_index.numpy()
    category = np.array(dataset.names['category'])[data['item'].category.numpy()]
    return {
        'user': dataset.raw_ids['user'][user].astype(str),
        'item': titles(dataset)[item],
        'time': data[CLICKS].edge_label_time.numpy(),
        'clicked': data[CLICKS].edge_label.long().numpy(),
        'category': category[item],
    }


def titles(dataset: object) -> np.ndarray:
    r"""What items are called on the page: their titles where they have some, else their ids."""
    found = dataset.describe('item')  # type: ignore[attr-defined]
    ids = found['id'].astype(str)
    if 'title' not in found:
        return ids
    number = Counter(found['title'])
    pairs = zip(found['title'], ids, strict=True)
    return np.array([title if number[title] == 1 else f'{title} #{raw}' for title, raw in pairs])


def replay(events: dict[str, np.ndarray], address: str, rate: float) -> None:
    r"""Records events, as many a second as are asked for."""
    begun, num_events = time.monotonic(), len(events['time'])
    with Client(address) as client, tqdm(total=num_events, unit='event', desc='Replays') as bar:
        while bar.n < num_events:
            due = min(num_events, int((time.monotonic() - begun) * rate))
            if due > bar.n:
                part = {name: column[bar.n : due].tolist() for name, column in events.items()}
                client.record(part['user'], part['item'], part['time'], part['clicked'])
                bar.update(due - bar.n)
            time.sleep(0.05)


def fitted(args: argparse.Namespace, log: dict[str, np.ndarray], folder: Path) -> Pipeline:
    r"""A pipeline that knows all of a log, which an earlier run may have left in the folder."""
    if args.resume and folder.exists():
        pipeline = Pipeline.load(folder)
        is_same = len(pipeline.events()) == len(log['time'])
        if is_same and (pipeline.max_epochs, pipeline.seed) == (args.epochs, args.seed):
            return pipeline
    with tempfile.TemporaryDirectory() as cache:
        known = EventLog(cache, pyarrow.table(log), COLUMNS, log=False)
        pipeline = Pipeline(args.model, max_epochs=args.epochs, seed=args.seed).fit(known)
    pipeline.save(folder)
    return pipeline


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'online', args.dataset, args.model)
    log = read_log(args)
    num_fitted = int(args.share * len(log['time']))
    first = {name: column[:num_fitted] for name, column in log.items()}
    later = {name: column[num_fitted:] for name, column in log.items()}
    pipeline = fitted(args, first, output / 'shop')
    print(f'Fitted on {num_fitted:,} exposures: {pipeline.metrics["test"]}')
    # Each run replays the same, into a log of its own.
    for path in output.glob('events.db*'):
        path.unlink()
    # Each request has a thread of its own.
    torch.set_num_threads(1)
    server = make_server(
        write_served(pipeline, output / 'snapshots'),
        str(output / 'events.db'),
        port=args.port,
        page_port=args.page_port,
    )

    def started() -> None:
        address, page = f'127.0.0.1:{server.port}', f'http://127.0.0.1:{server.page_port}'
        print(f'Serves at {address}, and a page at {page}', flush=True)
        threading.Thread(target=replay, args=(later, address, args.rate), daemon=True).start()
        if args.browser:
            webbrowser.open(page)

    server.run(started=started)


if __name__ == '__main__':
    main(ARGS)
