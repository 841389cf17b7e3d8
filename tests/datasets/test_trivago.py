import csv
import os

import pytest
import torch

from mag.datasets import Trivago
from mag.transforms import TemporalSplit

CLICKS = ('user', 'clicks', 'item')
BEHAVIORS = {
    'image': 'interaction item image',
    'info': 'interaction item info',
    'rating': 'interaction item rating',
    'deals': 'interaction item deals',
    'search': 'search for item',
}
PLACES = ('search for destination', 'search for poi')
FILTERED = (*PLACES, 'filter selection', 'clickout item')
HEADER = (
    'user_id,session_id,timestamp,step,action_type,reference,platform,city,device,'
    'current_filters,impressions,prices\n'
)
ROME = 'IT,"Rome, Italy",desktop'


def action(
    session, time, step, action_type, reference, place=ROME, filters='', impressions='', prices=''
):
    return (
        f'{session},{time},{step},{action_type},{reference},{place},{filters},'
        f'{impressions},{prices}\n'
    )


def clickout(session, time, step, reference, impressions, prices, place=ROME, filters=''):
    return action(
        session, time, step, 'clickout item', reference, place, filters, impressions, prices
    )


SESSIONS = [
    # The item 99 is on no list.
    action('b,s1', 100, 1, 'search for destination', '"Rome, Italy"', filters='Pool|WiFi'),
    action('b,s1', 110, 2, 'interaction item image', 30),
    action('b,s1', 109, 3, 'interaction item info', 99),
    action('b,s1', 115, 4, 'interaction item image', 30),
    clickout('b,s1', 120, 5, 30, '10|20|30|10', '50|60|70|80', filters='Hotel'),
    action('b,s1', 130, 6, 'interaction item rating', 20),
    action('b,s1', 140, 7, 'interaction item deals', 40),
    action('b,s1', 150, 9, 'filter selection', 'Pool', filters='WiFi'),
    clickout('b,s1', 160, 10, 40, '20|40', '10|30', filters='Spa'),
    action('b,s1', 170, 11, 'interaction item image', 20),
    # The clickout is on no item of its list.
    action('a,s2', 135, 1, 'search for item', 20, 'DE,,mobile'),
    clickout('a,s2', 136, 2, 77, '20|10', '5|5', 'DE,,mobile'),
    action('a,s2', 137, 3, 'interaction item image', 10, 'DE,,mobile'),
    # Another session of the same id, which has none of the actions before.
    action('a,s2', 90, 1, 'interaction item info', 'unknown', 'DE,unknown,tablet'),
    clickout('a,s2', 95, 2, 10, '10', '0', 'DE,unknown,tablet'),
    # The same id of another user, who never left.
    action('c,s1', 50, 1, 'interaction item info', 10),
]


def write(folder, rows, header=HEADER):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'train.csv').write_text(header + ''.join(rows))


