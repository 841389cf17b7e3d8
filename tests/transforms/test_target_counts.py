import copy
from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.macro_graph import TargetView
from mag.transforms import MacroCoarsen, TargetCounts, TemporalSplit

# Logs are so small here that parts lose many of their rows.
pytestmark = pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
CLICKS = ('user', 'clicks', 'item')
SEES = ('user', 'sees', 'item')


def log(size: int = 1500) -> HeteroData:
    data = SyntheticMarket(40, 20, size, seed=0, log=False)[0]
    # Many exposures of one moment.
    clicks = data[CLICKS]
    for name in ('time', 'edge_label_time'):
        clicks[name] = clicks[name] // 5000 * 5000
    return data


def split(data: HeteroData, **arguments: Any) -> list[HeteroData]:
    parts = TemporalSplit(num_windows=3, **arguments)(data)
    coarsen = MacroCoarsen({'user': 4, 'item': 'category'}).fit(parts[0])
    return [coarsen(part) for part in parts]


def key(part: HeteroData, view: str, user: int, item: int, clock: float) -> tuple[int, int]:
    r"""What a row of a view agrees in: :obj:`-2` stands for all, :obj:`-1` for none."""
    cluster = int(part['user'].cluster[user])
    if part['user'].cluster_since[user] > clock:
        cluster = -1
    users = {'user': user, 'user_cluster': cluster}
    items = {'item': item, 'item_cluster': int(part['item'].cluster[item])}
    names = view.split(' x ')
    return (
        next((users[name] for name in names if name in users), -2),
        next((items[name] for name in names if name in items), -2),
    )


def by_hand(part: HeteroData, log: HeteroData | None, rows: list[int]) -> list[list[list[float]]]:
    clicks = part[CLICKS]
    if log is None:
        events = part[SEES]
        index, time, clicked = events.edge_index, events.time, events.clicked
    else:
        events = log[CLICKS]
        index, time, clicked = events.edge_label_index, events.edge_label_time, events.edge_label
    out = []
    for row in rows:
        user, item = clicks.edge_label_index[:, row].tolist()
        asked = int(clicks.edge_label_time[row])
        if log is None:
            window = clicks.edge_label_window[row] if 'edge_label_window' in clicks else 0
            asked = int(clicks.cutoff[window])
        counts = []
        for view in clicks.count_names:
            own = key(part, view, user, item, asked)
            same = [
                e
                for e in range(time.numel())
                if time[e] < asked
                and key(part, view, int(index[0, e]), int(index[1, e]), int(time[e])) == own
            ]
            counts.append([float(len(same)), sum(float(clicked[e]) for e in same)])
        out.append(counts)
    return out


@pytest.mark.parametrize('fresh', [False, True])
def test_counts_are_those_of_plain_loops(fresh: bool) -> None:
    data = log(500)
    parts = split(data)
    transform = TargetCounts().fit(parts[0])
    for part in parts:
        counted = transform(part, log=data) if fresh else transform(part)
        clicks = counted[CLICKS]
        assert clicks.count_names == [
            'user', 'item', 'user x item_cluster', 'user_cluster x item',
            'user_cluster x item_cluster',
        ]  # fmt: skip
        assert clicks.count_prior == [-1, -1, 0, 1, -1]
        rows = list(range(0, clicks.edge_label.numel(), 7))
        expected = torch.tensor(by_hand(counted, data if fresh else None, rows))
        assert torch.equal(clicks.edge_label_counts[rows], expected)
        assert clicks.edge_label_counts.dtype == torch.float
        assert 'edge_label_counts' not in part[CLICKS]


def test_the_rate_is_that_of_the_first_history() -> None:
    parts = split(log())
    clicks = TargetCounts()(parts[0])[CLICKS]
    sees = parts[0][SEES]
    first = sees.clicked[sees.time < clicks.cutoff[0]]
    assert clicks.count_rate == pytest.approx((first.sum().item() + 1) / (len(first) + 2))


@pytest.mark.parametrize('by', ['global', 'user'])
def test_the_rate_knows_no_click_that_was_known_later(by: str) -> None:
    train = split(log(), by=by)[0]
    sees, clicks = train[SEES], train[CLICKS]
    clock = sees.position if by == 'user' else sees.time
    moment = clicks.edge_label_time.min() if by == 'user' else clicks.cutoff[0]
    late = (torch.arange(sees.time.numel()) % 3 == 0) | (sees.time >= moment)
    sees.settled = torch.maximum(sees.time, torch.where(late, moment, moment - 1))
    first = clock < clicks.cutoff[0]
    known = int(sees.clicked[first & ~late].sum())
    assert known < int(sees.clicked[first].sum())
    transform = TargetCounts().fit(train)
    expected = (known + 1) / (int(first.sum()) + 2)
    assert f'rate={expected!r},' in repr(transform)
    # Whatever became of the late ones.
    sees.clicked = sees.clicked.where(~late, 1 - sees.clicked)
    assert repr(TargetCounts().fit(train)) == repr(transform)


