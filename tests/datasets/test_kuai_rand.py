import csv
import os
from collections import defaultdict
from glob import glob

import pytest
import torch

from mag.datasets import KuaiRand

CLICKS = ('user', 'clicks', 'item')
LOG = (
    'user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,'
    'is_hate,long_view,play_time_ms,duration_ms,profile_stay_time,comment_stay_time,'
    'is_profile_enter,is_rand,tab\n'
)
USER = (
    'user_id,user_active_degree,is_lowactive_period,is_live_streamer,is_video_author,'
    'follow_user_num,follow_user_num_range,fans_user_num,fans_user_num_range,friend_user_num,'
    'friend_user_num_range,register_days,register_days_range,'
    + ','.join(f'onehot_feat{i}' for i in range(18))
    + '\n'
)
VIDEO = (
    'video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,'
    'server_width,server_height,music_id,music_type,tag\n'
)
BEHAVIORS = ('is_profile_enter', 'is_like', 'is_comment', 'is_follow', 'is_forward')


def log_row(user, video, time, click=0, hour=0, **behaviors):
    values = {
        'user_id': user,
        'video_id': video,
        'date': 20220422,
        'hourmin': hour,
        'time_ms': time,
        'is_click': click,
    } | behaviors
    return ','.join(str(values.get(name, 0)) for name in LOG.strip().split(',')) + '\n'


def user_row(user, degree='full_active', feature='1.0'):
    return (
        f'{user},{degree},0,-124,1,514,500+,150,"[100,1k)",34,"[30,60)",799,730+,'
        f'{",".join(["3"] * 17)},{feature}\n'
    )


def video_row(video, tag, author=5):
    return f'{video},{author},NORMAL,2022-04-10,Kmovie,0.0,1.0,7.0,8.0,9,4.0,{tag}\n'


def write(folder, name='pure', **files):
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        f'log_standard_4_08_to_4_21_{name}.csv': LOG
        + log_row(9, 4, 1_000_500, 1, long_view=1, is_profile_enter=1)
        + log_row(3, 4, 1_000_400, 0, long_view=1, is_like=1),
        f'log_standard_4_22_to_5_08_{name}.csv': LOG
        + log_row(9, 2, 3_000_000, 1, is_like=1, is_forward=1)
        + log_row(9, 2, 3_000_000, 1, hour=100, is_follow=1)
        + log_row(3, 7, 2_999_999, 0),
        f'log_random_4_22_to_5_08_{name}.csv': LOG + log_row(1, 1, 5, 1),
        f'user_features_{name}.csv': USER + user_row(3) + user_row(9, 'UNKNOWN', '') + user_row(1),
        f'video_features_basic_{name}.csv': VIDEO
        + video_row(1, '1')
        + video_row(4, '"39,68"', 6)
        + video_row(2, '')
        + video_row(8, '3'),
    }
    for file, text in (texts | files).items():
        if text is not None:
            (folder / file).write_text(text)


@pytest.mark.parametrize(
    'name, folder',
    [
        ('pure', ''),
        ('pure', 'data'),
        ('pure', 'KuaiRand-Pure/data'),
        ('1k', 'KuaiRand-1K/data'),
    ],
)
def test_golden_rows(tmp_path, name, folder):
    write(tmp_path / 'raw' / folder, name)
    dataset = KuaiRand(tmp_path, name, log=False)
    data, names = dataset[0], dataset.names
    assert data.validate()
    assert dataset.raw_ids['user'].tolist() == [3, 9]
    assert dataset.raw_ids['item'].tolist() == [2, 4, 7]
    store = data[CLICKS]
    # Users, videos, in milliseconds: (3, 4, 1000400), (9, 4, 1000500), (3, 7, 2999999), (9, 2, ..)
    assert store.edge_label_index.tolist() == [[0, 1, 0, 1], [1, 1, 2, 0]]
    assert store.edge_label_time.tolist() == [1000, 1000, 2999, 3000]
    assert store.edge_label.tolist() == [0, 1, 0, 1]
    assert store.edge_index.tolist() == [[1, 1], [1, 0]]
    assert store.time.tolist() == [1000, 3000]
    assert names['behavior'] == list(BEHAVIORS)
    assert names['conversion'] == ['long_view']
    # The row that was logged twice has what either of its rows has; nothing follows no click.
    assert store.edge_label_behavior.tolist() == [
        [0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 1, 0, 1, 1],
    ]
    assert store.edge_label_conversion.tolist() == [0, 1, 0, 0]
    assert store.edge_label_conversion.dtype == torch.float
    assert dataset.num_duplicates == 1

    assert names['category'] == ['unknown', '39']
    assert data['item'].category.tolist() == [0, 1, 0]
    assert [names['author_id'][code] for code in data['item'].author_id] == ['5', '6', 'unknown']
    assert names['user_active_degree'] == ['UNKNOWN', 'full_active']
    assert data['user'].user_active_degree.tolist() == [1, 0]
    assert names['fans_user_num_range'] == ['[100,1k)']
    assert names['onehot_feat17'] == ['unknown', '1.0']
    assert data['user'].onehot_feat17.tolist() == [1, 0]
    assert data['user'].num_onehot_feat17 == 2


