import json
import os
import random
import re
import shutil
import signal
import textwrap
import threading
import types
import warnings
from datetime import timedelta
from pathlib import Path

import duckdb
import pytest
import torch
from torch_geometric.data import HeteroData
from torch_geometric.transforms import BaseTransform, Compose

from mag.datasets import ClickDataset, EventLog, LogTable, _cache
from mag.datasets._cache import Cache
from mag.datasets._log_to_graph import LogToGraph
from mag.files import checksum, locked, write_tensors
from mag.folder import checksum_of

CLICKS = ('user', 'clicks', 'item')
COLUMNS = {'user': 'u', 'item': 'i', 'time': 't'}
TEXT = 'u,i,t,label\n1,1,1,1\n1,2,2,0\n2,2,3,1\n'


@pytest.fixture
def log(tmp_path):
    path = tmp_path / 'log.csv'
    path.write_text(TEXT)
    return path


def load(log, columns=COLUMNS, **kwargs):
    return EventLog(log.parent / 'root', log, columns, log=False, **kwargs)


def never(*args, **kwargs):
    raise AssertionError('processed again')


class Scale(BaseTransform):
    def __init__(self, factor):
        self.factor = factor

    def forward(self, data):
        data[CLICKS].time = data[CLICKS].time * self.factor
        return data

    def __repr__(self):
        return f'Scale(factor={self.factor})'


def test_second_time_reads_the_cache(log, monkeypatch):
    first = load(log)[0]
    monkeypatch.setattr(EventLog, 'process', never)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        second = load(log)
    assert isinstance(second[0], HeteroData) and len(second) == 1
    assert second[0][CLICKS].to_dict().keys() == first[CLICKS].to_dict().keys()
    assert torch.equal(second[0][CLICKS].edge_index, first[CLICKS].edge_index)
    assert second.raw_ids['user'].tolist() == [1, 2]
    assert sorted(os.listdir(log.parent / 'root' / 'processed')) == [
        'cache.json',
        'data.pt',
        'item.parquet',
        'user.parquet',
    ]


def test_transforms(log):
    assert load(log, transform=Scale(5))[0][CLICKS].time.tolist() == [5, 10, 15]
    assert load(log)[0][CLICKS].time.tolist() == [1, 2, 3]
    shutil.rmtree(log.parent / 'root')
    dataset = load(log, pre_transform=Scale(2), transform=Scale(5))
    assert dataset[0][CLICKS].time.tolist() == [10, 20, 30]
    assert dataset[0][CLICKS].edge_label_time.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    'before, now, pieces',
    [
        (
            {},
            {'columns': COLUMNS | {'label': 'label'}},
            ["columns was {'user'", "'label': 'label'"],
        ),
        ({}, {'time_unit': 'ms'}, ["time_unit was 's', is now 'ms'"]),
        ({}, {'pre_transform': Scale(2)}, ["pre_transform was 'None', is now 'Scale(factor=2)'"]),
        (
            {'pre_transform': Scale(2)},
            {'pre_transform': Scale(3)},
            ["was 'Scale(factor=2)', is now 'Scale(factor=3)'"],
        ),
    ],
)
def test_other_arguments_raise(log, before, now, pieces):
    load(log, **before)
    with pytest.raises(ValueError) as error:
        load(log, **now)
    for piece in (*pieces, 'does not fit', 'force_reload=True', str(log.parent / 'root')):
        assert piece in str(error.value)
    load(log, **before)
    load(log, **now, force_reload=True)
    load(log, **now)


@pytest.mark.parametrize('wrap', [lambda function: function, lambda function: Compose([function])])
def test_bare_function_is_refused(log, wrap):
    # Two of one name differ in nothing that a cache could keep.
    with pytest.raises(ValueError, match="(?s)'pre_transform' must have a repr.*<lambda>.*BaseTr"):
        load(log, pre_transform=wrap(lambda data: data))
    assert not (log.parent / 'root').exists()
    load(log, pre_transform=Compose([Scale(2)]), transform=lambda data: data)


def test_other_version_raises(log, monkeypatch):
    load(log)
    version = EventLog.schema_version
    monkeypatch.setattr(EventLog, 'schema_version', version + 1)
    with pytest.raises(ValueError, match=rf'schema_version was {version}, is now {version + 1}'):
        load(log)


