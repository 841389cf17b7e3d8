from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mag.datasets import EventLog
from mag.pipeline.raw_log import RawLog
from mag.pipeline.request import Request, read_request, request_of

pd = pytest.importorskip('pandas')

COLUMNS = {
    'user': 'user', 'item': 'item', 'time': 'time', 'label': 'label', 'query': 'words',
    'contexts': ['device', 'mobile', 'rank'], 'features': ['price'],
}  # fmt: skip
ROWS = {
    'user': ['ann', 'bob', 'ann', 'bob'],
    'item': ['tea', 'tea', 'rice', 'rice'],
    'time': [1, 2, 3, 4],
    'label': [1, 0, 1, 0],
    'device': ['phone', None, '', 'desk'],
    'mobile': [True, False, True, False],
    'rank': [1.0, 2.0, float('nan'), 1.0],
    'words': ['red shoes', ' ', None, '42'],
    'price': [1.0, 0.5, 2.0, 3.0],
}


@pytest.fixture
def log(tmp_path: Path) -> RawLog:
    dataset = EventLog(tmp_path, pd.DataFrame(ROWS), COLUMNS, log=False)
    return RawLog.of(dataset, ('contexts', 'features'))


def ask(log: RawLog, items: Any = ('tea',), **context: Any) -> Request:
    given = {
        'device': 'phone', 'mobile': True, 'rank': 1.0, 'query': 'red', 'price': 1.0, **context
    }  # fmt: skip
    return read_request(log, list(given), (), ' ', 'ann', list(items), None, given)


def test_a_row_is_told_as_the_log_has_it(log: RawLog) -> None:
    rows = request_of(log, log.events, torch.arange(4))
    names = {'device': 'device', 'mobile': 'mobile', 'rank': 'rank', 'query': 'words'}
    for row, item in enumerate(ROWS['item']):
        told = {name: ROWS[column][row] for name, column in {**names, 'price': 'price'}.items()}
        found = ask(log, [item], **told)
        for name in (*names, 'domain'):
            assert torch.equal(found.contexts[name][0], rows.contexts[name][row]), (row, name)
        assert torch.equal(found.x[0], rows.x[row])  # type: ignore[index]
    # What is missing in the log is a value of its own, and no new one.
    assert ask(log, device=None).contexts['device'].item() >= 0
    assert ask(log, device='watch').contexts['device'].item() == -1
    # In this log all rows tell whether it is mobile.
    assert ask(log, mobile=None).contexts['mobile'].item() == -1


def test_a_value_is_found_however_a_table_writes_it(log: RawLog, tmp_path: Path) -> None:
    path = tmp_path / 'log.csv'
    path.write_text(
        'user,item,time,label,device,mobile,rank,words,price\n'
        'ann,tea,1,1,0,True,1,red,1\nbob,tea,2,0,1,False,2,,1\n'
    )
    dataset = EventLog(tmp_path / 'csv', path, COLUMNS, log=False)
    of_words = RawLog.of(dataset, ('contexts', 'features'))
    for device, mobile, rank in (
        (True, True, 2.0),
        (1.0, np.bool_(True), np.float32(2)),
        (1, 'True', 2),
    ):
        told = ask(of_words, device=device, mobile=mobile, rank=rank).contexts
        names = {name: of_words.raw(name)[told[name].item()] for name in COLUMNS['contexts']}
        assert names == {'device': '1', 'mobile': 'True', 'rank': '2'}
    # A table with a rank that is missing has made 1.0 of 1.
    several = ask(log, ['tea'] * 4, rank=[1, 2.0, None, 3]).contexts['rank'].tolist()
    assert [log.raw('rank')[code] for code in several[:3]] == ['1.0', '2.0', 'unknown']
    assert several[3] == -1


def test_columns_tell_as_lists_do(log: RawLog) -> None:
    given = {name: ROWS[column] for name, column in (('device', 'device'), ('query', 'words'))}
    given |= {'rank': [1.0, 2.0, 1.0, 1.0], 'price': ROWS['price']}
    expected = ask(log, ['tea'] * 4, **given)
    for column in (pd.Series, lambda of: np.array(of, dtype=object), tuple):
        found = ask(log, ['tea'] * 4, **{name: column(of) for name, of in given.items()})
        for name, value in expected.contexts.items():
            assert torch.equal(found.contexts[name], value), name
        assert torch.equal(found.x, expected.x)  # type: ignore[arg-type]
    # A term may be a number.
    assert torch.equal(ask(log, query=42).contexts['query'], ask(log, query='42').contexts['query'])
    assert ask(log, query=42).contexts['query'][0, 0].item() > 0


@pytest.mark.parametrize(
    ('given', 'error', 'message'),
    [
        ({'price': None}, ValueError, "^'price' must be a number that fits .*, but got None\\.$"),
        ({'price': [1e300]}, ValueError, "^'price' must be .* float32, but got 1e.300\\.$"),
        ({'price': 'much'}, TypeError, "^'price' must be a number, .* 'much'\\.$"),
        ({'price': [[1.0]]}, ValueError, "^'price' must be a number, or .* got ..1.0..\\.$"),
        ({'device': b'phone'}, TypeError, "^An IdMap of ids of the kind 'text' .*\\.$"),
        ({'query': b'red'}, TypeError, "^An IdMap of ids of the kind 'text' .*\\.$"),
    ],
)
def test_bad_input_is_told(
    log: RawLog, given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ask(log, **given)


def test_a_time_and_a_context_that_are_none_are_told(log: RawLog) -> None:
    assert read_request(log, (), (), ' ', 'ann', ['tea'], np.int64(7), None).time.tolist() == [7]
    with pytest.raises(TypeError, match="^'time' must be an integer, but got 7.5\\.$"):
        read_request(log, (), (), ' ', 'ann', ['tea'], 7.5, None)
    with pytest.raises(ValueError, match=f"^'time' must lie below {2**63}, but got {2**70}\\.$"):
        read_request(log, (), (), ' ', 'ann', ['tea'], 2**70, None)
    with pytest.raises(TypeError, match="^'context' must be a dictionary of names, but got .*\\.$"):
        read_request(log, (), (), ' ', 'ann', ['tea'], None, ['phone'])  # type: ignore[arg-type]