@pytest.mark.parametrize('fresh', [False, True])
def test_a_label_known_before_its_exposure_is_refused(fresh: bool) -> None:
    data = log(500)
    data[CLICKS].edge_label_settled = data[CLICKS].edge_label_time.clone()
    train = split(data)[0]
    transform = TargetCounts().fit(train)
    transform(train, log=data if fresh else None)
    train[SEES].settled = train[SEES].settled.clone()
    settled = data[CLICKS].edge_label_settled if fresh else train[SEES].settled
    settled[3] -= 1
    name = 'edge_label_settled' if fresh else 'settled'
    with pytest.raises(ValueError, match=f"'{name}' of no time before .* in row 3"):
        transform(train, log=data if fresh else None)


def test_fits_on_different_data_differ_in_their_text() -> None:
    train, val, _ = split(log())
    texts = [repr(TargetCounts()), *(repr(TargetCounts().fit(part)) for part in (train, val))]
    assert texts[0] == 'TargetCounts(None, half_lives=())'
    other = copy.copy(train)
    other['user'].cluster_2 = other['user'].cluster
    assert repr(TargetCounts().fit(other)) not in texts
    assert len(set(texts)) == 3 and repr(TargetCounts().fit(train)) == texts[1]


@pytest.mark.parametrize('fresh', [False, True])
def test_labels_from_a_moment_on_change_no_row_up_to_it(fresh: bool) -> None:
    data = log()
    train, _, test = split(data)
    transform = TargetCounts(half_lives=(86400.0,)).fit(train)
    other = copy.copy(data)
    moment = int(train[CLICKS].edge_label_time.median())
    is_later = data[CLICKS].edge_label_time >= moment
    other[CLICKS].edge_label = data[CLICKS].edge_label.where(~is_later, 1 - data[CLICKS].edge_label)
    changed = copy.copy(train)
    changed[SEES].clicked = other[CLICKS].edge_label[: changed[SEES].time.numel()]
    first = transform(train, log=data if fresh else None)[CLICKS]
    second = transform(changed, log=other if fresh else None)[CLICKS]
    early = first.edge_label_time <= moment
    before, after = (part.edge_label_counts[early].numpy().tobytes() for part in (first, second))
    assert before == after
    assert not torch.equal(first.edge_label_counts, second.edge_label_counts)


def test_views_and_half_lives_of_ones_own() -> None:
    data = log()
    train, _, test = split(data)
    views = [
        TargetView('id'),
        TargetView('id', 'brand'),
        TargetView(item='id'),
        TargetView(item='id', exposure='domain'),
    ]
    transform = TargetCounts(views, half_lives=(3600.0, 1e12)).fit(train)
    assert transform.names[3:6] == [
        'user x item_brand', 'user x item_brand, half-life 3600',
        'user x item_brand, half-life 1e+12',
    ]  # fmt: skip
    assert transform.prior == [-1, -1, -1, 0, 1, 2, -1, -1, -1, 6, 7, 8]
    clicks = transform(test, log=data)[CLICKS]
    counts = clicks.edge_label_counts
    # What hardly decays is hardly less.
    torch.testing.assert_close(counts[:, 2::3], counts[:, ::3], rtol=1e-3, atol=1e-3)
    assert (counts[:, 1::3] <= counts[:, ::3]).all() and (counts[:, 1::3] < counts[:, ::3]).any()
    source = data[CLICKS]
    for row in range(0, len(counts), 29):
        item = clicks.edge_label_index[1, row]
        same = (
            (source.edge_label_index[1] == item)
            & (source.edge_label_domain == clicks.edge_label_domain[row])
            & (source.edge_label_time < clicks.edge_label_time[row])
        )
        assert counts[row, 9].tolist() == [same.sum(), source.edge_label[same].sum()]


