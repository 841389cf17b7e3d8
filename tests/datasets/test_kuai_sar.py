import json
import random

import pytest
import torch

from mag.datasets import KuaiSAR
from mag.loader import PathSampler
from mag.transforms import MacroCoarsen, TargetCounts, TemporalSplit

CLICKS = ('user', 'clicks', 'item')
# The columns of both releases in the order of their files.
REC = {
    'small': 'user_id,item_id,duration_ms,playing_time,timestamp,forward,like,follow,'
    'search_item_related,search,click,time',
    'full': 'user_id,item_id,duration_ms,playing_time,timestamp,forward,like,follow,'
    'search_photo_related,search,click,time',
}
SRC = {
    'small': 'keyword,item_id,click_cnt,search_session_id,item_type,user_id,'
    'search_session_timestamp,search_source,search_session_time',
    'full': 'user_id,search_session_id,search_session_timestamp,search_session_source,keyword,'
    'item_id,click_cnt,item_type,time',
}
USER = {
    'small': 'user_id,onehot_feat1,onehot_feat2,search_active_level,reco_active_level',
    'full': 'user_id,onehot_feat1,onehot_feat2,search_active_level,rec_active_level',
}
LEVELS = ('first', 'second', 'third', 'fourth')
IDS_AND_NAMES = ','.join(f'{level}_level_category_{x}' for level in LEVELS for x in ('id', 'name'))
NAMES_EN = ','.join(f'{level}_level_category_name_en' for level in LEVELS)
ITEM = {
    'small': 'item_id,caption,author_id,item_type,upload_time,upload_type,music_id,'
    f'{IDS_AND_NAMES},{NAMES_EN}',
    'full': f'item_id,{IDS_AND_NAMES},caption,author_id,item_type,upload_time,upload_type,'
    f'{NAMES_EN}',
}
TEN = '[10, 11, 12, 13, 14, 15, 16, 17, 18, 19'


def row(header, **values):
    known = {
        'time': '2023-05-22 15:53:20',
        'search_session_time': '2023-05-22 15:53:20',
        'search_source': 'USER_INPUT',
        'search_session_source': 'USER_INPUT',
        'caption': '"[1, 213, 24]"',
        'upload_time': '2023-04-22',
        'first_level_category_name': '搞笑',
        'first_level_category_name_en': '"Film, Television"',
    } | values
    return ','.join(str(known.get(name, 0)) for name in header.split(',')) + '\n'


def rec(user, item, time, click, name='small'):
    return row(REC[name], user_id=user, item_id=item, timestamp=time, click=click)


def src(user, item, time, clicks, keyword, name='small'):
    return row(
        SRC[name],
        user_id=user,
        item_id=item,
        search_session_timestamp=time,
        click_cnt=clicks,
        keyword=f'"{keyword}"' if keyword else '',
        item_type='VIDEO',
    )


def user(user, first, second, search, recommendation, name='small'):
    return row(
        USER[name],
        user_id=user,
        onehot_feat1=first,
        onehot_feat2=second,
        search_active_level=search,
        rec_active_level=recommendation,
        reco_active_level=recommendation,
    )


def item(item, levels, author, item_type='NORMAL', upload_type='Kmovie', name='small'):
    return row(
        ITEM[name],
        item_id=item,
        author_id=author,
        item_type=item_type,
        upload_type=upload_type,
        **{f'{level}_level_category_id': value for level, value in zip(LEVELS, levels)},
    )


def write(folder, name='small', **files):
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        'rec_inter': REC[name]
        + '\n'
        + rec(7, 100, '1684742001500.0', 1, name)
        + rec(3, 500, 1_684_742_000_999, 0, name)
        # Logged twice; the click is of one of them.
        + rec(7, 300, 1_684_742_009_000, 0, name)
        + rec(7, 300, 1_684_742_009_000, 1, name)
        # At the millisecond of a search result of the same item, which is another exposure.
        + rec(7, 100, 1_684_742_003_000, 0, name),
        'src_inter': SRC[name]
        + '\n'
        + src(7, 100, 1_684_742_003_000, 2, '[30, 4, 30]', name)
        + src(7, 103_656_000_000, 1_684_742_003_000, 0, '[30, 4, 30]', name)
        + src(5, 500, 1_684_742_000_998, 1, '[]', name)
        + src(5, 100, 1_684_742_008_000, 0, '', name)
        + src(5, 100, 1_684_742_008_000, 1, '[4]', name)
        + src(5, 100, 1_684_742_008_000, 0, '[4]', name),
        'user_features': USER[name]
        + '\n'
        + user(7, 2, 0, 6, 3, name)
        + user(99, 1, 1, 1, 1, name)
        + user(5, 0, 11, '', 0, name),
        'item_features': ITEM[name]
        + '\n'
        + item(500, (9, 136, 0, 0), 40, name=name)
        + item(100, (0, 0, 0, 0), 0, 'AD', 'LongImport', name)
        + item(9_999, (8, 8, 8, 8), 8, name=name)
        + item(300, (10, 136, '', ''), 5, '', '', name)
        + item(300, (11, 137, 20, ''), 6, 'AD', 'Kmovie', name),
    }
    for file, text in (texts | files).items():
        if text is not None:
            (folder / f'{file}.csv').write_text(text, encoding='utf-8')