@pytest.mark.parametrize('folder', ['raw', 'raw/trivago'])
def test_golden_rows(tmp_path, folder):
    write(tmp_path / folder, SESSIONS)
    dataset = Trivago(tmp_path, log=False)
    data, names = dataset[0], dataset.names
    assert data.validate()
    assert dataset.raw_ids['user'].tolist() == ['a', 'b']
    assert dataset.raw_ids['item'].tolist() == [10, 20, 30, 40]
    store = data[CLICKS]
    # By time: the list of a's second session, both of b, that of a's first.
    assert store.edge_label_index.tolist() == [[0, 1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 2, 1, 3, 1, 0]]
    assert store.edge_label_time.tolist() == [95, 110, 110, 110, 130, 130, 135, 135]
    # The labels of a list are known with its clickout.
    assert store.edge_label_settled.tolist() == [95, 120, 120, 120, 160, 160, 136, 136]
    assert store.edge_label_settled.dtype == torch.long
    assert store.edge_label.tolist() == [1, 0, 0, 1, 1, 1, 1, 0]
    assert names['conversion'] == ['clickout']
    assert store.edge_label_conversion.tolist() == [1, 0, 0, 1, 0, 1, 0, 0]
    assert names['behavior'] == ['image', 'info', 'rating', 'deals', 'search']
    assert store.edge_label_behavior.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 0, 0],
    ]
    # The item 40 was acted on at 140, ten seconds after the list's first item.
    assert store.time.tolist() == [95, 110, 130, 135, 140]
    assert store.edge_index.tolist() == [[0, 1, 1, 0, 1], [0, 2, 1, 1, 3]]
    assert names['feature'] == ['position', 'price', 'relative_price']
    expected = torch.tensor(
        [
            [0, 0, 1],
            [0, 50, 50 / 65],
            [1, 60, 60 / 65],
            [2, 70, 70 / 65],
            [0, 10, 0.5],
            [1, 30, 1.5],
            [0, 5, 1],
            [1, 5, 1],
        ]
    )
    assert torch.equal(store.edge_label_x, expected)
    for name, known, codes in (
        ('platform', ['DE', 'IT'], [0, 1, 1, 1, 1, 1, 0, 0]),
        ('device', ['desktop', 'mobile', 'tablet'], [2, 0, 0, 0, 0, 0, 1, 1]),
        ('city', ['unknown', 'Rome, Italy'], [0, 1, 1, 1, 1, 1, 0, 0]),
    ):
        assert names[name] == known
        assert store[f'edge_label_{name}'].tolist() == codes
        assert store[f'num_{name}'] == len(known)
    # The second list of b came with the filters of the clickout before it.
    assert names['query'] == ['', 'Hotel', 'Pool', 'Rome, Italy', 'WiFi']
    assert store.num_query == 5
    none, first, second = [0, -1, -1], [3, 2, 4], [3, 1, -1]
    assert store.edge_label_query.dtype == torch.long
    assert store.edge_label_query.tolist() == [
        none, first, first, first, second, second, none, none
    ]  # fmt: skip
    assert store.query.tolist() == [none, first, second, none, second]
    assert names['domain'] == ['recommendation', 'search']
    assert store.num_domain == 2
    assert store.edge_label_domain.tolist() == [0, 1, 1, 1, 1, 1, 0, 0]
    assert store.domain.tolist() == [0, 1, 1, 0, 1]
    assert dataset.num_duplicates == 0


def queries_of(dataset):
    r"""The terms of each exposure in words, and None of a recommendation."""
    store, names = dataset[0][CLICKS], dataset.names['query']
    for query, domain in zip(store.edge_label_query.tolist(), store.edge_label_domain.tolist()):
        if domain == 0:
            assert query == [0] + [-1] * (len(query) - 1)
            yield None
        else:
            terms = [names[term] for term in query if term != -1]
            assert 0 not in query and [term != -1 for term in query] == sorted(
                (term != -1 for term in query), reverse=True
            )
            yield terms


PARIS = 'IT,"Paris, France",desktop'
LOOK = 'interaction item image'