def test_one_log_is_enough(tmp_path):
    write(tmp_path / 'raw', **{'log_standard_4_22_to_5_08_pure.csv': None})
    dataset = KuaiRand(tmp_path, log=False)
    assert dataset[0][CLICKS].edge_label_time.tolist() == [1000, 1000]
    assert dataset.raw_ids['item'].tolist() == [4]
    assert dataset.num_duplicates == 0


def test_a_log_that_came_later_is_noticed(tmp_path):
    write(tmp_path / 'raw', **{'log_standard_4_22_to_5_08_pure.csv': None})
    KuaiRand(tmp_path, log=False)
    write(tmp_path / 'raw')
    with pytest.raises(ValueError, match='log_standard_4_22_to_5_08_pure.csv is new'):
        KuaiRand(tmp_path, log=False)
    assert KuaiRand(tmp_path, force_reload=True, log=False).num_duplicates == 1


def test_equals_plain_python(tmp_path):
    root = os.environ.get('MAG_DATA')
    if root is None:
        pytest.skip('MAG_DATA, the folder of KuaiRand-Pure/, is not set')
    folder = os.path.join(root, 'KuaiRand-Pure', 'data')
    os.symlink(os.path.join(root, 'KuaiRand-Pure'), tmp_path / 'raw')
    dataset = KuaiRand(tmp_path, log=False)
    data, names, ids = dataset[0], dataset.names, dataset.raw_ids

    num_rows = num_clicked = num_unclicked = 0
    merged = defaultdict(lambda: [0] * 7)
    for path in sorted(glob(os.path.join(folder, 'log_standard_*_pure.csv'))):
        with open(path, newline='') as file:
            for row in csv.DictReader(file):
                num_rows += 1
                num_clicked += row['is_click'] == '1'
                key = int(row['time_ms']), int(row['user_id']), int(row['video_id'])
                found = [int(row[name]) for name in ('is_click', 'long_view', *BEHAVIORS)]
                num_unclicked += found[0] < found[1]
                merged[key] = [max(pair) for pair in zip(merged[key], found)]
    assert (num_rows, num_clicked) == (228_329, 100_900)
    rows = sorted(merged.items(), key=lambda row: row[0][0])
    store = data[CLICKS]
    assert dataset.num_duplicates == num_rows - len(rows) == 5885
    user = sorted({key[1] for key in merged})
    video = sorted({key[2] for key in merged})
    assert (len(user), len(video)) == (25_156, 6_361)
    assert ids['user'].tolist() == user and ids['item'].tolist() == video
    index = torch.stack(
        [
            torch.from_numpy(ids['user'])[store.edge_label_index[0]],
            torch.from_numpy(ids['item'])[store.edge_label_index[1]],
        ]
    )
    assert torch.equal(index, torch.tensor([key[1:] for key, _ in rows]).t())
    assert torch.equal(store.edge_label_time, torch.tensor([key[0] // 1000 for key, _ in rows]))
    found = torch.tensor([values for _, values in rows]).float()
    assert torch.equal(store.edge_label, found[:, 0])
    clicked = found[:, 0] > 0
    assert num_unclicked == 250
    found[~clicked] = 0
    assert torch.equal(store.edge_label_conversion, found[:, 1])
    assert torch.equal(store.edge_label_behavior, found[:, 2:])
    assert int(store.edge_label_conversion.sum()) == 70_234
    assert store.edge_label_behavior.sum(0).int().tolist() == [3920, 3181, 559, 248, 178]
    assert torch.equal(store.edge_index, store.edge_label_index[:, clicked])
    assert torch.equal(store.time, store.edge_label_time[clicked])

    with open(os.path.join(folder, 'video_features_basic_pure.csv'), newline='') as file:
        videos = {int(row['video_id']): row for row in csv.DictReader(file)}
    for name, column in (
        ('category', 'tag'),
        ('author_id', 'author_id'),
        ('music_type', 'music_type'),
        ('upload_type', 'upload_type'),
    ):
        assert [names[name][code] for code in data['item'][name]] == [
            videos[node][column].split(',')[0] or 'unknown' for node in video
        ]
        assert data['item'][f'num_{name}'] == len(names[name])
    with open(os.path.join(folder, 'user_features_pure.csv'), newline='') as file:
        users = {int(row['user_id']): row for row in csv.DictReader(file)}
    for name in ('user_active_degree', 'fans_user_num_range', 'onehot_feat3', 'onehot_feat17'):
        assert [names[name][code] for code in data['user'][name]] == [
            users[node][name] or 'unknown' for node in user
        ]


@pytest.mark.parametrize(
    'missing, present',
    [
        ('user_features_pure.csv', 'video_features_basic_pure.csv'),
        ('video_features_basic_pure.csv', 'user_features_pure.csv'),
    ],
)
def test_missing_file(tmp_path, missing, present):
    write(tmp_path / 'raw' / 'data', **{missing: None})
    with pytest.raises(FileNotFoundError) as error:
        KuaiRand(tmp_path, log=False)
    for piece in (
        missing,
        str(tmp_path / 'raw' / 'data'),
        f'{present}',
        'KuaiRand-Pure.tar.gz',
        'https://kuairand.com',
    ):
        assert piece in str(error.value)


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'log_standard_\*_pure.csv.* found none of them'):
        KuaiRand(tmp_path, log=False)


@pytest.mark.parametrize(
    'file, text, pieces',
    [
        (
            'log_standard_4_22_to_5_08_pure.csv',
            LOG.replace('is_click,', '') + '1\n',
            [
                'log_standard_4_22_to_5_08_pure.csv',
                "must have a column 'is_click'",
                "'user_id', 'video_id'",
            ],
        ),
        (
            'log_standard_4_22_to_5_08_pure.csv',
            LOG + log_row(1, 2, 3) + log_row(1, 2, 'noon'),
            ['line 3', "'time_ms' must hold a whole number, but got 'noon'"],
        ),
        (
            'log_standard_4_22_to_5_08_pure.csv',
            LOG + log_row(1, 2, 3, click=2),
            ["'is_click' must hold 0 or 1, but got 2 where user_id 1, video_id 2, time_ms 3."],
        ),
        (
            'log_standard_4_22_to_5_08_pure.csv',
            LOG + log_row(1, 2, 3, is_like=7),
            ['log_standard_4_22_to_5_08_pure.csv', "'is_like' must hold 0 or 1, but got 7"],
        ),
        (
            'log_standard_4_22_to_5_08_pure.csv',
            LOG + log_row('', 2, 3),
            ['line 2', "'user_id' must hold a whole number, but got nothing"],
        ),
        (
            'log_standard_4_22_to_5_08_pure.csv',
            '',
            ['log_standard_4_22_to_5_08_pure.csv must have a header'],
        ),
        (
            'log_standard_4_22_to_5_08_pure.csv',
            LOG + log_row(1, 2, 3, is_follow='no'),
            ['line 2', "'is_follow' must hold 0 or 1", "but got 'no'"],
        ),
        (
            'user_features_pure.csv',
            USER.replace('onehot_feat9', 'other'),
            ["must have a column 'onehot_feat9'"],
        ),
        (
            'video_features_basic_pure.csv',
            VIDEO + 'x' + video_row(1, '3'),
            [
                'video_features_basic_pure.csv, line 2',
                "'video_id' must hold a whole number, but got 'x1'",
            ],
        ),
    ],
)
def test_bad_files(tmp_path, file, text, pieces):
    write(tmp_path / 'raw', **{file: text})
    with pytest.raises(ValueError) as error:
        KuaiRand(tmp_path, log=False)
    for piece in pieces:
        assert piece in str(error.value)
    assert not (tmp_path / 'processed').exists()


@pytest.mark.parametrize(
    'file, text, match',
    [
        (
            'user_features_pure.csv',
            USER + user_row(3) + user_row(9) + user_row(3, 'low_active'),
            r'user_features_pure\.csv must have one row for the user 3, but got 2',
        ),
        (
            'video_features_basic_pure.csv',
            VIDEO + video_row(4, '1') * 3 + video_row(2, '5'),
            r'video_features_basic_pure\.csv must have one row for the item 4, but got 3',
        ),
    ],
)
def test_repeated_features(tmp_path, file, text, match):
    write(tmp_path / 'raw', **{file: text})
    with pytest.raises(ValueError, match=match):
        KuaiRand(tmp_path, log=False)


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="'name' must be one of 'pure', '1k', but got '27k'"):
        KuaiRand(tmp_path, '27k')