@pytest.mark.parametrize(
    'name, folder',
    [('small', ''), ('small', 'KuaiSAR_final'), ('full', ''), ('full', 'KuaiSAR_v2')],
)
def test_golden_rows(tmp_path, name, folder):
    write(tmp_path / 'raw' / folder, name)
    dataset = KuaiSAR(tmp_path, name, log=False)
    data, names = dataset[0], dataset.names
    assert data.validate()
    assert dataset.raw_ids['user'].tolist() == [3, 5, 7]
    assert dataset.raw_ids['item'].tolist() == [100, 300, 500, 103_656_000_000]
    store = data[CLICKS]
    # By millisecond: (5, 500) searched, (3, 500), (7, 100), then (7, 100) recommended and two
    # results of a search, two searches of 5, and (7, 300).
    assert store.edge_label_index.tolist() == [
        [1, 0, 2, 2, 2, 2, 1, 1, 2],
        [2, 2, 0, 0, 0, 3, 0, 0, 1],
    ]
    start = 1_684_742_000
    assert store.edge_label_time.tolist() == [
        start + second for second in (0, 0, 1, 3, 3, 3, 8, 8, 9)
    ]  # fmt: skip
    assert store.edge_label.tolist() == [1, 0, 1, 0, 1, 0, 0, 1, 1]
    assert store.edge_label_domain.tolist() == [1, 0, 0, 0, 1, 1, 1, 1, 0]
    assert names['domain'] == ['recommendation', 'search']
    assert store.num_domain == 2
    # A search without words has the word `unknown`; the ids of the others are in their order.
    assert names['query'] == ['', 'unknown', '4', '30']
    assert store.num_query == 4
    empty, unknown, words, word = [0, -1, -1], [1, -1, -1], [3, 2, 3], [2, -1, -1]
    assert store.edge_label_query.dtype == torch.long
    assert store.edge_label_query.tolist() == [
        unknown, empty, empty, empty, words, words, unknown, word, empty
    ]  # fmt: skip
    assert store.edge_index.tolist() == [[1, 2, 2, 1, 2], [2, 0, 0, 0, 1]]
    assert store.time.tolist() == [start + second for second in (0, 1, 3, 8, 9)]
    assert store.query.tolist() == [unknown, empty, words, word, empty]
    assert store.domain.tolist() == [1, 0, 1, 1, 0]
    assert dataset.num_duplicates == 2
    assert set(store.keys()) == {
        *('edge_index', 'time', 'query', 'domain', 'num_query', 'num_domain'),
        *('edge_label', *(f'edge_label_{x}' for x in ('index', 'time', 'query', 'domain'))),
    }

    # The user 3 and the item 103656000000 have no features.
    for attribute, known, codes in (
        ('onehot_feat1', ['unknown', '0', '2'], [0, 1, 2]),
        ('onehot_feat2', ['unknown', '0', '11'], [0, 2, 1]),
        ('search_active_level', ['unknown', '6'], [0, 0, 1]),
        ('rec_active_level', ['unknown', '0', '3'], [0, 1, 2]),
    ):
        assert names[attribute] == known
        assert data['user'][attribute].tolist() == codes
        assert data['user'][f'num_{attribute}'] == len(known)
    for attribute, known, codes in (
        ('category', ['unknown', '9', '10'], [0, 2, 1, 0]),
        ('second_level_category', ['unknown', '136'], [0, 1, 1, 0]),
        ('third_level_category', ['unknown', '20'], [0, 1, 0, 0]),
        ('fourth_level_category', ['unknown'], [0, 0, 0, 0]),
        ('author_id', ['unknown', '5', '40'], [0, 1, 2, 0]),
        ('item_type', ['unknown', 'AD', 'NORMAL'], [1, 1, 2, 0]),
        ('upload_type', ['unknown', 'Kmovie', 'LongImport'], [2, 1, 1, 0]),
    ):
        assert names[attribute] == known
        assert data['item'][attribute].tolist() == codes
        assert data['item'][f'num_{attribute}'] == len(known)