@pytest.mark.parametrize(
    'rows, expected',
    [
        # What is logged with a clickout counts for the next list, and no longer than until then.
        (
            [
                (1, 'clickout', 1, ROME, 'Pool|Hotel'),
                (2, 'clickout', 1, ROME, ''),
                (3, 'clickout', 1, ROME, ''),
            ],
            [None, ['Pool', 'Hotel'], None],
        ),
        # A filter that is selected again goes away, whatever its row refers to.
        (
            [
                (1, 'filter selection', 'Pool', ROME, 'Pool'),
                (2, 'filter selection', 'Hotel', ROME, 'Pool|Hotel'),
                (3, 'filter selection', 'Pool', ROME, 'Hotel'),
                (4, 'clickout', 1, ROME, 'Hotel'),
                (5, 'filter selection', 'Hotel', ROME, ''),
                (6, 'clickout', 1, ROME, 'Spa'),
            ],
            [['Hotel'], None],
        ),
        # Filters and searches after the first look at the list are not those that it came with.
        (
            [
                (1, 'search for poi', 'Colosseum', ROME, ''),
                (2, LOOK, 2, ROME, ''),
                (3, 'search for poi', 'Forum', ROME, ''),
                (4, 'filter selection', 'Pool', ROME, 'Pool'),
                (5, 'clickout', 1, ROME, 'Pool'),
                (6, LOOK, 2, ROME, ''),
                (7, 'clickout', 1, ROME, ''),
            ],
            [['Colosseum'], ['Forum', 'Pool']],
        ),
        # A look at an item outside of the list is none at the list.
        (
            [
                (1, LOOK, 9, ROME, ''),
                (2, 'filter selection', 'Pool', ROME, 'Pool'),
                (3, 'clickout', 9, ROME, ''),
            ],
            [['Pool']],
        ),
        # A search without filters takes them away; it stays itself until the next one.
        (
            [
                (1, 'filter selection', 'Pool', ROME, 'Pool'),
                (2, 'search for destination', 'Rome', ROME, ''),
                (3, 'clickout', 1, ROME, ''),
                (4, 'search for item', 9, ROME, ''),
                (5, 'clickout', 1, ROME, ''),
                (6, 'search for destination', 'Paris', PARIS, 'Spa'),
                (7, 'clickout', 1, PARIS, 'Spa'),
            ],
            [['Rome'], ['Rome'], ['Paris', 'Spa']],
        ),
        # It ends where the session has gone to another city before.
        (
            [
                (1, 'search for destination', 'Rome', ROME, 'Pool'),
                (2, 'clickout', 1, PARIS, 'Pool'),
                (3, 'clickout', 1, PARIS, 'Pool'),
                (4, 'clickout', 1, ROME, ''),
            ],
            [['Rome', 'Pool'], ['Pool'], ['Pool']],
        ),
        # The city may be missing.
        (
            [
                (1, 'search for destination', 'Rome', 'IT,,desktop', ''),
                (2, 'clickout', 1, 'IT,,desktop', ''),
            ],
            [['Rome']],
        ),
        (
            [
                (1, 'search for destination', 'unknown', ROME, ''),
                (2, 'clickout', 1, ROME, ''),
                (3, 'search for destination', '', ROME, ''),
                (4, 'clickout', 1, ROME, '|Pool||unknown'),
                (5, 'clickout', 1, ROME, ''),
            ],
            [['unknown'], ['unknown'], ['Pool']],
        ),
        (
            [
                (1, 'search for destination', 'Rome', ROME, 'a|b|c|d|e|f|g|h|i|j|k'),
                (2, 'clickout', 1, ROME, ''),
            ],
            [['Rome', *'abcdefghi']],
        ),
        # Nothing is known of another session.
        (
            [
                (1, 'search for destination', 'Rome', ROME, 'Pool'),
                (2, 'clickout', 1, ROME, 'Pool'),
                (1, 'clickout', 1, ROME, 'Pool'),
            ],
            [['Rome', 'Pool'], None],
        ),
    ],
)
def test_queries(tmp_path, rows, expected):
    lines = []
    for time, (step, kind, reference, place, filters) in enumerate(rows):
        if kind == 'clickout':
            lines.append(clickout('a,s', time, step, reference, '1|2', '5|5', place, filters))
        else:
            lines.append(action('a,s', time, step, kind, reference, place, filters))
    write(tmp_path / 'raw', lines)
    dataset = Trivago(tmp_path, log=False)
    assert list(queries_of(dataset)) == [query for query in expected for _ in range(2)]
    # What is beyond the tenth term of every query has no id.
    known = {term for query in expected for term in query or []}
    assert dataset.names['query'] == [
        '', *(['unknown'] if 'unknown' in known else []), *sorted(known - {'unknown'})
    ]  # fmt: skip
    longest = max((len(query) for query in expected if query), default=1)
    assert dataset[0][CLICKS].edge_label_query.size(1) == longest


