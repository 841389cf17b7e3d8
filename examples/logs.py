r"""The click logs that examples share."""

import argparse
import os

from mag.datasets import EventLog, KuaiRand, MovieLens, SyntheticMarket


def load_dataset(args: argparse.Namespace) -> MovieLens | KuaiRand | EventLog | SyntheticMarket:
    if args.dataset == 'synthetic':
        return SyntheticMarket(seed=args.seed)
    root = os.path.join(args.root, args.dataset)
    if args.dataset == 'event-log':
        return EventLog(root, args.path, dict(column.split('=', 1) for column in args.columns))
    if args.dataset == 'kuairand':
        return KuaiRand(root)
    return MovieLens(root, args.dataset.removeprefix('movielens-'))


def split_by(args: argparse.Namespace) -> str:
    r"""MovieLens-100K is too short to be cut at one moment for all users."""
    return 'user' if args.dataset == 'movielens-100k' else 'global'