def test_long_queries_keep_ten_terms(tmp_path):
    searches = [
        src(1, 1, 1_000, 1, f'{TEN}]'),
        src(1, 1, 2_000, 0, f'{TEN}, 20, 10]'),
        src(1, 1, 3_000, 0, '[ 9 ,-7]'),
    ]
    write(tmp_path / 'raw', src_inter=SRC['small'] + '\n' + ''.join(searches))
    dataset = KuaiSAR(tmp_path, log=False)
    store = dataset[0][CLICKS]
    # The word 20 is in no query that was kept.
    assert dataset.names['query'] == ['', '-7', '9', *map(str, range(10, 20))]
    words = list(range(3, 13))
    assert store.edge_label_query[:3].tolist() == [words, words, [2, 1, *[-1] * 8]]
    assert store.query[0].tolist() == words
    assert (store.edge_label_query[3:] == torch.tensor([0, *[-1] * 9])).all()


@pytest.mark.parametrize('missing', ['search', 'recommendation'])
def test_one_log_may_be_empty(tmp_path, missing):
    if missing == 'search':
        write(tmp_path / 'raw', src_inter=SRC['small'] + '\n')
    else:
        write(tmp_path / 'raw', rec_inter=REC['small'] + '\n')
    dataset = KuaiSAR(tmp_path, log=False)
    store = dataset[0][CLICKS]
    assert store.num_domain == 2 and len(dataset.names['domain']) == 2
    if missing == 'search':
        assert store.edge_label_domain.tolist() == [0, 0, 0, 0]
        assert store.edge_label_query.tolist() == [[0]] * 4
        assert dataset.names['query'] == ['']
        assert dataset.raw_ids['user'].tolist() == [3, 7]
    else:
        assert store.edge_label_domain.tolist() == [1] * 5
        assert store.edge_label_query.tolist() == [
            [1, -1, -1], [3, 2, 3], [3, 2, 3], [1, -1, -1], [2, -1, -1]
        ]  # fmt: skip
        assert dataset.names['query'] == ['', 'unknown', '4', '30']
        assert dataset.raw_ids['user'].tolist() == [5, 7]


def test_clicks_alone_are_held_once(tmp_path):
    write(
        tmp_path / 'raw',
        rec_inter=REC['small'] + '\n' + rec(1, 1, 2_000, 1),
        src_inter=SRC['small'] + '\n' + src(1, 1, 1_000, 1, '[5]'),
    )
    store = KuaiSAR(tmp_path, log=False)[0][CLICKS]
    assert store.edge_index.tolist() == store.edge_label_index.tolist() == [[0, 0], [0, 0]]
    assert store.query.tolist() == store.edge_label_query.tolist() == [[1], [0]]
    assert store.domain.tolist() == [1, 0]