def test_later_actions_change_nothing_before(tmp_path):
    later = [
        action('b,s1', 170, 12, 'interaction item info', 30),
        action('b,s1', 170, 13, 'search for poi', 'Later', filters='Later'),
        clickout('b,s1', 171, 14, 10, '10|20|30', '1|2|3', filters='Later'),
    ]
    write(tmp_path / 'before' / 'raw', SESSIONS)
    write(tmp_path / 'after' / 'raw', [*SESSIONS[:10], *later, *SESSIONS[10:]])
    datasets = [Trivago(tmp_path / name, log=False) for name in ('before', 'after')]
    before, after = (dataset[0][CLICKS] for dataset in datasets)
    assert after.edge_label_time.tolist() == [*before.edge_label_time.tolist(), 170, 170, 170]
    for name in ('index', 'conversion', 'behavior', 'x', 'platform', 'device', 'city'):
        value = after[f'edge_label_{name}']
        earlier = value[:, :8] if name == 'index' else value[:8]
        assert torch.equal(earlier, before[f'edge_label_{name}'])
    assert torch.equal(after.edge_index[:, :5], before.edge_index)
    # What was searched at 170 comes after the first action on the later list, too.
    queries = [list(queries_of(dataset)) for dataset in datasets]
    assert queries[1] == [*queries[0], *[['Rome, Italy', 'Spa']] * 3]
    assert torch.equal(after.domain[:5], before.domain)
    # What was done to the item 20 at 170 belongs to the later list.
    assert after.edge_label[8:].tolist() == [1, 1, 1]
    assert after.edge_label_behavior[8:, :2].tolist() == [[0, 0], [1, 0], [0, 1]]
    assert after.time[5:].tolist() == [170, 170, 171]


def test_a_clock_that_goes_back(tmp_path):
    rows = [
        action('a,s', 105, 1, 'interaction item image', 2),
        clickout('a,s', 100, 2, 1, '1|2', '3|3'),
    ]
    write(tmp_path / 'raw', rows)
    store = Trivago(tmp_path, log=False)[0][CLICKS]
    assert store.edge_label_time.tolist() == [100, 100]
    assert store.time.tolist() == [100, 105]
    assert store.edge_index[1].tolist() == [0, 1]
    assert store.edge_label_settled.tolist() == [105, 105]


def test_lists_that_cross_a_cutoff(tmp_path):
    r"""A list is looked at before the test part begins, and left by a clickout after: that it was
    is not known when training ends."""
    rows = []
    for number in range(20):
        rows.append(action(f'u{number % 2},s{number}', 100 * number, 1, BEHAVIORS['info'], 1))
        # Six of the last ones end ten minutes after they began.
        end = 100 * number + (600 if 8 <= number < 14 else 10)
        rows.append(clickout(f'u{number % 2},s{number}', end, 2, 2, '1|2', '3|3'))
    write(tmp_path / 'raw', rows)
    data = Trivago(tmp_path, log=False)[0]
    store = data[CLICKS]
    assert (store.edge_label_settled - store.edge_label_time).unique().tolist() == [10, 600]
    train, val, test = TemporalSplit(0.3, 0.6, 0.8, num_windows=2)(data)
    cutoffs = [int(part[CLICKS].cutoff[0]) for part in (train, val, test)]
    assert cutoffs == [570, 1140, 1521]
    # Those of 800 to 1100 end from 1400 on, those of 1200 and 1300 from 1800 on.
    assert train[CLICKS].edge_label_time.unique().tolist() == [600, 700]
    assert val[CLICKS].edge_label_time.unique().tolist() == [1400, 1500]
    assert test[CLICKS].edge_label_time.unique().tolist() == [1600, 1700, 1800, 1900]
    assert [part[CLICKS].num_unsettled for part in (train, val, test)] == [8, 4, 0]
    assert [part[CLICKS].num_dropped for part in (train, val, test)] == [0, 0, 0]


