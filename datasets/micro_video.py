import os
import os.path as osp
from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import torch
from torch_geometric.data import HeteroData

from mag.checks import check_integers
from mag.datasets._interactions import SPLITS, read_interactions
from mag.datasets._modality import count_rows, name_modalities, read_features
from mag.datasets.click_dataset import ClickDataset
from mag.datasets.log_table import LogTable
from mag.negatives import (
    ClickedByThen,
    ItemsByArrival,
    draw_negatives,
    hash_clicks,
    hash_rows,
    number_repeats,
)
from mag.schema import CLICKS

_FILES = ('interactions.csv', 'interactions.parquet')
#: The stream of chance that slots are dealt by.
_STREAM = 0


class MicroVideo(ClickDataset):
    r"""Interactions with items that have features of several modalities, such
    as the TikTok micro-videos of the `"Multi-Modal Self-Supervised Learning
    for Recommendation" <https://arxiv.org/abs/2302.10632>`_ and `"DiffMM:
    Multi-Modal Diffusion Model for Recommendation"
    <https://arxiv.org/abs/2406.11781>`_ papers.

    The directory :obj:`root/raw` holds

    * :obj:`interactions.csv` or :obj:`interactions.parquet` with the columns
      :obj:`user`, :obj:`item` (whole numbers) and optionally :obj:`time`
      (whole seconds), :obj:`label` (0 or 1) and :obj:`split`
      (:obj:`'train'`, :obj:`'val'` or :obj:`'test'`, also as :obj:`'trn'`,
      :obj:`'valid'`, :obj:`'validation'`, :obj:`'tst'`);
    * for each modality :obj:`<name>_feat.npy` or :obj:`<name>.npy` of shape
      :obj:`[num_rows, D]`, whose row :obj:`i` are the features of item
      :obj:`i`; an item without the modality has a row of NaN.

    Nodes are the users and items with an interaction, in ascending order of
    their ids; items that only the files of features hold are no nodes.

    **Negatives are sampled** where there is no :obj:`label`: every
    interaction is a click, and is followed by :obj:`num_negatives` exposures
    at its time without one, of items drawn uniformly, with replacement, from
    all those its user has not interacted with up to then. "Up to then" is in
    its own or an earlier split, or if there are times, at or before its time.
    What a user interacts with later may thus be a negative now, as in a log.
    If it were left out, training would read the test part.
    A draw is a hash of its interaction. So rows of later splits or times
    change no draw, unless they bring new items.

    **Time is made up** where there is no :obj:`time`. On that clock only the
    order matters, and rows of one time have none. Training rows are dealt at
    random into :obj:`num_slots` slots, the times 0 to :obj:`num_slots - 1`.
    The slots are of equal size, give or take an interaction, and do not depend
    on other splits. Validation has the time :obj:`num_slots` and test
    :obj:`num_slots + 1`. So what reads clicks strictly before an exposure reads
    none of its own slot, in validation all of training, and in test all of
    both. Without a :obj:`split` all rows are training rows.

    The splits of the files are had by

    .. code-block:: python

        split = TemporalSplit(0.05, num_windows=9, keep_cold=True, **dataset.split_shares)
        train, val, test = split(dataset[0])

    where validation and test are exactly the rows of those splits, and
    training those of its split but for the first of the ten slots, in which
    the first 5 % of the log end, and which is history alone.

    The :class:`~torch_geometric.data.HeteroData` holds

    * :obj:`data['item']`: for each modality :obj:`x_<name>`, float32 of
      shape :obj:`[num_items, D]`, zeros for an item without it, and
      :obj:`has_<name>`, bool of shape :obj:`[num_items]`;
    * :obj:`data['user', 'clicks', 'item']`: :obj:`edge_index` and
      :obj:`time` of the clicks; :obj:`edge_label_index`, :obj:`edge_label`
      and :obj:`edge_label_time` of the exposures; if there are splits,
      :obj:`edge_label_split`, 0 in training, 1 in validation, 2 in test.

    The modalities and the splits are in :attr:`names`, the ids in the files
    in :attr:`raw_ids`.

    .. note::
        The data is not downloaded. TikTok is released as one matrix of users
        and items a split; write its entries as rows of
        :obj:`interactions.csv`, beside :obj:`image_feat.npy` and
        :obj:`audio_feat.npy`.

    Args:
        root (str): Directory of :obj:`raw` and :obj:`processed`.
        num_negatives (int, optional): Exposures without a click for each
            click, if there is no :obj:`label`. (default: :obj:`1`)
        num_slots (int, optional): Slots of training rows, if there is no
            :obj:`time`; at least 2, as rows of the first have no history.
            (default: :obj:`10`)
        seed (int, optional): Seed of the slots and the negatives.
            (default: :obj:`0`)
        transform (callable, optional): Applied to the data on every access.
        pre_transform (callable, optional): Applied once, before caching; no
            bare function, as its :obj:`repr` is what the cache is known by.
        force_reload (bool, optional): Whether to process the raw files again.
            (default: :obj:`False`)
        log (bool, optional): Whether to show progress.
            (default: :obj:`True`)

    Raises:
        FileNotFoundError: If a file is missing; it says which.
        TypeError: If a number is no integer.
        ValueError: If a number is too small, if a file lacks a column, holds
            a bad value (the message says where) or an item without a row of
            features, if files of features differ in their rows or two are of
            one modality, if no negative is left for a user, or if the cache
            was made with other arguments, by another version or from other
            raw files.
    """

    schema_version = 3

    def __init__(
        self,
        root: str | os.PathLike[str],
        num_negatives: int = 1,
        num_slots: int = 10,
        seed: int = 0,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
    ) -> None:
        check_integers(1, num_negatives=num_negatives)
        # With one slot no row would have a past.
        check_integers(2, num_slots=num_slots)
        check_integers(0, seed=seed)
        self.num_negatives = num_negatives
        self.num_slots = num_slots
        self.seed = seed
        super().__init__(root, transform, pre_transform, force_reload, log)

    @property
    def arguments(self) -> dict[str, Any]:
        return {
            'num_negatives': self.num_negatives,
            'num_slots': self.num_slots,
            'seed': self.seed,
        }

    @property
    def source_files(self) -> list[str]:
        names = sorted(os.listdir(self.raw_dir)) if osp.isdir(self.raw_dir) else []
        interactions = [name for name in names if name in _FILES]
        features = [name for name in names if name.endswith('.npy')]
        if len(interactions) > 1:
            both = ' and '.join(interactions)
            raise ValueError(f'{self.raw_dir!r} must hold one of {both}, but got both.')
        found = interactions + features if interactions and features else []
        return [osp.join(self.raw_dir, name) for name in found]

    @property
    def raw_file_names(self) -> list[str]:
        found = [osp.basename(path) for path in self.source_files]
        return found or [_FILES[0], '<modality>_feat.npy']

    @property
    def split_shares(self) -> dict[str, float]:
        r"""The arguments :obj:`val_start` and :obj:`test_start` by which
        :class:`~mag.transforms.TemporalSplit` cuts between the splits of the
        files.

        Raises:
            ValueError: If there are no splits, one is empty, or a row has not
                an earlier time than all rows of the next split.
        """
        clicks = self._data[CLICKS]
        if 'edge_label_split' not in clicks:
            raise ValueError(f"{self.raw_dir!r} must have rows of a column 'split', but has none.")
        split, time = clicks.edge_label_split, clicks.edge_label_time
        sizes = split.bincount(minlength=len(SPLITS))
        end = sizes.cumsum(0)[:-1]
        is_cut = bool((sizes > 0).all() and (split.diff() >= 0).all())
        if not is_cut or bool((time[end - 1] >= time[end]).any()):
            raise ValueError(
                f'The splits {", ".join(SPLITS)} must each have exposures and end before the next '
                f'begins, but got {sizes.tolist()} exposures, or some that overlap in time.'
            )
        # A quarter of the way from the last row of a split to the next row, as quantiles go.
        val_start, test_start = ((end - 0.75) / (split.numel() - 1)).tolist()
        return {'val_start': val_start, 'test_start': test_start}

    def download(self) -> None:
        present = sorted(os.listdir(self.raw_dir))
        raise FileNotFoundError(
            f'MicroVideo needs {" or ".join(_FILES)} and, for each modality, <modality>_feat.npy '
            f'or <modality>.npy in {self.raw_dir!r}, but found {", ".join(present) or "nothing"}.'
        )

    def read(self, connection: duckdb.DuckDBPyConnection) -> LogTable:
        path, *features = self.source_files
        name_modalities(features)
        columns = read_interactions(connection, path, count_rows(features), features[0])
        rows = connection.execute(f'SELECT {", ".join(columns)} FROM interaction').fetchnumpy()
        split = rows.get('split', np.zeros(rows['user'].size, dtype=np.int64))
        stage = rows.get('time', split)
        if 'time' not in rows:
            rows['time'] = _deal_slots(rows, split, self.num_slots, self.seed)
        if 'label' not in rows and rows['user'].size:
            negatives = _draw_negatives(
                rows['user'], rows['item'], stage, self.num_negatives, self.seed
            )
            items = np.column_stack([rows['item'], negatives])
            rows = {name: column.repeat(items.shape[1]) for name, column in rows.items()}
            rows['item'] = items.ravel()
            rows['label'] = np.tile(np.arange(items.shape[1]) == 0, len(items)).astype(np.uint8)
        connection.register('labelled', rows)
        connection.execute('CREATE OR REPLACE TABLE log AS SELECT * FROM labelled')
        connection.unregister('labelled')
        connection.execute('DROP TABLE interaction')
        return LogTable(contexts=('split',) if 'split' in rows else ())

    def extend(
        self,
        connection: duckdb.DuckDBPyConnection,
        data: HeteroData,
        names: dict[str, list[str]],
    ) -> None:
        ids = connection.execute('SELECT id FROM item_node ORDER BY node').fetchnumpy()['id']
        modalities = name_modalities(self.source_files[1:])
        for name, path in modalities.items():
            data['item'][f'x_{name}'], data['item'][f'has_{name}'] = read_features(path, ids)
        names['modality'] = list(modalities)
        clicks = data[CLICKS]
        if 'edge_label_split' in clicks:
            # A categorical of an exposure would be a feature to predict from.
            present = torch.tensor([int(name) for name in names['split']])
            clicks.edge_label_split = present[clicks.edge_label_split]
            del clicks.num_split
            names['split'] = list(SPLITS)


