r"""What the examples share before their imports, which take seconds: options and folders."""

import argparse
from collections.abc import Sequence
from pathlib import Path


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