def test_how_many_real_lists_cross_a_cutoff(tmp_path, mag_data):
    os.symlink(mag_data / 'trivago', tmp_path / 'raw')
    data = Trivago(tmp_path, log=False)[0]
    store = data[CLICKS]
    assert bool((store.edge_label_settled >= store.edge_label_time).all())
    parts = TemporalSplit(keep_cold=True)(data)
    for part, following in zip(parts, parts[1:]):
        assert bool((part[CLICKS].edge_label_settled < following[CLICKS].cutoff).all())
    assert [part[CLICKS].num_unsettled for part in parts] == [67, 152, 0]
    # Positives are among them that were clicked only after the part's end.
    counts = []
    for part, following in zip(parts, parts[1:]):
        begin, end = part[CLICKS].cutoff[0], following[CLICKS].cutoff
        late = (store.edge_label_time >= begin) & (store.edge_label_time < end)
        late &= store.edge_label_settled >= end
        positive = store.edge_label_index[:, late & (store.edge_label == 1)]
        history = following[CLICKS].edge_index[:, following[CLICKS].time >= begin]
        known = (positive.unsqueeze(2) == history.unsqueeze(1)).all(0).any(1)
        counts.append((positive.size(1), int((~known).sum())))
    assert counts == [(5, 1), (11, 4)]


def first_action_on_list(segment):
    *_, last = segment
    listed = last['impressions'].split('|')
    for position, row in enumerate(segment):
        is_action = row['action_type'] in BEHAVIORS.values() and row['reference'] in listed
        if row is last or is_action:
            return position
    raise AssertionError


def query_after(rows):
    r"""The active terms after the first rows of a session."""
    place, city, filters = None, None, []
    for row in rows:
        if row['action_type'] in PLACES:
            place, city = row['reference'], row['city']
        if row['action_type'] in FILTERED:
            filters = [term for term in row['current_filters'].split('|') if term]
    is_there = place is not None and city == rows[-1]['city']
    return ([place] if is_there else []) + filters


def exposures_of(segment, before):
    r"""The exposures of the actions up to a clickout, each a row of plain values."""
    *_, last = segment
    query = query_after([*before, *segment[: first_action_on_list(segment)]])[:10] or None
    items = [int(item) for item in last['impressions'].split('|')]
    prices = [int(price) for price in last['prices'].split('|')]
    times, happened = {}, {}
    for row in segment:
        if row['action_type'] in (*BEHAVIORS.values(), 'clickout item'):
            item = int(row['reference']) if row['reference'].isdigit() else None
            times.setdefault(item, int(row['timestamp']))
            happened.setdefault(item, set()).add(row['action_type'])
    time = min([int(last['timestamp']), *(times[item] for item in items if item in times)])
    for position, (item, price) in enumerate(zip(items, prices)):
        actions = happened.get(item, set())
        yield {
            'time': time,
            'click_time': times.get(item),
            'settled': int(last['timestamp']),
            'user': last['user_id'],
            'item': item,
            'label': float(bool(actions)),
            'conversion': float('clickout item' in actions),
            'behavior': [float(action in actions) for action in BEHAVIORS.values()],
            'x': [position, price, price / (sum(prices) / len(prices))],
            'query': query,
        } | {name: last[name] for name in ('platform', 'device', 'city')}