def test_other_raw_files_raise(log):
    load(log)
    log.write_text(TEXT + '3,1,4,1\n')
    with pytest.raises(ValueError, match=r'log\.csv had 36 bytes, has now 44'):
        load(log)
    assert load(log, force_reload=True)[0]['user'].num_nodes == 3
    log.write_text(TEXT + '3,2,4,1\n')
    with pytest.raises(ValueError, match=r'log\.csv has the same size and other content'):
        load(log)
    log.rename(log.parent / 'other.csv')
    with pytest.raises(ValueError, match=r'log\.csv is gone; other\.csv is new'):
        EventLog(log.parent / 'root', log.parent / 'other.csv', COLUMNS, log=False)


def test_other_order_of_files_raises(log):
    other = log.parent / 'other.csv'
    other.write_text('u,i,t\n3,3,1\n')

    def ids(*files, **kwargs):
        dataset = EventLog(log.parent / 'root', files, COLUMNS, log=False, **kwargs)
        return dataset[0][CLICKS].edge_index[0].tolist()

    assert ids(log, other) == [0, 2, 0, 1]
    match = r'the files were log\.csv, other\.csv, are now other\.csv, log\.csv\.'
    with pytest.raises(ValueError, match=match):
        ids(other, log)
    assert ids(other, log, force_reload=True) == [2, 0, 0, 1]


def test_other_file_of_the_same_name_size_and_time_raises(log):
    other = log.parent / 'other' / 'log.csv'
    other.parent.mkdir()
    other.write_text(TEXT.replace('2,2,3', '9,2,3'))
    for path in (log, other):
        os.utime(path, (1, 1))
    load(log)
    with pytest.raises(ValueError, match=r'log\.csv has the same size and other content'):
        EventLog(log.parent / 'root', other, COLUMNS, log=False)


def test_moved_cache_is_the_same(log, monkeypatch):
    load(log)
    monkeypatch.setattr(EventLog, 'process', never)
    moved = log.parent / 'far' / 'away'
    moved.parent.mkdir()
    (log.parent / 'root').rename(moved)
    assert EventLog(moved, log, COLUMNS, log=False)[0][CLICKS].time.tolist() == [1, 2, 3]


@pytest.mark.parametrize('name', ['cache.json', 'data.pt'])
@pytest.mark.parametrize('size', [0, 50])
def test_damaged_cache(log, name, size):
    load(log)
    path = log.parent / 'root' / 'processed' / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError) as error:
        load(log)
    for piece in (str(path.parent), 'is damaged', f'its {name} cannot', 'force_reload=True'):
        assert piece in str(error.value)
    assert load(log, force_reload=True)[0][CLICKS].time.tolist() == [1, 2, 3]


def test_cache_without_data(log):
    load(log)
    (log.parent / 'root' / 'processed' / 'data.pt').unlink()
    with pytest.raises(ValueError, match=r'data\.pt cannot be read: it is missing.*force'):
        load(log)
    assert load(log, force_reload=True)[0][CLICKS].time.tolist() == [1, 2, 3]


@pytest.mark.parametrize('sealed', [False, True])
def test_opening_a_received_cache_runs_nothing(log, sealed, planted):
    load(log)
    processed, canary = log.parent / 'root' / 'processed', log.parent / 'canary'
    content = (planted(canary), None, HeteroData)
    if sealed:
        # Whoever plants a file can work out its checksums.
        write_tensors(content, processed / 'data.pt')
        cache = json.loads((processed / 'cache.json').read_text())
        cache['files']['data.pt'] = checksum(processed / 'data.pt')
        del cache['checksum']
        cache['checksum'] = checksum_of(cache)
        (processed / 'cache.json').write_text(json.dumps(cache))
    else:
        torch.save(content, processed / 'data.pt')
    with pytest.raises(ValueError, match=r'data\.pt cannot be read.*force_reload=True'):
        load(log)
    assert not canary.exists()
    # It is armed.
    torch.load(processed / 'data.pt', weights_only=False)
    assert canary.exists()