def test_the_state_of_a_part_moves_to_the_fresh_counts() -> None:
    data = log()
    train, _, test = split(data)
    transform = TargetCounts(half_lives=(50_000.0,)).fit(train)
    expected = transform(test, log=data)[CLICKS]
    state = transform.state(test)
    source = data[CLICKS]
    start = int(test[CLICKS].cutoff)
    for moment in source.edge_label_time[source.edge_label_time >= start].unique():
        rows = expected.edge_label_time == moment
        counts = state(*expected.edge_label_index[:, rows], expected.edge_label_time[rows])
        torch.testing.assert_close(counts, expected.edge_label_counts[rows], rtol=1e-5, atol=1e-5)
        new = source.edge_label_time == moment
        state.update(
            *source.edge_label_index[:, new], source.edge_label_time[new], source.edge_label[new]
        )


def late_log(size: int = 1500) -> HeteroData:
    r"""A log that tells when it was known what became of an exposure, up to days later."""
    data = log(size)
    delay = torch.randint(40, (size,), generator=torch.Generator().manual_seed(3)) * 5000
    data[CLICKS].edge_label_settled = data[CLICKS].edge_label_time + delay
    return data


LATE_VIEWS = [
    TargetView('id'),
    TargetView(item='id'),
    TargetView('id', 'cluster'),
    TargetView('cluster', 'id'),
    TargetView('cluster', 'cluster', prior='item'),
    TargetView('id', 'brand'),
    TargetView(item='id', exposure='domain'),
    TargetView(),
]
HALF_LIVES = (40_000.0, 1e6)


@pytest.mark.parametrize('fresh', [False, True])
def test_counts_of_late_labels_are_those_of_plain_loops(fresh: bool) -> None:
    data = late_log(200)
    parts = split(data, val_start=0.6, test_start=0.85, keep_cold=True)
    transform = TargetCounts(LATE_VIEWS, HALF_LIVES).fit(parts[0])
    source = data[CLICKS]
    events = [
        *zip(
            *source.edge_label_index.tolist(),
            source.edge_label_time.tolist(),
            source.edge_label_domain.tolist(),
            source.edge_label.tolist(),
            source.edge_label_settled.tolist(),
            strict=True,
        )
    ]
    num_late = 0
    for part in parts:
        clicks = transform(part, log=data if fresh else None)[CLICKS]
        since = part['user'].cluster_since.tolist()

        def key(
            view: TargetView,
            user: int,
            item: int,
            at: int,
            domain: int,
            part: HeteroData,
            since: Any,
        ) -> tuple[int | None, ...]:
            cluster = int(part['user'].cluster[user]) if since[user] <= at else -1
            of_user = {None: None, 'id': user, 'cluster': cluster}
            of_item = {None: None, 'id': item}
            of_item |= {name: int(part['item'][name][item]) for name in ('brand', 'cluster')}
            return of_user[view.user], of_item[view.item], domain if view.exposure else None

        for row in range(clicks.edge_label.numel()):
            user, item = clicks.edge_label_index[:, row].tolist()
            domain = int(clicks.edge_label_domain[row])
            asked = int(clicks.edge_label_time[row])
            if not fresh:
                window = clicks.edge_label_window[row] if 'edge_label_window' in clicks else 0
                asked = int(clicks.cutoff[window])
            column = 0
            for view in LATE_VIEWS:
                own = key(view, user, item, asked, domain, part, since)
                sums = [[0.0, 0.0] for _ in range(1 + len(HALF_LIVES))]
                for who, what, when, where, label, settled in events:
                    if when < asked and key(view, who, what, when, where, part, since) == own:
                        num_late += label == 1 and settled >= asked
                        for place, life in enumerate((float('inf'), *HALF_LIVES)):
                            weight = 2 ** (-(asked - when) / life)
                            sums[place][0] += weight
                            sums[place][1] += weight * (label == 1 and settled < asked)
                found = clicks.edge_label_counts[row, column : column + len(sums)]
                torch.testing.assert_close(found, torch.tensor(sums), rtol=1e-5, atol=1e-5)
                column += len(sums)
            assert column == clicks.edge_label_counts.size(1)
    assert num_late > 50