def test_equals_plain_python(tmp_path):
    draw = random.Random(0)
    merged, rows = {}, {'rec': [], 'src': []}
    for _ in range(4_000):
        who, what, when = draw.randrange(20), draw.randrange(30), draw.randrange(3_000_000)
        when -= when % draw.choice((1, 500_000))
        clicks = max(0, draw.randrange(-2, 3))
        if draw.random() < 0.5:
            query, clicks = None, min(clicks, 1)
            rows['rec'].append(rec(who, what, when, clicks))
        else:
            query = tuple(draw.choices(range(5, 40), k=draw.randrange(14)))
            rows['src'].append(src(who, what, when, clicks, json.dumps(query)))
        # Of the same time, recommendations come first, and each in the order of its file.
        place = query is not None, len(rows['src' if query is not None else 'rec'])
        key = when, who, what, query
        label, first = merged.get(key, (0, place))
        merged[key] = max(label, min(clicks, 1)), first
    write(
        tmp_path / 'raw',
        rec_inter=REC['small'] + '\n' + ''.join(rows['rec']),
        src_inter=SRC['small'] + '\n' + ''.join(rows['src']),
    )
    expected = sorted(merged.items(), key=lambda event: (event[0][0], event[1][1]))
    dataset = KuaiSAR(tmp_path, log=False)
    store, names = dataset[0][CLICKS], dataset.names
    assert dataset.num_duplicates == 4_000 - len(expected) > 0
    assert store.edge_label_time.tolist() == [key[0] // 1000 for key, _ in expected]
    assert store.edge_label_index.t().tolist() == [list(key[1:3]) for key, _ in expected]
    assert store.edge_label.tolist() == [label for _, (label, _) in expected]
    assert store.edge_label_domain.tolist() == [float(key[3] is not None) for key, _ in expected]
    found = [[names['query'][x] for x in query if x != -1] for query in store.edge_label_query]
    assert found == [
        [''] if query is None else [str(word) for word in query[:10]] or ['unknown']
        for (*_, query), _ in expected
    ]
    clicked = store.edge_label > 0
    for of_click in ('time', 'query', 'domain'):
        assert torch.equal(store[of_click], store[f'edge_label_{of_click}'][clicked])
    assert torch.equal(store.edge_index, store.edge_label_index[:, clicked])


def test_no_row_reads_a_click_of_its_own_session(tmp_path):
    def read(name, is_other):
        r"""When rows are, what counts they read and how many clicks paths could draw for them, if
        other results of the session 100 are clicked."""
        draw, searches = random.Random(0), []
        for session in range(120):
            # Two sessions begin in each second.
            who, when, what = session % 4, 500 * session, draw.sample(range(12), 4)
            for item in what:
                is_clicked = draw.random() < 0.5
                clicks = int(is_clicked ^ (is_other and session == 100))
                searches.append(src(who, item, when, clicks, '[5]'))
        write(
            tmp_path / name / 'raw',
            rec_inter=REC['small'] + '\n',
            src_inter=SRC['small'] + '\n' + ''.join(searches),
        )
        data = KuaiSAR(tmp_path / name, log=False)[0]
        split = TemporalSplit(0.3, 0.6, 0.95, num_windows=1, keep_cold=True)
        coarsen = MacroCoarsen({'user': 'onehot_feat1', 'item': 'category'})
        train, part, _ = (coarsen(part) for part in split(data))
        clicks = TargetCounts().fit(train)(part, log=data)[CLICKS]
        # All clicks before a row, as none has so many.
        widths = {'user': [200], 'item': [200]}
        paths = PathSampler(data, widths, attribute=None, replace=False).draw(
            *clicks.edge_label_index, clicks.edge_label_time, torch.Generator()
        )
        drawn = [(level[0] >= 0).sum(1) for level in paths.values()]
        read = torch.cat([clicks.edge_label_counts.flatten(1), torch.stack(drawn, dim=1)], dim=1)
        return clicks.edge_label_time, read

    (time, first), (_, second) = read('first', False), read('second', True)
    is_up_to, session = time <= 50, time == 50
    assert int(session.sum()) == 8
    assert torch.equal(first[is_up_to], second[is_up_to])
    # The sessions of the next second read them.
    assert not torch.equal(first[time == 51], second[time == 51])


@pytest.mark.parametrize('missing', ['rec_inter', 'src_inter', 'user_features', 'item_features'])
@pytest.mark.parametrize('name, archive', [('small', 'KuaiSAR.zip'), ('full', 'KuaiSAR_v2.zip')])
def test_missing_file(tmp_path, missing, name, archive):
    folder = {'small': 'KuaiSAR_final', 'full': 'KuaiSAR_v2'}[name]
    write(tmp_path / 'raw' / folder, name, **{missing: None})
    with pytest.raises(FileNotFoundError) as error:
        KuaiSAR(tmp_path, name, log=False)
    present = {'rec_inter', 'src_inter', 'user_features', 'item_features'} - {missing}
    for piece in (
        f"KuaiSAR '{name}' needs rec_inter.csv, src_inter.csv, user_features.csv, "
        'item_features.csv, together in one of',
        repr(str(tmp_path / 'raw')),
        repr(str(tmp_path / 'raw' / folder)),
        f'found {", ".join(f"{file}.csv" for file in sorted(present))}. Get {archive} from '
        'https://zenodo.org/records/8181109',
    ):
        assert piece in str(error.value)


def test_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match='found none of them'):
        KuaiSAR(tmp_path, log=False)


def test_the_other_release_is_elsewhere(tmp_path):
    write(tmp_path / 'raw' / 'KuaiSAR_v2', 'full')
    with pytest.raises(FileNotFoundError, match=r"'small' needs .* Get KuaiSAR\.zip from"):
        KuaiSAR(tmp_path, log=False)


