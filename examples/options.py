r"""What the examples share before their imports, which take seconds: options and folders."""

import argparse
from collections.abc import Sequence
from pathlib import Path

LOGS = (
    'movielens-100k', 'movielens-1m', 'movielens-10m', 'kuairand', 'event-log', 'synthetic'
)  # fmt: skip


def make_parser(
    description: str, datasets: Sequence[str], default: str, epochs: int
) -> argparse.ArgumentParser:
    r"""The options of every example.

    Args:
        description: What the example does.
        datasets: The logs it runs on.
        default: The log it runs on unless another is asked for.
        epochs: At most this many passes over the training rows unless more are asked for.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--dataset', choices=datasets, default=default)
    parser.add_argument('--root', default='data', help='folder of raw files and caches')
    parser.add_argument('--epochs', type=int, default=epochs, help='at most this many passes')
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn')
    parser.add_argument('--output', help='folder of the results; by default one in runs/')
    parser.add_argument(
        '--resume', action=argparse.BooleanOptionalAction, default=True,
        help='go on with the run in the output folder if there is one',
    )  # fmt: skip
    return parser


def make_output(args: argparse.Namespace, *names: str) -> Path:
    r"""Makes the folder of the results, which unless asked for is named after what runs."""
    output = Path(args.output or f'runs/{"-".join([*names, f"seed{args.seed}"])}')
    output.mkdir(parents=True, exist_ok=True)
    return output


def make_log_parser(description: str, epochs: int) -> argparse.ArgumentParser:
    r"""The options of an example that runs on any log of clicks, also on your own."""
    parser = make_parser(description, LOGS, 'movielens-100k', epochs)
    parser.add_argument('--path', help='event-log: a CSV or Parquet file, or a pattern of several')
    parser.add_argument(
        '--columns', nargs='+', default=[], metavar='ROLE=NAME',
        help='event-log: which column is user, item, time, label, category, weight',
    )  # fmt: skip
    return parser


def parse_log_args(parser: argparse.ArgumentParser) -> argparse.Namespace:
    args = parser.parse_args()
    if args.dataset == 'event-log' and not (args.path and args.columns):
        parser.error('--dataset event-log needs --path and --columns user=... item=... time=...')
    if not all('=' in column for column in args.columns):
        parser.error(f'--columns takes pairs such as user=uid, but got {" ".join(args.columns)}')
    return args