def test_the_state_of_a_late_log_moves_to_the_fresh_counts() -> None:
    data = late_log()
    train, _, test = split(data)
    transform = TargetCounts(half_lives=(50_000.0,)).fit(train)
    expected = transform(test, log=data)[CLICKS]
    state, whole = transform.state(test), transform.state(test, log=data)
    source = data[CLICKS]
    start, later = int(test[CLICKS].cutoff), source.edge_label_settled.max() + 1
    for moment in source.edge_label_time[source.edge_label_time >= start].unique():
        rows = expected.edge_label_time == moment
        counts = state(*expected.edge_label_index[:, rows], expected.edge_label_time[rows])
        torch.testing.assert_close(counts, expected.edge_label_counts[rows], rtol=1e-5, atol=1e-5)
        new = source.edge_label_time == moment
        state.update(
            *source.edge_label_index[:, new], source.edge_label_time[new], source.edge_label[new],
            settled=source.edge_label_settled[new],
        )  # fmt: skip
    pairs = torch.cartesian_prod(torch.arange(40), torch.arange(20)).t()
    counts = [of(*pairs, later.expand(800)) for of in (state, whole)]
    torch.testing.assert_close(*counts, rtol=1e-6, atol=1e-6)
    # In the end all clicks are known.
    of_user = counts[0].view(40, 20, -1, 2)[:, 0, 0]
    clicked = source.edge_label_index[0, source.edge_label == 1].bincount(minlength=40)
    assert torch.equal(of_user[:, 1], clicked.float())


@pytest.mark.parametrize('fresh', [False, True])
@pytest.mark.parametrize('is_late', [False, True])
def test_labels_from_a_moment_on_change_no_row_up_to_it_though_all_is_made_anew(
    fresh: bool, is_late: bool
) -> None:
    data = late_log(2000) if is_late else log(2000)
    if is_late:
        # Else all of an early history is dropped as unknown.
        clicks = data[CLICKS]
        clicks.edge_label_settled = clicks.edge_label_time + torch.arange(2000) % 3 * 5000
    moment = int(TemporalSplit(num_windows=3)(data)[1][CLICKS].cutoff) + 5000
    other = copy.copy(data)
    source, store = data[CLICKS], other[CLICKS]
    is_later = source.edge_label_time >= moment
    store.edge_label = source.edge_label.where(~is_later, 1 - source.edge_label)
    clicked = store.edge_label == 1
    store.edge_index, store.time = (
        source.edge_label_index[:, clicked],
        source.edge_label_time[clicked],
    )
    # What else was told of clicks, and of what followed them.
    told = {name for name in store.keys() if f'edge_label_{name}' in store} - {'time'}
    for name in told | {'edge_label_conversion', 'edge_label_behavior'} & {*store.keys()}:
        del store[name]
    rows = {}
    for name, history in (('first', data), ('second', other)):
        parts = TemporalSplit(num_windows=3, keep_cold=True)(history)
        coarsen = MacroCoarsen({'user': 4, 'item': 5}).fit(parts[0])
        parts = tuple(coarsen(part) for part in parts)
        counts = TargetCounts(half_lives=(9e4,)).fit(parts[0])
        counted = [counts(part, log=history if fresh else None)[CLICKS] for part in parts]
        is_early = [part.edge_label_time < moment for part in counted]
        rows[name] = [
            (part.edge_label_index[:, early], part.edge_label_time[early],
             part.edge_label_counts[early], torch.tensor(part.count_rate))
            for part, early in zip(counted, is_early, strict=True)
        ]  # fmt: skip
        rows[f'{name} whole'] = counted
    for first, second in zip(rows['first'], rows['second'], strict=True):
        for one, same in zip(first, second, strict=True):
            assert one.numpy().tobytes() == same.numpy().tobytes()
    assert [part[1].numel() > 0 for part in rows['first']] == [True, True, False]
    first, second = (rows[f'{name} whole'][2].edge_label_counts for name in ('first', 'second'))
    assert not torch.equal(first, second)


@pytest.mark.parametrize('name', ['cluster', 'cluster_2'])
def test_a_macro_node_counts_from_when_it_is_known(name: str) -> None:
    data = log(300)
    test = split(data)[2]
    test['user'][name] = torch.arange(40) % 3
    since = torch.full((40,), 2**62)
    test['user'][f'{name}_since'] = since
    view = [TargetView(name, 'id'), TargetView(item='id')]
    counts = TargetCounts(view).fit(test)(test)[CLICKS].edge_label_counts
    item = test[CLICKS].edge_label_index[1]
    # Nobody is known: all are of none.
    seen = test[SEES].edge_index[1].bincount(minlength=20)
    assert torch.equal(counts[:, 0, 0], seen[item].float())
    # A grouping by an attribute is known as ever, and has no such moment.
    del test['user'][f'{name}_since']
    counts = TargetCounts(view).fit(test)(test)[CLICKS].edge_label_counts
    cluster = test['user'][name]
    pair = cluster[test[SEES].edge_index[0]] * 20 + test[SEES].edge_index[1]
    asked = cluster[test[CLICKS].edge_label_index[0]] * 20 + item
    assert torch.equal(counts[:, 0, 0], pair.bincount(minlength=60)[asked].float())