def test_equals_plain_python(tmp_path, mag_data):
    os.symlink(mag_data / 'trivago', tmp_path / 'raw')
    dataset = Trivago(tmp_path, log=False)
    data, names, ids = dataset[0], dataset.names, dataset.raw_ids
    expected, segment, before, num_rows, num_lists, num_changed = [], [], [], 0, 0, 0
    with open(mag_data / 'trivago' / 'train.csv', newline='', encoding='utf-8') as file:
        for row in csv.DictReader(file):
            num_rows += 1
            if row['step'] == '1':
                segment, before = [], []
            segment.append(row)
            if row['action_type'] == 'clickout item':
                num_lists += 1
                expected += exposures_of(segment, before)
                later = segment[first_action_on_list(segment) :]
                num_changed += any(row['action_type'] == 'filter selection' for row in later)
                before, segment = [*before, *segment], []
    # That many lists had a filter selected between the first action and the clickout.
    assert num_changed == 241
    assert (num_rows, num_lists, len(expected)) == (100_003, 13_597, 312_539)
    expected.sort(key=lambda row: row['time'])

    store = data[CLICKS]
    user = {name: node for node, name in enumerate(ids['user'].tolist())}
    item = {name: node for node, name in enumerate(ids['item'].tolist())}
    assert list(user) == sorted({row['user'] for row in expected})
    assert list(item) == sorted({row['item'] for row in expected})
    assert (len(user), len(item)) == (6_593, 106_866)
    index = [(user[row['user']], item[row['item']]) for row in expected]
    assert torch.equal(store.edge_label_index, torch.tensor(index).t())
    for name in ('time', 'settled', 'conversion', 'behavior', 'x'):
        assert torch.equal(
            store[f'edge_label_{name}'], torch.tensor([row[name] for row in expected])
        )
    assert torch.equal(store.edge_label, torch.tensor([row['label'] for row in expected]))
    for name in ('platform', 'device', 'city'):
        known = sorted({row[name] for row in expected})
        assert names[name] == known
        code = {value: code for code, value in enumerate(known)}
        found = torch.tensor([code[row[name]] for row in expected])
        assert torch.equal(store[f'edge_label_{name}'], found)

    queries = [row['query'] for row in expected]
    assert list(queries_of(dataset)) == queries
    known = sorted({term for query in queries if query for term in query}, key=str.encode)
    assert names['query'] == ['', *known]
    assert store.num_query == len(known) + 1 == 1_723
    lengths = (store.edge_label_query >= 0).sum(1)[store.edge_label_domain == 1]
    assert torch.bincount(lengths).tolist() == [
        0, 88_024, 38_340, 8_435, 5_510, 3_325, 1_958, 2_351, 1_749, 919, 644
    ]  # fmt: skip
    assert int(store.edge_label_domain.sum()) == len(lengths) == 151_255

    clicked = [(row, pair) for row, pair in zip(expected, index) if row['label']]
    assert all(row['click_time'] >= row['time'] for row, _ in clicked)
    clicked.sort(key=lambda click: click[0]['click_time'])
    assert torch.equal(store.time, torch.tensor([row['click_time'] for row, _ in clicked]))
    assert torch.equal(store.edge_index, torch.tensor([pair for _, pair in clicked]).t())
    code = {term: code for code, term in enumerate(names['query'])}
    found = [[code[term] for term in row['query'] or ['']] for row, _ in clicked]
    assert store.query.tolist() == [query + [-1] * (10 - len(query)) for query in found]
    assert store.domain.tolist() == [float(row['query'] is not None) for row, _ in clicked]

    assert len(clicked) == 16_401
    # One clickout of the sample is on an item that its list has not.
    assert int(store.edge_label_conversion.sum()) == 13_596
    assert store.edge_label_behavior.sum(0).int().tolist() == [4618, 1197, 877, 688, 525]