@pytest.mark.parametrize(
    'file, text, pieces',
    [
        (
            'rec_inter',
            REC['small'] + '\n' + rec(1, 2, 3, 0) + rec(1, 2, 3, 2),
            ["rec_inter.csv, line 3: column 'click' must hold 0 or 1, but got 2"],
        ),
        (
            'rec_inter',
            REC['small'] + '\n' + rec(1, 2, 'noon', 0),
            ["rec_inter.csv, line 2: column 'timestamp' must hold a whole number, but got 'noon'"],
        ),
        (
            'rec_inter',
            REC['small'] + '\n' + rec(1, '', 3, 0),
            ["rec_inter.csv, line 2: column 'item_id' must hold a whole number, but got nothing"],
        ),
        *(
            (
                'rec_inter',
                REC['small'] + '\n' + rec(1, 2, 3, 0) + rec(*values),
                [f"rec_inter.csv, line 3: column '{column}' must hold {expected}, but got nothing"],
            )
            for column, values, expected in (
                ('user_id', ('', 2, 3, 0), 'a whole number'),
                ('timestamp', (1, 2, '', 0), 'a whole number'),
                ('click', (1, 2, 3, ''), '0 or 1'),
            )
        ),
        (
            'rec_inter',
            REC['small'].replace('click', 'clicked') + '\n',
            ["rec_inter.csv must have a column 'click', but its columns are 'user_id', 'item_id'"],
        ),
        ('rec_inter', '', ['rec_inter.csv must have a header']),
        (
            'src_inter',
            SRC['small'] + '\n' + src(1, 2, 3, 0, '[5]') + src(1, 2, 3, -1, '[5]'),
            ["src_inter.csv, line 3: column 'click_cnt' must hold a number of clicks, but got -1"],
        ),
        *(
            (
                'src_inter',
                SRC['small'] + '\n' + src(1, 2, 3, 0, '[5]') + src(*values, '[5]'),
                [
                    f"src_inter.csv, line 3: column '{column}' must hold a whole number, "
                    'but got nothing'
                ],
            )
            for column, values in (
                ('user_id', ('', 2, 3, 0)),
                ('item_id', (1, '', 3, 0)),
                ('search_session_timestamp', (1, 2, '', 0)),
                ('click_cnt', (1, 2, 3, '')),
            )
        ),
        *(
            (
                'src_inter',
                SRC['small'] + '\n' + src(1, 2, 3, 0, '[5]') + src(1, 2, 3, 0, keyword),
                [
                    f"src_inter.csv, line 3: column 'keyword' must hold a list of whole "
                    f'numbers such as [20, 34, 3], but got {keyword!r}.'
                ],
            )
            for keyword in ('[5, x]', '[5,,6]', '[5, 6', '5, 6', 'nan', '[1.5]', '[NULL]', '[5,]')
        ),
        (
            'src_inter',
            SRC['small'].replace('keyword', 'words') + '\n',
            ["src_inter.csv must have a column 'keyword'"],
        ),
        (
            'user_features',
            USER['small'] + '\n' + user(7, 2, 0, 6, 3) * 2,
            ['user_features.csv must have one row for the user 7, but got 2.'],
        ),
        (
            'user_features',
            USER['small'] + '\n' + user(7, 'x', 0, 6, 3),
            [
                "user_features.csv, line 2: column 'onehot_feat1' must hold a whole number, "
                "but got 'x'"
            ],
        ),
        (
            'user_features',
            USER['small'].replace('reco_active', 'active') + '\n',
            ["user_features.csv must have a column 'rec_active_level'"],
        ),
        (
            'item_features',
            ITEM['small'] + '\n' + item(100, (9, 1, 1, 1), 'x'),
            ["item_features.csv, line 2: column 'author_id' must hold a whole number, but got 'x'"],
        ),
        (
            'item_features',
            ITEM['small'].replace('upload_type', 'upload') + '\n',
            ["item_features.csv must have a column 'upload_type'"],
        ),
    ],
)
def test_bad_files(tmp_path, file, text, pieces):
    write(tmp_path / 'raw', **{file: text})
    with pytest.raises(ValueError) as error:
        KuaiSAR(tmp_path, log=False)
    for piece in pieces:
        assert str(tmp_path / 'raw' / piece) in str(error.value)
    assert not (tmp_path / 'processed').exists()


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match="'name' must be one of 'small', 'full', but got 'v2'"):
        KuaiSAR(tmp_path, 'v2')


def test_another_name_is_another_cache(tmp_path):
    write(tmp_path / 'raw')
    KuaiSAR(tmp_path, log=False)
    with pytest.raises(ValueError, match="name was 'small', is now 'full'"):
        KuaiSAR(tmp_path, 'full', log=False)
