import csv
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import MicroVideo
from mag.datasets.micro_video import _draw_negatives as draw_negatives
from mag.loader import HistoryLoader
from mag.transforms import TemporalSplit

CLICKS = ('user', 'clicks', 'item')
NAN = float('nan')
# Item 3 has no audio; item 4 is in no interaction, and what its row holds does not matter.
IMAGE = [[0, 1], [2, 3], [4, 5], [6, 7], [NAN, 9]]
AUDIO = [[0.5, 0, 0], [1, 0, 0], [1.5, 0, 0], [NAN, NAN, NAN], [2.5, 0, 0]]


def write(folder: Path, text: str, **features: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'interactions.csv').write_text(text)
    for name, value in ({'image_feat': IMAGE, 'audio': AUDIO} | features).items():
        if value is not None:
            np.save(folder / f'{name}.npy', np.array(value, dtype=np.float16))
    return folder


def copy_to_parquet(query: str, folder: Path) -> None:
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({query}) TO '{folder}/interactions.parquet'")


def load(root: Path, **arguments: Any) -> MicroVideo:
    return MicroVideo(root, log=False, **arguments)


def triples(data: HeteroData) -> list[tuple[int, ...]]:
    clicks = data[CLICKS]
    columns = [*clicks.edge_label_index, clicks.edge_label, clicks.edge_label_time]
    return [tuple(int(value) for value in row) for row in zip(*columns)]