def test_the_last_lists_of_real_sessions_are_not_told_what_follows(tmp_path, mag_data):
    os.symlink(mag_data / 'trivago', tmp_path / 'raw')
    with open(mag_data / 'trivago' / 'train.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    (tmp_path / 'later' / 'raw').mkdir(parents=True)
    with open(tmp_path / 'later' / 'raw' / 'train.csv', 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, HEADER.strip().split(','))
        writer.writeheader()
        starts = [number for number, row in enumerate(rows) if row['step'] == '1']
        for start, stop in zip(starts, [*starts[1:], len(rows)]):
            session = rows[start:stop]
            ends = [n for n, row in enumerate(session) if row['action_type'] == 'clickout item']
            first = len(session)
            if ends:
                segment = session[([-1, *ends])[-2] + 1 : ends[-1] + 1]
                first = ends[-1] + 1 - len(segment) + first_action_on_list(segment)
            for row in session[first:]:
                row['current_filters'] = 'Canary'
                if row['action_type'] in (*PLACES, 'filter selection'):
                    row['reference'] = 'Canary'
            writer.writerows(session)
    before = Trivago(tmp_path, log=False)
    later = Trivago(tmp_path / 'later', log=False)
    assert torch.equal(before[0][CLICKS].edge_label_query, later[0][CLICKS].edge_label_query)
    assert torch.equal(before[0][CLICKS].edge_label_domain, later[0][CLICKS].edge_label_domain)
    assert before.names['query'] == later.names['query']


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        Trivago(tmp_path, log=False)
    for piece in (
        'needs train.csv',
        repr(str(tmp_path / 'raw')),
        repr(str(tmp_path / 'raw' / 'trivago')),
        'https://recsys.trivago.cloud/challenge/dataset/',
    ):
        assert piece in str(error.value)


FIRST = clickout('a,s', 1, 1, 5, '5|6', '7|8')


@pytest.mark.parametrize(
    'rows, match',
    [
        ([], "must have a row with the action_type 'clickout item', which has a list"),
        (
            [action('a,s', 1, 1, 'interaction item image', 5)],
            "must have a row with the action_type 'clickout item', which has a list",
        ),
        (
            [FIRST, clickout('a,s', 'noon', 2, 5, '5', '7')],
            "line 3: column 'timestamp' must hold a whole number, but got 'noon'",
        ),
        (
            [FIRST, clickout('a,s', 1, '', 5, '5', '7')],
            "line 3: column 'step' must hold a whole number, but got nothing",
        ),
        (
            [clickout(',s', 1, 1, 5, '5', '7')],
            "line 2: column 'user_id' must hold an id, but got nothing",
        ),
        (
            [clickout('a,', 1, 1, 5, '5', '7')],
            "line 2: column 'session_id' must hold an id, but got nothing",
        ),
        (
            [FIRST, action('a,s', 1, 2, 'interaction item smell', 5)],
            "line 3: column 'action_type' must hold one of 'interaction item image', .*"
            "'clickout item', .*'search for poi', but got 'interaction item smell'",
        ),
        (
            [FIRST, action('a,s', 1, 2, 'interaction item info', 'Rome')],
            "line 3: column 'reference' must hold the id of an item, or 'unknown', but got 'Rome'",
        ),
        (
            [FIRST, clickout('a,s', 1, 2, '', '5', '7')],
            "line 3: column 'reference' must hold the id of an item, .* but got nothing",
        ),
        (
            [FIRST, clickout('a,s', 1, 2, 5, '5|x', '7|8')],
            r"line 3: column 'impressions' must hold ids of items with '\|' .*, but got '5\|x'",
        ),
        (
            [FIRST, clickout('a,s', 1, 2, 5, '5||6', '7|8|9')],
            r"line 3: column 'impressions' must hold .*, but got '5\|\|6'",
        ),
        (
            [FIRST, clickout('a,s', 1, 2, 5, '', '')],
            "line 3: column 'impressions' must hold ids of items .*, but got nothing",
        ),
        (
            [FIRST, clickout('a,s', 1, 2, 5, '5|6|7', '7|8')],
            r"line 3: column 'prices' must hold a whole number for each of the 3 "
            r"impressions, but got '7\|8'",
        ),
        (
            [FIRST, clickout('a,s', 1, 2, 5, '5|6', '7|cheap')],
            r"line 3: column 'prices' must hold a whole number for each of .*, but got '7\|cheap'",
        ),
        (
            [FIRST, clickout('a,s', 1, 2, 5, '5', '7'), clickout('a,s', 1, 2, 5, '5', '7')],
            "line 4: column 'step' must hold more than 2, the session's step before, .*, but got 2",
        ),
        (
            [FIRST, clickout('a,s', 1, 4, 5, '5', '7'), clickout('a,s', 1, 3, 5, '5', '7')],
            "line 4: column 'step' must hold more than 4, .*, but got 3",
        ),
    ],
)
def test_bad_values(tmp_path, rows, match):
    write(tmp_path / 'raw', rows)
    with pytest.raises(ValueError, match=match) as error:
        Trivago(tmp_path, log=False)
    assert str(tmp_path / 'raw' / 'train.csv') in str(error.value)
    assert not (tmp_path / 'processed').exists()


def test_missing_column(tmp_path):
    write(tmp_path / 'raw', [FIRST], HEADER.replace('prices', 'costs'))
    with pytest.raises(
        ValueError, match=r"train\.csv must have a column 'prices', but its columns are"
    ):
        Trivago(tmp_path, log=False)
