import re

import numpy as np
import pytest

from mag.online import EVENT, check_events


def test_an_event_is_17_bytes_in_one_order_everywhere() -> None:
    event = np.array([(1, 2, 3, 1)], EVENT)
    assert event.tobytes() == bytes([1, 0, 0, 0, 2, 0, 0, 0, 3, *7 * [0], 1])


def test_events_pass() -> None:
    check_events(np.array([(0, 2**31 - 1, -(2**63), 0), (5, 0, 2**63 - 2, 1)], EVENT))
    check_events(np.empty(0, EVENT))
    check_events(np.zeros(10, EVENT)[::2])


@pytest.mark.parametrize(
    ('events', 'error', 'message'),
    [
        ([(1, 2, 3, 1)], TypeError, "must be an array of mag.online.EVENT, but got <class 'list'>"),
        (np.zeros(3), TypeError, 'must be an array of mag.online.EVENT, but got one of float64'),
        (np.zeros(3, EVENT.newbyteorder('>')), TypeError, "got one of [('user', '>i4'), "),
        (np.zeros(3, np.dtype(EVENT.descr, align=True)), TypeError, "got one of {'names'"),
        (np.zeros((2, 1), EVENT), ValueError, 'must be of shape [N], but got shape [2, 1]'),
        (
            np.array([(1, 2, 3, 0), (-4, 2, 3, 0), (-5, 2, 3, 0)], EVENT),
            IndexError,
            'must have users from 0, but 2 of 3 have not, such as -4 in row 1',
        ),
        (
            np.array([(1, -2, 3, 0)], EVENT),
            IndexError,
            'must have items from 0, but 1 of 1 has not, such as -2 in row 0',
        ),
        (
            np.array([(1, 2, 3, 1), (1, 2, 2**63 - 1, 1)], EVENT),
            ValueError,
            'must have times before 9223372036854775807, but 1 of 2 has not, such as 9223372036854',
        ),
        (
            np.array([(1, 2, 3, 1), (1, 2, 3, 2)], EVENT),
            ValueError,
            "must have 'clicked' of 0 or 1, but 1 of 2 has not, such as 2 in row 1",
        ),
    ],
)
def test_others_are_refused(events: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        check_events(events)