@pytest.mark.parametrize('name', ['data.pt', 'user.parquet', 'item.parquet', 'cache.json'])
def test_a_file_of_another_cache_is_refused(log, name):
    load(log)
    other = log.parent / 'other.csv'
    other.write_text(TEXT.replace('1,2,2,0', '5,6,2,1'))
    EventLog(log.parent / 'elsewhere', other, COLUMNS, log=False)
    names = [log.parent / root / 'processed' / name for root in ('elsewhere', 'root')]
    names[1].write_bytes(names[0].read_bytes())
    with pytest.raises(ValueError, match=rf'{re.escape(name)} cannot be read|does not fit'):
        _ = load(log).raw_ids


def test_missing_table_of_nodes(log):
    dataset = load(log)
    (log.parent / 'root' / 'processed' / 'item.parquet').unlink()
    with pytest.raises(ValueError, match=r'item\.parquet cannot be read: it is missing.*force'):
        _ = dataset.raw_ids


def test_ids_are_those_of_the_data_although_another_process_made_the_cache_again(log):
    dataset = load(log)
    log.write_text('u,i,t\n8,9,1\n')
    load(log, force_reload=True)
    assert dataset[0]['user'].num_nodes == 2
    with pytest.raises(ValueError, match='or another process has replaced it'):
        _ = dataset.raw_ids


@pytest.mark.parametrize('root', ['a::b', 's3://bucket/log'])
def test_root_elsewhere_is_refused(log, monkeypatch, root):
    monkeypatch.chdir(log.parent)
    with pytest.raises(ValueError, match=f"'root' must be a folder of this machine.*'{root}'"):
        EventLog(root, log, COLUMNS, log=False)
    assert os.listdir(log.parent) == ['log.csv']


class Keep(BaseTransform):
    r"""Puts an object into the data."""

    def __init__(self, value):
        self.value = value

    def forward(self, data):
        data.value = self.value
        return data

    def __repr__(self):
        return f'Keep({self.value!r})'


def test_objects_that_a_cache_cannot_hold_are_refused(log):
    with pytest.raises(
        ValueError, match=r'nothing else, but Keep\(datetime\.timedelta\(days=1\)\) puts objects'
    ):
        load(log, pre_transform=Keep(timedelta(days=1)))
    assert os.listdir(log.parent / 'root') == []
    value = {'tensor': torch.arange(3), 'words': ['a', ('b', 1.5, None, True)]}
    assert load(log, pre_transform=Keep(value))[0].value['words'] == value['words']


def test_what_a_kill_left_is_removed_at_the_next_start(log):
    load(log)
    root = log.parent / 'root'
    for name in ('processed.mag-partial', 'processed.mag-replaced'):
        (root / name).mkdir()
        (root / name / 'data.pt').write_text('half')
    with locked(root / 'processed.mag-lock'):
        # Somebody may be writing it.
        load(log)
        assert len(os.listdir(root)) == 4
    load(log)
    assert os.listdir(root) == ['processed']


