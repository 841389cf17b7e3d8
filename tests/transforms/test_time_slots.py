from datetime import timedelta
from typing import Any

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import HeteroData

from mag.transforms import TemporalSplit, TimeSlots

CLICKS = ('user', 'clicks', 'item')


def test_slots_of_a_small_log(toy_graph: HeteroData) -> None:
    toy_graph = toy_graph.clone()
    clicks = toy_graph[CLICKS]
    del clicks.cutoff
    clicks.time = torch.tensor([100, 109, 110, 110, 119, 120, 145])
    # The first exposures came before the first click.
    clicks.edge_label_time = torch.tensor(
        [90, 99, 100, 109, 110, 120, 130, 139, 140, 145, 149, 150]
    )
    out = TimeSlots(10)(toy_graph)[CLICKS]
    assert out.slot.tolist() == [0, 0, 1, 1, 1, 2, 4]
    assert out.edge_label_slot.tolist() == [0, 0, 0, 0, 1, 2, 3, 3, 4, 4, 4, 5]
    assert out.slot.dtype == out.edge_label_slot.dtype == torch.long
    assert out.num_slots == 6
    assert 'slot' not in clicks


def test_a_timedelta_is_as_many_seconds(click_log: HeteroData) -> None:
    for span, seconds in ((timedelta(minutes=1), 60), (timedelta(days=365), 365 * 86400)):
        assert repr(TimeSlots(span)) == repr(TimeSlots(seconds))
        ours, theirs = (TimeSlots(value)(click_log)[CLICKS] for value in (span, seconds))
        assert torch.equal(ours.slot, theirs.slot)
        assert torch.equal(ours.edge_label_slot, theirs.edge_label_slot)


def test_no_click_of_an_earlier_slot_is_later(click_log: HeteroData) -> None:
    for granularity in (1, 7, 100, 10_000):
        clicks = TimeSlots(granularity)(click_log)[CLICKS]
        assert int(clicks.slot.max()) < clicks.num_slots
        for time, slot in zip(clicks.edge_label_time, clicks.edge_label_slot):
            readable = clicks.time[clicks.slot < slot]
            assert bool((readable < time).all())
            # And what is left out is less than a slot old.
            kept_out = clicks.time[clicks.slot >= slot]
            assert bool((kept_out > time - granularity).all())


@pytest.mark.parametrize('by', ['global', 'user'])
def test_the_slots_of_parts_are_those_of_the_log(click_log: HeteroData, by: str) -> None:
    start = int(click_log[CLICKS].time.min())
    for part in TemporalSplit(by=by)(TimeSlots(13)(click_log)):
        clicks = part[CLICKS]
        assert torch.equal(clicks.slot, (clicks.time - start) // 13)
        expected = (clicks.edge_label_time - start).clamp(min=0) // 13
        assert torch.equal(clicks.edge_label_slot, expected)
        assert clicks.num_slots == TimeSlots(13)(click_log)[CLICKS].num_slots


def test_what_happens_later_does_not_move_a_slot(click_log: HeteroData) -> None:
    expected = TimeSlots(20)(click_log)[CLICKS]
    changed = click_log.clone()
    clicks = changed[CLICKS]
    clicks.time[clicks.time > 250] += 1000
    clicks.edge_label_time[clicks.edge_label_time > 250] += 1000
    out = TimeSlots(20)(changed)[CLICKS]
    assert torch.equal(out.slot[expected.time <= 250], expected.slot[expected.time <= 250])
    early = expected.edge_label_time <= 250
    assert torch.equal(out.edge_label_slot[early], expected.edge_label_slot[early])
    assert out.num_slots > expected.num_slots


def test_a_part_is_refused(click_log: HeteroData) -> None:
    part = TemporalSplit()(click_log)[1]
    with pytest.raises(ValueError, match='has the cutoff .* Apply TimeSlots before TemporalSplit'):
        TimeSlots(10)(part)


def test_a_log_without_clicks_is_refused(click_log: HeteroData) -> None:
    clicks = click_log.clone()
    clicks[CLICKS].edge_index = torch.empty(2, 0, dtype=torch.long)
    clicks[CLICKS].time = torch.empty(0, dtype=torch.long)
    with pytest.raises(ValueError, match='counts from the first click, but the log has none'):
        TimeSlots(10)(clicks)


def test_clicks_alone_have_slots(click_log: HeteroData) -> None:
    data = click_log.clone()
    clicks = data[CLICKS]
    for name in ('edge_label_index', 'edge_label_time'):
        clicks[name] = clicks[name][..., :0]
    out = TimeSlots(10)(data)[CLICKS]
    assert out.num_slots == int(out.slot.max()) + 1 and out.edge_label_slot.numel() == 0


@pytest.mark.parametrize(
    'granularity, message',
    [
        (0, "'granularity' must be at least 1, but got 0"),
        (-5, "'granularity' must be at least 1, but got -5"),
        (timedelta(0), "'granularity' must be at least 1, but got 0"),
        (timedelta(milliseconds=1500), "'granularity' must be of whole seconds.* got 0:00:01.5"),
    ],
)
def test_wrong_granularity(granularity: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSlots(granularity)
    with pytest.raises(TypeError, match="'granularity' must be an integer, but got 1.5"):
        TimeSlots(1.5)  # type: ignore[arg-type]


def test_missing_times_are_named(click_log: HeteroData) -> None:
    data = click_log.clone()
    del data[CLICKS].time
    with pytest.raises(ValueError, match=r"TimeSlots needs .* to have \['time'\]"):
        TimeSlots(10)(data)


def test_repr_and_composition(click_log: HeteroData) -> None:
    assert repr(TimeSlots(60)) == 'TimeSlots(granularity=60)'
    out = T.Compose([TimeSlots(60)])(click_log)
    assert torch.equal(out[CLICKS].slot, TimeSlots(60)(click_log)[CLICKS].slot)