def test_a_log_with_times_and_labels(tmp_path: Path) -> None:
    text = (
        'user,item,split,label,time\n7,3,tst,1,90\n5,0,trn,1,10\n7,1,train,0,11\n9,0,valid,0,40\n'
    )
    write(tmp_path / 'raw', text)
    dataset = load(tmp_path)
    data = dataset[0]
    assert data.validate()
    assert triples(data) == [(0, 0, 1, 10), (1, 1, 0, 11), (2, 0, 0, 40), (1, 2, 1, 90)]
    clicks = data[CLICKS]
    assert clicks.edge_index.tolist() == [[0, 1], [0, 2]]
    assert clicks.time.tolist() == [10, 90]
    assert clicks.edge_label_split.tolist() == [0, 0, 1, 2]
    assert 'num_split' not in clicks
    assert dataset.names == {'split': ['train', 'val', 'test'], 'modality': ['audio', 'image']}
    assert dataset.raw_ids['user'].tolist() == [5, 7, 9]
    assert dataset.raw_ids['item'].tolist() == [0, 1, 3]
    item = data['item']
    assert item.num_nodes == 3
    assert item.x_image.tolist() == [[0, 1], [2, 3], [6, 7]]
    assert item.has_image.tolist() == [True, True, True]
    assert item.x_audio.tolist() == [[0.5, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert item.has_audio.tolist() == [True, True, False]
    assert item.x_audio.dtype == torch.float32 and item.has_audio.dtype == torch.bool


def test_a_log_of_clicks_alone(tmp_path: Path) -> None:
    rows = [f'{user},{item}\n' for user in range(4) for item in range(4) if user != item]
    write(tmp_path / 'raw', 'item,user\n' + ''.join(rows))
    dataset = load(tmp_path, num_slots=3, num_negatives=2)
    clicks = dataset[0][CLICKS]
    # Each user has clicked all but one item, and the rows have no split that comes later.
    expected = []
    for user, item, label, _ in triples(dataset[0]):
        assert (item == user) == (label == 0)
        expected += [(user, item)] if label else []
    assert sorted(expected) == [(u, i) for u in range(4) for i in range(4) if u != i]
    assert clicks.edge_label.tolist() == [1, 0, 0] * 12
    # A negative stands behind its click, at its time.
    assert clicks.edge_label_index[0].view(12, 3).diff(dim=1).abs().sum() == 0
    assert clicks.edge_label_time.tolist() == [0] * 12 + [1] * 12 + [2] * 12
    assert torch.equal(clicks.edge_index, clicks.edge_label_index[:, ::3])
    assert torch.equal(clicks.time, clicks.edge_label_time[::3])
    assert 'edge_label_split' not in clicks
    with pytest.raises(ValueError, match="must have rows of a column 'split', but has none"):
        _ = dataset.split_shares


def test_negatives_leave_out_what_was_clicked_up_to_then() -> None:
    rng = np.random.default_rng(3)
    user, item = rng.integers(10, size=400) * 2**40, rng.integers(60, size=400) * 3 - 50
    stage = rng.integers(3, size=400)
    drawn = draw_negatives(user, item, stage, 50, 0)
    assert drawn.shape == (400, 50) and set(drawn.ravel()) == set(item)
    later = 0
    for row, owner in enumerate(user):
        known = set(item[(user == owner) & (stage <= stage[row])])
        assert not known & set(drawn[row])
        later += len(set(item[user == owner]) & set(drawn[row]))
    assert later > 0
    assert np.array_equal(drawn, draw_negatives(user, item, stage, 50, 0))
    assert not np.array_equal(drawn, draw_negatives(user, item, stage, 50, 1))


def spread(table: np.ndarray) -> float:
    r"""How far counts are from all the same, in standard deviations of chi-square."""
    expected = table.sum() / table.size
    freedom = table.size - 1
    return (((table - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5


def test_negatives_are_uniform() -> None:
    # Of ten items user 0 clicked three, so that each of seven is drawn a seventh of the time.
    user, item = np.array([0, 0, 0, *[1] * 7]), np.arange(10)
    drawn = draw_negatives(user, item, np.zeros(10, dtype=np.int64), 20_000, 0)[0]
    counts = Counter(drawn.tolist())
    assert counts.keys() == {3, 4, 5, 6, 7, 8, 9}
    assert spread(np.array(list(counts.values()))) < 4


def test_negatives_of_rows_are_independent() -> None:
    r"""Of 30,000 users in a row each clicked one item of eight, so that seven are left, by their
    place after it."""
    user, item = np.arange(30_000), np.arange(30_000) % 8
    drawn = draw_negatives(user, item, np.zeros(30_000, dtype=np.int64), 3, 0)
    place = (drawn - item[:, None]) % 8 - 1
    assert place.min() == 0 and place.max() == 6
    for first, second in (
        (place[:, 0], place[:, 1]),
        (place[:, 1], place[:, 2]),
        (place[:-1, 0], place[1:, 0]),
        (place[:-8, 2], place[8:, 2]),
    ):
        assert spread(np.bincount(first * 7 + second, minlength=49)) < 4
    # Clicks that are listed twice have each their own.
    twice = draw_negatives(user.repeat(2), item.repeat(2), np.zeros(60_000, dtype=np.int64), 3, 0)
    assert np.array_equal(twice[::2], drawn)
    agree = (twice[::2] == twice[1::2]).mean()
    assert agree == pytest.approx(1 / 7, abs=4 * (6 / 49 / 90_000) ** 0.5)


def test_later_rows_change_no_negative() -> None:
    r"""Nor does their place in the file: draws know what a row holds, and not its number."""
    rng = np.random.default_rng(5)
    user, item = rng.integers(20, size=900), rng.integers(37, size=900)
    stage = rng.integers(3, size=900)
    # All items are there at the first stage, and one user clicks all but one in the end.
    user[user == 7] = 6
    user[:37], item[:37], stage[:37] = 8 + np.arange(37) % 2, np.arange(37), 0
    user[37:73], item[37:73], stage[37:73] = 7, np.arange(36), [0] * 30 + [1] * 6
    whole = draw_negatives(user, item, stage, 4, 0)
    for last in (0, 1):
        kept = stage <= last
        assert np.unique(item[kept]).size == 37
        part = draw_negatives(user[kept], item[kept], stage[kept], 4, 0)
        assert np.array_equal(part, whole[kept])
    order = rng.permutation(900)
    shuffled = draw_negatives(user[order], item[order], stage[order], 4, 0)
    for pair in set(zip(user, item, stage)):
        rows = [np.flatnonzero((user == pair[0]) & (item == pair[1]) & (stage == pair[2]))]
        rows.append(np.array([place for place in range(900) if order[place] in rows[0]]))
        found = [sorted(map(tuple, table[row])) for table, row in zip((whole, shuffled), rows)]
        assert found[0] == found[1]


def test_negatives_of_who_clicked_nearly_everything() -> None:
    r"""One of 20,000 items is left, which trying again would find once in 20,000 times."""
    num = 20_000
    user, item = np.zeros(num, dtype=np.int64), np.arange(num)
    user[123] = 1
    drawn = draw_negatives(user, item, np.zeros(num, dtype=np.int64), 2, 0)
    assert bool((drawn[user == 0] == 123).all()) and bool((drawn[123] != 123).all())
    # One after the other: what is left is what comes later, and the one that never does.
    drawn = draw_negatives(user, item, np.arange(num), 2, 0)
    later = (drawn > item[:, None]) | (drawn == 123)
    assert bool(later[user == 0].all())


def test_a_user_who_clicked_everything(tmp_path: Path) -> None:
    text = 'user,item,split\n4,0,trn\n8,1,trn\n4,1,tst\n'
    with pytest.raises(
        ValueError, match='but the user 4 has clicked all of the 2 items that anybody'
    ):
        load(write(tmp_path / 'raw', text).parent)
    text = 'user,item,time\n4,0,1\n8,1,2\n4,1,3\n4,2,4\n'
    with pytest.raises(ValueError, match='but the user 4 has clicked all of the 3 items'):
        load(write(tmp_path / 'raw', text).parent)
    # One item is left, which another user clicks later.
    text = 'user,item,time\n4,0,1\n8,1,2\n4,1,3\n8,2,4\n'
    data = load(write(tmp_path / 'raw', text).parent)[0]
    assert [row for row in triples(data) if row[0] == 0 and row[3] == 3] == [
        (0, 1, 1, 3),
        (0, 2, 0, 3),
    ]


@pytest.fixture(scope='module')
def many(tmp_path_factory: pytest.TempPathFactory) -> MicroVideo:
    r"""600 clicks of 30 users on 100 items in the three splits."""
    rng = np.random.default_rng(0)
    pair = rng.permutation(3000)[:600]
    split = rng.choice(['trn', 'val', 'tst'], size=600, p=[0.8, 0.1, 0.1])
    rows = [f'{pair // 100},{pair % 100},{word}\n' for pair, word in zip(pair, split)]
    root = tmp_path_factory.mktemp('many')
    features = {'image_feat': rng.random((100, 4)), 'audio': None}
    write(root / 'raw', 'user,item,split\n' + ''.join(rows), **features)
    return load(root)


def check_splits(dataset: MicroVideo) -> tuple[HeteroData, HeteroData, HeteroData]:
    r"""Cuts a log without times, and checks that the parts are the splits of its files."""
    data = dataset[0]
    whole = data[CLICKS]
    assert dataset.split_shares.keys() == {'val_start', 'test_start'}
    split = TemporalSplit(0.05, num_windows=9, keep_cold=True, **dataset.split_shares)
    parts = split(data)
    for code, part in enumerate(parts):
        clicks = part[CLICKS]
        rows = whole.edge_label_split == code
        if code == 0:
            rows &= whole.edge_label_time > 0
        for name in ('edge_label_index', 'edge_label', 'edge_label_time', 'edge_label_split'):
            assert torch.equal(clicks[name], whole[name][..., rows])
        # No click of an exposure's own slot or split is strictly before it.
        assert int(clicks.num_dropped) == 0
    assert parts[0][CLICKS].cutoff.tolist() == list(range(1, 10))
    assert parts[1][CLICKS].cutoff.tolist() == [10]
    assert parts[2][CLICKS].cutoff.tolist() == [11]
    labels = whole.edge_label == 1
    for code, part in enumerate(parts[1:], start=1):
        before = labels & (whole.edge_label_split < code)
        assert torch.equal(part[CLICKS].edge_index, whole.edge_label_index[:, before])
    return parts


def test_splits_of_the_files(many: MicroVideo) -> None:
    check_splits(many)
    clicks = many[0][CLICKS]
    train = clicks.edge_label_time[clicks.edge_label_split == 0]
    sizes = train.bincount()
    # A click more or less, with its negative.
    assert sizes.numel() == 10 and sizes.max() - sizes.min() <= 2
    assert (clicks.edge_label_time[clicks.edge_label_split == 1] == 10).all()
    assert (clicks.edge_label_time[clicks.edge_label_split == 2] == 11).all()


def named(dataset: MicroVideo) -> list[tuple[int, ...]]:
    r"""Training rows by the ids of their users and items."""
    clicks, ids = dataset[0][CLICKS], dataset.raw_ids
    train = clicks.edge_label_split == 0
    user, item = clicks.edge_label_index[:, train].numpy()
    columns = [ids['user'][user], ids['item'][item]]
    columns += [clicks.edge_label[train].tolist(), clicks.edge_label_time[train].tolist()]
    return list(zip(*columns))


@pytest.mark.parametrize('num_negatives', [1, 3])
def test_later_splits_change_no_training_row(
    tmp_path: Path, many: MicroVideo, num_negatives: int
) -> None:
    header, *rows = (Path(many.root) / 'raw' / 'interactions.csv').read_text().splitlines()
    train = [row for row in rows if row.endswith('trn')]
    later = [row for row in rows if not row.endswith('trn')]
    users = {row.split(',')[0] for row in train}
    items = {row.split(',')[1] for row in train}
    later = [row for row in later if row.split(',')[0] in users and row.split(',')[1] in items]
    assert len(train) > 400 and len(later) > 100
    # Among the others, and in another order.
    mixed = [row for pair in zip(later[::-1], train) for row in pair] + train[len(later) :]
    found = []
    for name, lines in (('train', train), ('mixed', mixed)):
        features = {'image_feat': np.zeros((100, 4)), 'audio': None}
        write(tmp_path / name / 'raw', '\n'.join([header, *lines]) + '\n', **features)
        found.append(named(load(tmp_path / name, num_negatives=num_negatives)))
    assert len(found[0]) == len(train) * (1 + num_negatives)
    assert found[0] == found[1]


def test_slots_are_as_many_and_not_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [f'{row // 50},{row // 50 + row % 50}\n' for row in range(1237)]
    features = {'image_feat': np.zeros((100, 1)), 'audio': None}
    write(tmp_path / 'raw', 'user,item\n' + ''.join(rows), **features)
    dataset = load(tmp_path, num_slots=4)
    slot = dataset[0][CLICKS].time
    assert slot.bincount().tolist() == [310, 309, 309, 309]
    index = dataset[0][CLICKS].edge_index
    place = index[0] * 49 + index[1]
    # In each slot are rows of the whole file: their mean is that of the file.
    for number in range(4):
        mean = place[slot == number].double().mean().item()
        assert mean == pytest.approx(618, abs=4 * 1237 / 12**0.5 / 309**0.5)


def test_no_exposure_has_its_click_in_its_history(many: MicroVideo) -> None:
    data = many[0]
    (batch,) = HistoryLoader(data, 2000, length=100)
    is_click = batch.label == 1
    assert not (batch.history[is_click] == batch.item[is_click, None]).any()
    # The files have no pair twice, so an item in the history is no negative either.
    assert not (batch.history[~is_click] == batch.item[~is_click, None]).any()
    assert (batch.history[data[CLICKS].edge_label_time == 0] == -1).all()
    assert (batch.history[data[CLICKS].edge_label_time == 11, -1] >= 0).float().mean() > 0.9


@pytest.mark.parametrize(
    'rows, message',
    [
        (
            '1,1,trn,5\n2,2,trn,6\n1,2,tst,7\n',
            r'must each have exposures and end .*, but got \[2, 0, 1\]',
        ),
        ('1,1,trn,5\n2,2,val,5\n1,2,tst,7\n', r'end before .*got \[1, 1, 1\] .*overlap in time'),
        ('1,1,trn,8\n2,2,val,6\n1,2,tst,7\n', r'end before .*got \[1, 1, 1\] .*overlap in time'),
    ],
)
def test_splits_that_no_time_cuts(tmp_path: Path, rows: str, message: str) -> None:
    rows = rows.replace('\n', ',1\n')
    dataset = load(write(tmp_path / 'raw', 'user,item,split,time,label\n' + rows).parent)
    with pytest.raises(ValueError, match=message):
        _ = dataset.split_shares


@pytest.mark.parametrize('sizes', [(1, 1, 1), (2, 1, 1), (9, 1, 5), (50, 3, 40), (1000, 1, 1)])
def test_shares_cut_between_times(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    words = np.repeat(['trn', 'val', 'tst'], sizes)
    times = 1_700_000_000 + np.cumsum(np.random.default_rng(0).integers(1, 9, size=words.size))
    rows = [f'1,{i % 2},{word},{time},1\n' for i, (word, time) in enumerate(zip(words, times))]
    write(tmp_path / 'raw', 'user,item,split,time,label\n' + ''.join(rows))
    dataset = load(tmp_path)
    shares = dataset.split_shares
    quantile = np.quantile(dataset[0][CLICKS].edge_label_time.numpy(), list(shares.values()))
    ends = np.cumsum(sizes)[:2]
    # TemporalSplit begins a part right after the whole number below.
    assert (np.floor(quantile) + 1 > times[ends - 1]).all()
    assert (np.floor(quantile) + 1 <= times[ends]).all()


def test_seed_and_cache(tmp_path: Path, many: MicroVideo) -> None:
    text = (Path(many.root) / 'raw' / 'interactions.csv').read_text()
    write(tmp_path / 'raw', text, image_feat=np.zeros((100, 4)), audio=None)
    first = triples(load(tmp_path)[0])
    assert first == triples(many[0]) == triples(load(tmp_path, force_reload=True)[0])
    for argument, before in (('seed', 0), ('num_negatives', 1), ('num_slots', 10)):
        with pytest.raises(ValueError, match=f'{argument} was {before}, is now 4'):
            load(tmp_path, **{argument: 4})
    other = load(tmp_path, seed=4, force_reload=True)[0]
    assert first != triples(other)
    # A cache knows each of its files.
    np.save(tmp_path / 'raw' / 'image_feat.npy', np.ones((100, 4), dtype=np.float16))
    with pytest.raises(ValueError, match=r'image_feat\.npy has the same size and other content'):
        load(tmp_path, seed=4)
    np.save(tmp_path / 'raw' / 'text.npy', np.ones((100, 4)))
    with pytest.raises(ValueError, match=r'text\.npy is new'):
        load(tmp_path, seed=4)


def test_parquet_reads_as_csv(tmp_path: Path) -> None:
    text = 'user,item,split,label,time\n7,3,tst,1,90\n5,0,trn,1,10\n7,1,train,0,11\n'
    write(tmp_path / 'csv' / 'raw', text)
    raw = write(tmp_path / 'parquet' / 'raw', text)
    copy_to_parquet(f"FROM '{raw}/interactions.csv'", raw)
    with pytest.raises(ValueError, match=r'one of interactions\.csv and .*\.parquet, but got both'):
        load(raw.parent)
    (raw / 'interactions.csv').unlink()
    one, other = load(tmp_path / 'csv')[0], load(tmp_path / 'parquet')[0]
    assert triples(one) == triples(other)
    assert one[CLICKS].edge_label_split.tolist() == other[CLICKS].edge_label_split.tolist()


@pytest.mark.parametrize(
    'select, message',
    [
        (
            '1 AS "user", 1.5 AS item',
            r"column 'item' must hold whole numbers, but got DECIMAL\(2,1\)",
        ),
        (
            '1 AS "user", now() AS time, 1 AS item',
            "'time' must hold whole numbers, but got TIMESTAMP",
        ),
        (
            '1 AS "user", 1 AS item, \'x\' AS label',
            "column 'label' must hold 0 or 1, but got VARCHAR",
        ),
        ('1 AS "user", 1 AS item, 2 AS split', "column 'split' must hold words, but got INTEGER"),
        (
            '1 AS "user", 1 AS thing',
            "must have a column 'item', but its columns are 'user', 'thing'",
        ),
        (
            'unnest([1, 2]) AS "user", unnest([4, 5])::UINTEGER AS item',
            r"s\.parquet, row 2: column 'item' must hold an item from 0 to 4, a row.*, but got 5",
        ),
        (
            '1 AS "user", 1 AS item, unnest([true, NULL]) AS label',
            "row 2: column 'label' must hold 0 or 1, but got nothing",
        ),
    ],
)
def test_bad_parquet(tmp_path: Path, select: str, message: str) -> None:
    raw = write(tmp_path / 'raw', '')
    (raw / 'interactions.csv').unlink()
    copy_to_parquet(f'SELECT {select}', raw)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    assert not (tmp_path / 'processed').exists()


@pytest.mark.parametrize(
    'text, message',
    [
        (
            'user,item\n1,1\n1,5\n',
            "line 3: column 'item' must hold an item from 0 to 4, a .*, but got 5",
        ),
        ('user,item\n1,1\n1,-1\n', "line 3: column 'item' must hold an item from 0 .*, but got -1"),
        ('user,item\n1,1\n1,x\n', "line 3: column 'item' must hold a whole number, but got 'x'"),
        ('user,item\n1,1\n,2\n', "line 3: column 'user' must hold a whole number, but got nothing"),
        (
            'user,item,time\n1,1,\n',
            "line 2: column 'time' must hold a whole number, but got nothing",
        ),
        ('user,item,label\n1,1,2\n', "line 2: column 'label' must hold 0 or 1, but got 2"),
        (
            'user,item,split\n1,1,trn\n1,2,dev\n',
            "line 3: column 'split' must hold one of trn, train, val, valid, vali.*, but got 'dev'",
        ),
        (
            'user,item,split\n1,1,\n',
            "line 2: column 'split' must hold one of trn, .*, but got nothing",
        ),
        ('user,thing\n1,1\n', "must have a column 'item', but its columns are 'user', 'thing'"),
        ('user,item\n', 'must hold rows'),
        ('', 'must have a header .* is empty'),
    ],
)
def test_bad_interactions(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / 'raw', text)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path)
    assert str(tmp_path / 'raw' / 'interactions.csv') in str(error.value)
    assert not (tmp_path / 'processed').exists()


@pytest.mark.parametrize(
    'features, message',
    [
        (
            {'audio': AUDIO[:4]},
            r'have a row an item, but got 4 in .*audio\.npy, 5 in .*image_feat\.npy',
        ),
        (
            {'audio_feat': AUDIO},
            r"audio_feat\.npy must name a modality .* names 'audio', as .*audio\.npy does",
        ),
        (
            {'audio': [1, 2]},
            r'audio\.npy must hold one array of .* shape .*, but got float16 of shape \[2\]',
        ),
        (
            {'audio': [[]] * 5},
            r'audio\.npy must hold one array of .* shape .*, but got float16 of shape \[5, 0\]',
        ),
        (
            {'audio': [[0, 1], [0, NAN], [0, 1], [0, 1], [0, 1]]},
            r'audio\.npy must hold numbers that are finite .*, but got nan in row 1, column 1',
        ),
        (
            {'image_feat': [[1e9, 0]] * 5},
            r'image_feat\.npy must hold numbers .*, but got inf in row 0, column 0',
        ),
    ],
)
def test_bad_features(tmp_path: Path, features: dict[str, Any], message: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'overflow')
        write(tmp_path / 'raw', 'user,item\n1,0\n2,1\n', **features)
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    assert not (tmp_path / 'processed').exists()


def test_features_that_are_no_numbers(tmp_path: Path) -> None:
    raw = write(tmp_path / 'raw', 'user,item\n1,0\n2,1\n')
    for value in (np.array([['a', 'b']] * 5), np.ones((5, 2), dtype=bool)):
        np.save(raw / 'audio.npy', value)
        with pytest.raises(
            ValueError, match=r'audio\.npy must hold .*, but got (<U1|bool) of shape \[5, 2\]'
        ):
            load(tmp_path)
    np.save(raw / 'audio.npy', np.array([{}, []], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r'audio\.npy must be a NumPy file of numbers'):
        load(tmp_path)
    with open(raw / 'audio.npy', 'wb') as file:
        np.savez(file, a=np.ones((5, 2)))
    with pytest.raises(ValueError, match=r'audio\.npy must hold one array .* an archive'):
        load(tmp_path)
    np.save(raw / '_feat.npy', np.ones((5, 2)))
    with pytest.raises(
        ValueError, match=r'_feat\.npy must name a modality of its own, as .*, but names none'
    ):
        load(tmp_path)
    (raw / '_feat.npy').unlink()
    for content in (b'', b'features'):
        (raw / 'audio.npy').write_bytes(content)
        with pytest.raises(ValueError, match=r'audio\.npy must be a NumPy file of numbers'):
            load(tmp_path)
    np.save(raw / 'audio.npy', np.arange(10).reshape(5, 2))
    assert load(tmp_path)[0]['item'].x_audio.tolist() == [[0, 1], [2, 3]]
    np.save(raw / 'audio.npy', np.full((5, 2), 1e300))
    with pytest.raises(
        ValueError, match=r'audio\.npy must hold .*, but got inf in row 0, column 0'
    ):
        load(tmp_path, force_reload=True)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='<modality>_feat.npy or .* found nothing'):
        load(tmp_path)
    raw = write(tmp_path / 'raw', 'user,item\n1,0\n', image_feat=None, audio=None)
    with pytest.raises(FileNotFoundError, match=r'found interactions\.csv\.$'):
        load(tmp_path)
    (raw / 'interactions.csv').unlink()
    np.save(raw / 'audio.npy', np.ones((5, 2)))
    with pytest.raises(FileNotFoundError, match=r'interactions\.parquet .* found audio\.npy\.$'):
        load(tmp_path)


def test_wrong_arguments(tmp_path: Path) -> None:
    for arguments, error, message in (
        ({'num_negatives': 0}, ValueError, "'num_negatives' must be at least 1, but got 0"),
        ({'num_slots': 2.5}, TypeError, "'num_slots' must be an integer, but got 2.5"),
        ({'num_slots': 1}, ValueError, "'num_slots' must be at least 2, but got 1"),
        ({'seed': -1}, ValueError, "'seed' must be at least 0, but got -1"),
        ({'seed': 0.5}, TypeError, "'seed' must be an integer, but got 0.5"),
    ):
        with pytest.raises(error, match=message):
            load(tmp_path, **arguments)


def test_tiktok(tmp_path: Path, mag_data: Path) -> None:
    (tmp_path / 'raw').symlink_to(mag_data / 'tiktok')
    dataset = load(tmp_path)
    data = dataset[0]
    clicks, item = data[CLICKS], data['item']
    assert (data['user'].num_nodes, item.num_nodes) == (9308, 6710)
    assert clicks.edge_index.size(1) == 68_722
    assert clicks.edge_label.numel() == 137_444 and clicks.edge_label.sum() == 68_722
    assert clicks.edge_label_split.bincount().tolist() == [2 * 59_541, 2 * 3051, 2 * 6130]

    with open(mag_data / 'tiktok' / 'interactions.csv') as file:
        rows = [(int(row['user']), int(row['item']), row['split']) for row in csv.DictReader(file)]
    for node in ('user', 'item'):
        assert dataset.raw_ids[node].tolist() == list(range(data[node].num_nodes))
    known: set[tuple[int, int]] = set()
    for code, name in enumerate(('trn', 'val', 'tst')):
        expected = {(user, item) for user, item, split in rows if split == name}
        known |= expected
        of_split = clicks.edge_label_split == code
        for label in (1, 0):
            chosen = of_split & (clicks.edge_label == label)
            pairs = [tuple(pair) for pair in clicks.edge_label_index[:, chosen].t().tolist()]
            assert len(pairs) == len(expected)
            if label == 1:
                assert set(pairs) == expected
            else:
                assert not set(pairs) & known
    for name in ('image', 'audio'):
        features = np.load(mag_data / 'tiktok' / f'{name}_feat.npy')
        assert np.array_equal(item[f'x_{name}'].numpy(), features.astype(np.float32))
        assert item[f'has_{name}'].all()
    train, val, test = check_splits(dataset)
    sizes = [part[CLICKS].edge_label.numel() for part in (train, val, test)]
    assert sizes == [107_172, 6102, 12_260]
    assert [part[CLICKS].time.numel() for part in (val, test)] == [59_541, 62_592]