def test_cache_of_a_folder_that_may_only_be_read(log, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError('not yours')

    load(log)
    partial = log.parent / 'root' / 'processed.mag-partial'
    partial.mkdir()
    monkeypatch.setattr(Cache, 'lock', refuse)
    assert load(log)[0][CLICKS].time.tolist() == [1, 2, 3]
    assert partial.exists()
    with pytest.raises(ValueError, match='time_unit was'):
        load(log, time_unit='ms')


def test_graph_of_another_manifest_is_refused(log, monkeypatch):
    r"""Another process makes the cache again between the reading of two of its files."""
    load(log)
    read = _cache.read_tensors

    def read_later(*args):
        monkeypatch.undo()
        load(log, time_unit='ms', force_reload=True)
        return read(*args)

    monkeypatch.setattr(_cache, 'read_tensors', read_later)
    # The file of the other cache is refused, and that cache is found at the second look.
    with pytest.raises(ValueError, match="does not fit: time_unit was 'ms', is now 's'"):
        load(log)


def test_table_is_that_of_the_manifest(log, monkeypatch):
    r"""Another process makes the cache again between the check of a table and its reading."""
    dataset = load(log)
    connect = duckdb.connect

    def connect_later(*args):
        monkeypatch.undo()
        log.write_text('u,i,t\n8,9,1\n')
        load(log, force_reload=True)
        return connect(*args)

    monkeypatch.setattr(duckdb, 'connect', connect_later)
    assert dataset.describe('user')['id'].tolist() == [1, 2]


@pytest.mark.parametrize('facts', [{}, {'fingerprint': {}, 'names': {}}])
def test_manifest_without_facts_is_damaged(log, facts):
    load(log)
    path = log.parent / 'root' / 'processed' / 'cache.json'
    path.write_text(json.dumps(facts | {'checksum': checksum_of(facts)}))
    with pytest.raises(ValueError, match=r'cache\.json cannot be read.*force_reload=True'):
        load(log)


def test_opening_while_another_process_makes_the_cache_again(log, fork):
    load(log)
    script = textwrap.dedent(f"""
        from mag.datasets import EventLog
        for _ in range(20):
            EventLog({str(log.parent / 'root')!r}, {str(log)!r}, {COLUMNS!r}, log=False,
                     force_reload=True)
    """)
    other = fork(script)
    opened = 0
    while other.process.is_alive():
        dataset = load(log)
        assert dataset[0][CLICKS].time.tolist() == [1, 2, 3]
        # What was made again is the same.
        assert dataset.raw_ids['user'].tolist() == [1, 2]
        opened += 1
    assert other.finish().returncode == 0
    assert opened > 5


@pytest.mark.parametrize('id_bytes, needed', [(0, r'\d\.\d MiB'), (40, 'more')])
def test_full_disk(log, small_disk, id_bytes, needed):
    r"""It is met by the tensors or, where ids are long, by their table before."""
    ids = (random.Random(n).randbytes(id_bytes).hex() for n in range(60_000))
    log.write_text('u,i,t\n' + ''.join(f'x{id},{n % 7},{n}\n' for n, id in enumerate(ids)))
    with pytest.raises(
        OSError, match=rf'The disk is full: .*needs {needed}, .*[KM]iB free'
    ) as error:
        EventLog(small_disk / 'root', log, COLUMNS, log=False)
    assert str(small_disk) in str(error.value)
    assert os.listdir(small_disk / 'root') == []


def test_root_is_a_file(log):
    with pytest.raises(ValueError, match=r"'root' must be a directory, but .*log\.csv' is a file"):
        EventLog(log, log, COLUMNS, log=False)


@pytest.mark.parametrize('folder', ['run[1]', 'run*', 'id=9'])
def test_root_is_no_pattern(log, folder):
    decoy = log.parent / 'decoy.csv'
    decoy.write_text('u,i,t\nx,y,1\n')
    EventLog(log.parent / 'run1', decoy, COLUMNS, log=False)
    dataset = EventLog(log.parent / folder, log, COLUMNS, log=False)
    assert {node: ids.tolist() for node, ids in dataset.raw_ids.items()} == {
        'user': [1, 2],
        'item': [1, 2],
    }


def test_same_content_of_another_time_is_the_same(log, monkeypatch):
    load(log)
    monkeypatch.setattr(EventLog, 'process', never)
    os.utime(log, (1, 1))
    load(log)
    moved = log.parent / 'elsewhere'
    moved.mkdir()
    shutil.copy(log, moved / 'log.csv')
    EventLog(log.parent / 'root', moved / 'log.csv', COLUMNS, log=False)


def test_foreign_files_are_not_touched(log):
    processed = log.parent / 'root' / 'processed'
    processed.mkdir(parents=True)
    load(log)
    shutil.rmtree(processed)
    processed.mkdir()
    (processed / 'mine.pt').write_text('precious')
    with pytest.raises(ValueError, match="must be empty or a cache of mag's"):
        load(log)
    with pytest.raises(ValueError, match="must be empty or a cache of mag's"):
        load(log, force_reload=True)
    assert (processed / 'mine.pt').read_text() == 'precious'


class Fail(BaseTransform):
    def forward(self, data):
        raise KeyboardInterrupt

    def __repr__(self):
        return 'Scale(factor=1)'


# By step, the class and the method that does it.
STEPS = {
    'sort': (LogToGraph, 'sort'),
    'write nodes': (LogToGraph, 'write_nodes'),
    'replace': (Cache, '_replace'),
}


@pytest.mark.parametrize('where', ['pre_transform', *STEPS])
def test_interruption_leaves_nothing(log, monkeypatch, where):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where != 'pre_transform':
            patch.setattr(*STEPS[where], interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(log, pre_transform=Fail())
    assert os.listdir(log.parent / 'root') == []
    assert load(log)[0][CLICKS].time.tolist() == [1, 2, 3]


def test_interrupted_reload_keeps_the_old_cache(log, monkeypatch):
    load(log)
    with pytest.raises(KeyboardInterrupt):
        load(log, pre_transform=Fail(), force_reload=True)
    monkeypatch.setattr(EventLog, 'process', never)
    assert load(log)[0][CLICKS].time.tolist() == [1, 2, 3]


@pytest.mark.parametrize('step', STEPS)
def test_kill_leaves_no_half_cache(log, fork, step):
    owner, method = STEPS[step]
    script = textwrap.dedent(f"""
        import os, signal
        from mag.datasets import EventLog
        from {owner.__module__} import {owner.__name__}
        wrapped = {owner.__name__}.{method}
        def kill(*args):
            {'' if step == 'replace' else 'wrapped(*args)'}
            os.kill(os.getpid(), signal.SIGKILL)
        {owner.__name__}.{method} = kill
        EventLog({str(log.parent / 'root')!r}, {str(log)!r}, {COLUMNS!r}, log=False)
    """)
    done = fork(script).finish()
    assert done.returncode == -signal.SIGKILL
    root = log.parent / 'root'
    assert not (root / 'processed').exists()
    assert (root / 'processed.mag-partial').exists()
    dataset = load(log)
    assert dataset[0][CLICKS].time.tolist() == [1, 2, 3]
    assert os.listdir(root) == ['processed']


@pytest.mark.parametrize('renames, times', [(0, [1, 2, 3]), (1, None), (2, [7, 8, 9])])
def test_kill_while_a_cache_is_replaced(log, fork, renames, times):
    load(log)
    log.write_text('u,i,t\n1,1,7\n1,2,8\n2,2,9\n')
    script = textwrap.dedent(f"""
        import os, signal
        from mag.datasets import EventLog
        renamed, replace = [], os.replace
        def kill(before, after):
            if os.path.isdir(before):
                if len(renamed) == {renames}:
                    os.kill(os.getpid(), signal.SIGKILL)
                renamed.append(before)
            replace(before, after)
        os.replace = kill
        path = {str(log)!r}
        EventLog({str(log.parent / 'root')!r}, path, {COLUMNS!r}, log=False, force_reload=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = fork(script).finish()
    assert done.returncode == -signal.SIGKILL
    processed = log.parent / 'root' / 'processed'
    # At any moment the whole old cache is there, the whole new one, or none.
    assert processed.exists() == (times is not None)
    if times is not None:
        data = HeteroData.from_dict(torch.load(processed / 'data.pt', weights_only=True))
        assert data[CLICKS].time.tolist() == times
    if times is None:
        # The next start takes the old cache back.
        with pytest.raises(ValueError, match=r'log\.csv had 36 bytes, has now 24'):
            load(log)
    assert load(log, force_reload=times != [7, 8, 9])[0][CLICKS].time.tolist() == [7, 8, 9]
    assert os.listdir(processed.parent) == ['processed']


def test_kill_between_the_two_renames(log):
    load(log)
    root = log.parent / 'root'
    (root / 'processed').rename(root / 'processed.mag-replaced')
    assert load(log)[0][CLICKS].time.tolist() == [1, 2, 3]
    assert os.listdir(root) == ['processed']


def test_two_at_once_process_once(log, monkeypatch):
    count = []
    process = EventLog.process

    def counted(self):
        count.append(self)
        process(self)

    monkeypatch.setattr(EventLog, 'process', counted)
    found = []
    threads = [threading.Thread(target=lambda: found.append(load(log)[0])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1
    assert [data[CLICKS].time.tolist() for data in found] == [[1, 2, 3]] * 3


def test_cache_is_readable_json(log):
    load(log)
    cache = json.loads((log.parent / 'root' / 'processed' / 'cache.json').read_text())
    fingerprint = cache['fingerprint']
    assert fingerprint['class'] == 'EventLog'
    assert [(file['name'], file['size']) for file in fingerprint['files']] == [('log.csv', 36)]
    assert str(log.parent) not in json.dumps(cache)


def test_progress(log, capsys):
    EventLog(log.parent / 'root', log, COLUMNS)
    assert 'Sorting by time' in capsys.readouterr().err
    load(log, force_reload=True)
    assert capsys.readouterr().err == ''


class Shop(ClickDataset):
    arguments = {}
    raw_file_names = ['log.csv']
    table = LogTable(
        time_unit='ms',
        merge_duplicates=True,
        behaviors=('likes', 'shares'),
        conversion='buys',
        contexts=('device', 'slot'),
        features=('price', 'position'),
    )

    def read(self, connection):
        connection.execute(f"CREATE TABLE log AS FROM read_csv('{self.raw_paths[0]}')")
        return self.table


def test_exposures_of_every_kind(tmp_path):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'log.csv').write_text(
        'user,item,time,label,likes,shares,buys,device,slot,price,position,click_time,weight\n'
        '1,1,1000,1,0,0,1,phone,3,5.5,0,9500,2\n'
        '1,2,2000,0,1,1,1,,2,1.5,1,2000,1\n'
        '2,2,4000,1,0,0,0,desk,2,0,3,4500,5\n'
        '2,1,3000,1,1,0,0,unknown,10,2.5,0,4200,3\n'
        '2,1,3000,0,0,1,0,phone,1,9,9,6000,4\n'
    )
    dataset = Shop(tmp_path, log=False)
    store = dataset[0][CLICKS]
    assert dataset.num_duplicates == 1
    assert store.edge_label_index.tolist() == [[0, 0, 1, 1], [0, 1, 0, 1]]
    assert store.edge_label_time.tolist() == [1, 2, 3, 4]
    assert store.edge_label.tolist() == [1, 0, 1, 1]
    assert store.edge_label_weight.tolist() == [2, 1, 4, 5]
    # Nothing follows where there was no click.
    assert store.edge_label_behavior.tolist() == [[0, 0], [0, 0], [1, 1], [0, 0]]
    assert store.edge_label_conversion.tolist() == [1, 0, 0, 0]
    assert store.edge_label_x.tolist() == [[5.5, 0], [1.5, 1], [2.5, 0], [0, 3]]
    assert store.edge_label_device.tolist() == [2, 0, 0, 1]
    assert store.edge_label_slot.tolist() == [2, 1, 3, 1]
    assert (store.num_device, store.num_slot) == (3, 4)
    assert store.edge_label_conversion.dtype == store.edge_label_x.dtype == torch.float
    assert store.edge_label_device.dtype == store.time.dtype == torch.long
    # The first exposure was clicked last, two in one second as they were shown.
    assert store.time.tolist() == [4, 4, 9]
    assert store.edge_index.tolist() == [[1, 1, 0], [0, 1, 0]]
    assert store.edge_weight.tolist() == [4, 5, 2]
    assert dataset.names == {
        'behavior': ['likes', 'shares'],
        'conversion': ['buys'],
        'feature': ['price', 'position'],
        'device': ['unknown', 'desk', 'phone'],
        'slot': ['1', '2', '3', '10'],
    }


def test_merged_rows_have_the_context_of_the_first(tmp_path):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'log.csv').write_text(
        'user,item,time,label,likes,shares,buys,device,slot,price,position\n'
        '1,1,10,1,0,0,0,,3,5,0\n'
        '1,1,10,0,0,0,0,phone,2,6,1\n'
        '1,2,10,0,0,0,0,desk,1,7,2\n'
        '1,2,10,0,0,0,0,,2,8,3\n'
    )
    dataset = Shop(tmp_path, log=False)
    store = dataset[0][CLICKS]
    # The first row of the first exposure has no device: that of its second row is not its own.
    device = [dataset.names['device'][code] for code in store.edge_label_device]
    assert device == ['unknown', 'desk']
    assert [dataset.names['slot'][code] for code in store.edge_label_slot] == ['3', '1']
    assert store.edge_label_x.tolist() == [[5, 0], [7, 2]]


class Slow(Shop):
    table = LogTable(time_unit='ms', merge_duplicates=True)


def test_when_labels_are_known(tmp_path):
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'log.csv').write_text(
        'user,item,time,label,settled\n1,1,3000,1,9500\n1,2,1000,0,2000\n1,1,3000,0,4200\n2,1,2000,1,2000\n'
    )
    store = Slow(tmp_path, log=False)[0][CLICKS]
    # In seconds, of rows that are one when the last of them is.
    assert store.edge_label_time.tolist() == [1, 2, 3]
    assert store.edge_label_settled.tolist() == [2, 2, 9]
    assert store.edge_label_settled.dtype == torch.long
    # Nothing tells when they were clicked.
    assert store.time.tolist() == [2, 9]


def write_shop(root, text):
    (root / 'raw').mkdir(exist_ok=True)
    (root / 'raw' / 'log.csv').write_text(text)
    return root


def test_example_of_contributing_runs(tmp_path):
    text = (Path(__file__).parents[2] / 'CONTRIBUTING.md').read_text()
    code = text.split('## Add a dataset')[1].split('```python\n')[1].split('```')[0]
    assert len(code.splitlines()) < 20
    module = types.ModuleType('shop')
    exec(code, module.__dict__)
    (tmp_path / 'raw').mkdir()
    (tmp_path / 'raw' / 'shop.csv').write_text(
        'customer,sku,shown_at,clicked,device\n'
        'ann,s2,3000,1,phone\nbob,s1,1500,0,\nann,s1,2999,1,desk\n'
    )
    dataset = module.Shop(tmp_path, log=False)
    store = dataset[0][CLICKS]
    assert store.edge_label_time.tolist() == [1, 2, 3]
    assert store.edge_label_index.tolist() == [[1, 0, 0], [0, 0, 1]]
    assert store.edge_label.tolist() == [0, 1, 1]
    assert store.edge_index.tolist() == [[0, 0], [0, 1]] and store.time.tolist() == [2, 3]
    assert [dataset.names['device'][code] for code in store.edge_label_device] == [
        'unknown',
        'desk',
        'phone',
    ]
    assert dataset.raw_ids['user'].tolist() == ['ann', 'bob']
    (tmp_path / 'raw' / 'shop.csv').write_text('customer,sku,shown_at,clicked,device\n')
    with pytest.raises(ValueError, match=r'shop\.csv had 91 bytes, has now 37'):
        module.Shop(tmp_path, log=False)


def test_example_without_its_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Shop needs log\.csv in .*raw', but did not"):
        Shop(tmp_path, log=False)


HEAD = 'user,item,time,label'


@pytest.mark.parametrize(
    'text, table, error, match',
    [
        (f'{HEAD}\n1,2,3,1\n', None, TypeError, 'Shop.read must return a LogTable, but got None'),
        (
            'user,item,label\n1,2,1\n',
            LogTable(),
            ValueError,
            "table 'log' with a column 'time', but its columns are 'user', 'item', 'label'",
        ),
        (f'{HEAD}\n1,2,3,1\n', LogTable(contexts=('city',)), ValueError, "with a column 'city'"),
        (f'{HEAD}\n1,2,noon,1\n', LogTable(), TypeError, "'time' with numbers or.*VARCHAR"),
        (f'{HEAD}\n', LogTable(), ValueError, r'log\.csv must hold rows of a log, but got none'),
        (
            f'{HEAD}\n1,2,3,1\n,2,3,1\n',
            LogTable(),
            ValueError,
            "row 2 of the log: column 'user' must hold a value, but got nothing.",
        ),
        (
            f'{HEAD}\n1,2,3,1\n1,2,3,2\n',
            LogTable(),
            ValueError,
            "row 2 of the log: column 'label' must hold 0 or 1, but got 2",
        ),
        (
            f'{HEAD},buys\n1,2,3,1,1\n1,2,3,1,-1\n',
            LogTable(conversion='buys'),
            ValueError,
            "row 2 of the log: column 'buys' must hold 0 or 1, but got -1",
        ),
        (
            f'{HEAD},price\n1,2,3,1,5\n1,2,3,1,\n',
            LogTable(features=('price',)),
            ValueError,
            "row 2 of the log: column 'price' must hold a value, but got nothing",
        ),
        (
            f'{HEAD},click_time\n1,2,3,1,2\n',
            LogTable(),
            ValueError,
            "'click_time' must hold no time before 'time', 3, but got 2",
        ),
        (
            f'{HEAD},settled\n1,2,3,0,2\n',
            LogTable(),
            ValueError,
            "'settled' must hold no time before 'time', 3, but got 2",
        ),
    ],
)
def test_tables_that_are_no_log(tmp_path, monkeypatch, text, table, error, match):
    monkeypatch.setattr(Shop, 'table', table)
    with pytest.raises(error, match=match):
        Shop(write_shop(tmp_path, text), log=False)
    assert not (tmp_path / 'processed').exists()


@pytest.mark.parametrize(
    'kwargs, error, match',
    [
        ({'time_unit': 'h'}, ValueError, "'time_unit' must be one of 's', 'ms'.*but got 'h'"),
        ({'merge_duplicates': 1}, TypeError, "'merge_duplicates' must be True or False, but got 1"),
        ({'contexts': 'city'}, TypeError, "'contexts' must be a tuple of columns, but got 'city'"),
        ({'features': ('a b',)}, ValueError, "must have a name such as 'device', but got 'a b'"),
        ({'query': 3}, ValueError, "must have a name such as 'device', but got 3"),
    ],
)
def test_bad_table(kwargs, error, match):
    with pytest.raises(error, match=match):
        LogTable(**kwargs)


@pytest.mark.parametrize(
    'time, unit, seconds',
    [
        ('-1500', 'ms', -2),
        ('-1.5', 's', -2),
        ("'1970-01-01 00:00:02.7'::TIMESTAMP", 's', 2),
        ("'1969-12-31'::DATE", 'ms', -86400),
        ('-1500000::HUGEINT', 'us', -2),
        ('2.25::DOUBLE', 's', 2),
        ('1999999999', 'ns', 1),
    ],
)
def test_times_in_seconds(tmp_path, monkeypatch, time, unit, seconds):
    def read(self, connection):
        connection.execute(
            f'CREATE TABLE log AS SELECT 1 AS user, 2 AS item, {time} AS time, 1 AS label'
        )
        return LogTable(time_unit=unit)

    monkeypatch.setattr(Shop, 'read', read)
    store = Shop(write_shop(tmp_path, 'nothing'), log=False)[0][CLICKS]
    assert store.time.tolist() == [seconds]


def test_columns_with_names_of_sql(tmp_path, monkeypatch):
    def read(self, connection):
        connection.execute("""
            CREATE TABLE log AS
            SELECT 1 AS user, 2 AS item, 3 AS time, 1 AS label, 'x' AS "order", 4.0 AS "limit",
                   ['a', 'b'] AS "select"
        """)
        connection.execute("""CREATE TABLE item_attribute AS SELECT 2 AS id, 'shoe' AS "group" """)
        return LogTable(
            merge_duplicates=True, contexts=('order',), features=('limit',), query='select'
        )

    monkeypatch.setattr(Shop, 'read', read)
    dataset = Shop(write_shop(tmp_path, 'nothing'), log=False)
    assert dataset.names['order'] == ['x'] and dataset.names['group'] == ['shoe']
    assert dataset[0][CLICKS].edge_label_x.tolist() == [[4]]
    assert dataset.names['query'] == ['', 'a', 'b']


def test_a_read_that_fails_is_told_as_it_was(tmp_path, monkeypatch):
    def read(self, connection):
        connection.execute('CREATE TABLE log AS SELECT 1 AS user')
        connection.execute('CREATE TABLE item_attribute AS SELECT nonsense FROM log')

    monkeypatch.setattr(Shop, 'read', read)
    with pytest.raises(ValueError, match='"nonsense" not found'):
        Shop(write_shop(tmp_path, 'nothing'), log=False)