def _deal_slots(
    rows: dict[str, np.ndarray], split: np.ndarray, num_slots: int, seed: int
) -> np.ndarray:
    time = split + (num_slots - 1)
    train = np.flatnonzero(split == 0)
    user, item = rows['user'][train], rows['item'][train]
    order = hash_rows((seed, _STREAM), user, item, number_repeats(user, item)).argsort()
    # Intervals of that order, so that a training row more moves one row a slot at most.
    time[train[order]] = np.arange(train.size) * num_slots // max(train.size, 1)
    return time


def _draw_negatives(
    user: np.ndarray, item: np.ndarray, stage: np.ndarray, num_negatives: int, seed: int
) -> np.ndarray:
    r"""For each click items that its user has clicked neither at the stage of the click nor before,
    with the same chance from the items that anybody clicked.

    Args:
        user (numpy.ndarray): The user of each click, any int64, shape :obj:`[E]`.
        item (numpy.ndarray): Its item, likewise.
        stage (numpy.ndarray): When it happened, on any clock, likewise.
        num_negatives (int): How many to draw for each click.
        seed (int): Seed of the draws.

    Returns:
        Items, shape :obj:`[E, num_negatives]`.
    """
    chance = hash_clicks(seed, user, item, stage, num_negatives)
    users, user = np.unique(user, return_inverse=True)
    items, item = np.unique(item, return_inverse=True)
    stages, stage = np.unique(stage, return_inverse=True)
    clicked = ClickedByThen(user, item, stage, items.size, stages.size)
    # Stages are too few for items to come with the first click: in the first none would be there.
    pool = ItemsByArrival(np.zeros(items.size, dtype=np.int64))
    drawn = draw_negatives(pool, clicked, user, stage, chance)
    is_empty = drawn[:, 0] < 0
    if is_empty.any():
        raise ValueError(
            f'A user must leave an item to draw as a negative, but the user '
            f'{users[user[is_empty.argmax()]]} has clicked all of the {items.size} items that '
            f'anybody clicked.'
        )
    return items[drawn]
