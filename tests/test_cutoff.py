import pytest
import torch

from mag.cutoff import first_cutoff, history_clock, require_not_earlier, window_of_click
from mag.schema import CLICKS


def test_history_clock_prefers_position(micro):
    position = torch.rand(5)
    assert history_clock(micro()).tolist() == [1, 2, 2, 5, 9]
    assert torch.equal(history_clock(micro(position=position)), position)


def test_window_of_click(micro):
    assert window_of_click(micro(), 'Reader') == (None, 1)
    assert window_of_click(micro(cutoff=torch.tensor(10)), 'Reader') == (None, 1)
    # A click at a cutoff is not strictly before it, and belongs to the next window.
    window, num_windows = window_of_click(micro(cutoff=torch.tensor([2, 6, 10])), 'Reader')
    assert (window.tolist(), num_windows) == ([0, 1, 1, 1, 2], 3)
    assert window_of_click(micro(cutoff=torch.tensor([10])), 'Reader') == (None, 1)
    data = micro(cutoff=torch.tensor([10]), edge_label_window=torch.tensor([0, 0]))
    window, num_windows = window_of_click(data, 'Reader')
    assert (window.tolist(), num_windows) == ([0] * 5, 1)


@pytest.mark.parametrize(
    ('attributes', 'match'),
    [
        ({'cutoff': torch.tensor(9)}, 'clicks up to 9, but the cutoff of this data is 9'),
        ({'cutoff': torch.tensor([3, 9])}, 'strictly before'),
        ({'cutoff': torch.tensor([12, 10])}, r'ascending cutoffs, but got \[12, 10\]'),
        ({'cutoff': torch.tensor([10, 10])}, 'ascending'),
        ({'cutoff': torch.full((2, 2), 10)}, r'of shape \[num_windows\], but got shape \[2, 2\]'),
        ({'cutoff': torch.empty(0)}, r'but got shape \[0\]'),
        ({'edge_label_window': torch.tensor([0])}, "no 'cutoff'"),
        ({'cutoff': torch.tensor(10), 'position': torch.rand(4)}, r"'position' of shape \[5\]"),
    ],
)
def test_window_of_click_refuses(micro, attributes, match):
    with pytest.raises(ValueError, match=f'Reader.*{match}'):
        window_of_click(micro(**attributes), 'Reader')


@pytest.mark.parametrize(
    ('cutoff', 'window', 'match'),
    [
        ([5, 10], [0, 2], 'from 0 to 2, but expected them from 0 to 1'),
        (10, [1], 'from 1 to 1, but expected them from 0 to 0'),
        (10, [-1], 'from -1 to -1'),
    ],
)
def test_window_of_click_refuses_windows_that_do_not_exist(micro, cutoff, window, match):
    data = micro(cutoff=torch.tensor(cutoff), edge_label_window=torch.tensor(window))
    with pytest.raises(IndexError, match=f"Reader found windows of 'edge_label_window' {match}"):
        window_of_click(data, 'Reader')


def test_window_of_click_needs_a_clock(micro):
    data = micro(cutoff=torch.tensor(10))
    del data[CLICKS].time
    with pytest.raises(ValueError, match="no 'time' to compare"):
        window_of_click(data, 'Reader')


def test_first_cutoff(micro):
    position = torch.linspace(0, 1, 5, dtype=torch.float64)
    for attributes, expected in (
        ({'cutoff': torch.tensor([6, 10])}, ('time', 6)),
        ({'cutoff': torch.tensor(7)}, ('time', 7)),
        ({'cutoff': 2**62 + 1}, ('time', 2**62 + 1)),
        ({'cutoff': torch.tensor([0.75, 0.5]), 'position': position}, ('position', 0.5)),
        # Of a whole log all was seen.
        ({}, ('time', 10)),
        ({'time': torch.full((5,), 2**63 - 1)}, ('time', 2**63)),
    ):
        assert first_cutoff(micro(**attributes), 'Reader') == expected
    data = micro()
    del data[CLICKS].time
    assert first_cutoff(data, 'Reader') == ('time', float('inf'))
    with pytest.raises(ValueError, match=r'Reader expects .*num_windows\], but got shape \[0\]'):
        first_cutoff(micro(cutoff=torch.empty(0)), 'Reader')


def test_require_not_earlier(micro):
    fitted = first_cutoff(micro(cutoff=torch.tensor([8, 12])), 'Reader')
    for moment in (8, 9, 2**62):
        assert require_not_earlier(micro(cutoff=torch.tensor(moment)), 'Reader', fitted) is None
    assert require_not_earlier(micro(), 'Reader', fitted) is None
    position = torch.linspace(0, 1, 5, dtype=torch.float64)
    by_user = micro(cutoff=torch.tensor([0.5]).double(), position=position)
    assert require_not_earlier(by_user, 'Reader', first_cutoff(by_user, 'Reader')) is None
    without = micro()
    del without[CLICKS].time
    for data, other, sentence in (
        (
            micro(cutoff=torch.tensor([7, 12])),
            fitted,
            'fitted as of time 8, but the first cutoff of this data is time 7, and its rows may '
            'read their own future: fit it on the training part',
        ),
        (by_user, fitted, "is position 0.5, and a time and a position in a user's own log cannot"),
        (micro(cutoff=8), first_cutoff(by_user, 'Reader'), 'fitted as of position 0.5, .* time 8'),
        (micro(cutoff=9), first_cutoff(micro(), 'Reader'), 'as of time 10, .* is time 9'),
        (micro(cutoff=9), first_cutoff(without, 'Reader'), 'as of an unknown time, .* is time 9'),
        (micro(cutoff=torch.nan), fitted, 'is time nan'),
    ):
        with pytest.raises(ValueError, match=f'Reader was .*{sentence}'):
            require_not_earlier(data, 'Reader', other)