def test_what_cannot_be_counted_is_refused() -> None:
    data = log()
    train, val, test = split(data)
    with pytest.raises(ValueError, match='fitted as of .*: fit it on the training part'):
        TargetCounts().fit(test)(train)
    with pytest.raises(ValueError, match='exposures before the cutoff of a part'):
        TargetCounts().fit(data)
    with pytest.raises(ValueError, match='expects a whole log'):
        TargetCounts().fit(train)(test, log=val)
    with pytest.raises(ValueError, match='it has 20 items where the data has 21'):
        other = copy.copy(test)
        other['item'].num_nodes = 21
        TargetCounts().fit(train)(other, log=data)
    with pytest.raises(ValueError, match='no macro nodes of users: apply MacroCoarsen first'):
        TargetCounts().fit(TemporalSplit()(data)[0])
    with pytest.raises(ValueError, match="rate of 'user x item_brand' to be that of 'user'"):
        TargetCounts([TargetView('id', 'brand')]).fit(train)


@pytest.mark.parametrize('fresh', [False, True])
def test_damaged_parts_are_refused(fresh: bool) -> None:
    data = log(300)
    train, _, test = split(data)
    transform = TargetCounts([TargetView('id'), TargetView('id', exposure='domain')]).fit(train)

    def count(change: Any) -> None:
        part, whole = copy.copy(test), copy.copy(data)
        change(part, whole)
        transform(part, log=whole if fresh else None)

    def store(part: HeteroData, whole: HeteroData) -> Any:
        return whole[CLICKS] if fresh else part[SEES]

    prefix = 'edge_label_' if fresh else ''
    domain = data[CLICKS].edge_label_domain

    def without_sees(part: HeteroData, whole: HeteroData) -> None:
        del part[SEES]

    def without_domain(part: HeteroData, whole: HeteroData) -> None:
        del store(part, whole)[f'{prefix}domain']

    def two_domains(part: HeteroData, whole: HeteroData) -> None:
        own = store(part, whole)
        own[f'{prefix}domain'] = own[f'{prefix}domain'].view(-1, 1).expand(-1, 2)

    def unlabelled(part: HeteroData, whole: HeteroData) -> None:
        del part[CLICKS]['edge_label_domain']

    def beyond(part: HeteroData, whole: HeteroData) -> None:
        part[CLICKS].edge_label_domain = part[CLICKS].edge_label_domain + int(domain.max()) + 9

    def half_clicked(part: HeteroData, whole: HeteroData) -> None:
        own, name = store(part, whole), 'edge_label' if fresh else 'clicked'
        own[name] = own[name] * 0.5

    for change, error, sentence in (
        (without_sees, ValueError, 'exposures before the cutoff of a part.*that TemporalSplit'),
        (without_domain, (TypeError, ValueError), f"'{prefix}domain'|attribute 'domain'"),
        (two_domains, ValueError, rf"'{prefix}domain' of shape \[\d+\], but got shape \[\d+, 2\]"),
        (unlabelled, TypeError, "'edge_label_domain' to be a tensor of shape .* got None"),
        (beyond, IndexError, "values of 'domain' from"),
        (half_clicked, ValueError, '1 for a click and 0 for none.*such as 0.5'),
    ):  # fmt: skip
        with pytest.raises(error, match=sentence):
            count(change)
        if change is without_sees:
            part = copy.copy(test)
            del part[SEES]
            with pytest.raises(error, match=sentence):
                transform.state(part, log=data if fresh else None)
            assert SEES not in part.edge_types


def test_parts_that_were_cut_by_position() -> None:
    data = log()
    train, _, test = split(data, by='user')
    counts = TargetCounts().fit(train)(test)[CLICKS]
    sees = test[SEES]
    for row in range(0, counts.edge_label.numel(), 13):
        user = counts.edge_label_index[0, row]
        same = (sees.edge_index[0] == user) & (sees.position < counts.cutoff)
        assert counts.edge_label_counts[row, 0].tolist() == [same.sum(), sees.clicked[same].sum()]
    with pytest.raises(ValueError, match='by its position'):
        TargetCounts(half_lives=(5.0,)).fit(train)(test)
    with pytest.raises(ValueError, match='cut by position'):
        TargetCounts().fit(train).state(test)
