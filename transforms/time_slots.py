from datetime import timedelta

import torch
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_integers
from mag.cutoff import require_whole_log
from mag.schema import CLICKS, require


@functional_transform('time_slots')
class TimeSlots(BaseTransform):
    r"""Cuts the time of a log into slots of one length, counted from its first click, as
    `"Click-Through Rate Prediction with Multi-Modal Hypergraphs"
    <https://doi.org/10.1145/3459637.3482327>`_ does to make a hypergraph of each
    (functional name: :obj:`time_slots`).

    .. code-block:: python

        data = TimeSlots(timedelta(days=7))(data)
        train, val, test = TemporalSplit()(data)

    It takes the whole log, so that a slot is the same stretch of time in every part. Adds to
    :obj:`data['user', 'clicks', 'item']`

    * :obj:`slot`: that of each click, shape :obj:`[E]`, int64;
    * :obj:`edge_label_slot`: that of each exposure, shape :obj:`[L]`, int64; exposures before the
      first click are in slot 0;
    * :obj:`num_slots`: how many there are, the last with a click or an exposure among them;
    * :obj:`slot_start` and :obj:`slot_length`: when the first begins and how long each is, by which
      :class:`~mag.loader.HistoryLoader` tells the slot of a request.

    An exposure may read what happened in slots before its own, of which the last is
    :obj:`edge_label_slot - 1`: its own slot holds its own click, and what came after.

    Args:
        granularity (int or datetime.timedelta): The length of a slot, in seconds if a number.

    Raises:
        TypeError: If the data is no :class:`~torch_geometric.data.HeteroData`, or
            :obj:`granularity` no integer.
        ValueError: If :obj:`granularity` is no positive number of whole seconds, there is no click
            to count from, times lie further apart than int64 can hold, or the data is a part
            already.
    """

    def __init__(self, granularity: int | timedelta) -> None:
        if isinstance(granularity, timedelta):
            seconds, rest = divmod(granularity, timedelta(seconds=1))
            if rest:
                raise ValueError(
                    f"'granularity' must be of whole seconds, as times are, but got {granularity}."
                )
            granularity = seconds
        check_integers(1, below=2**63, granularity=granularity)
        self.granularity = granularity

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'TimeSlots', 'edge_index', 'time', 'edge_label_index', 'edge_label_time')
        clicks = data[CLICKS]
        require_whole_log(
            data, 'TimeSlots', 'Apply TimeSlots before TemporalSplit, which keeps the slots'
        )
        if clicks.time.numel() == 0:
            raise ValueError('TimeSlots counts from the first click, but the log has none.')
        start = clicks.time.min()
        moments = torch.cat([clicks.time, clicks.edge_label_time])
        first, last = (int(moment) for moment in moments.aminmax())
        if last - first >= 2**63:
            raise ValueError(
                f'TimeSlots found times from {first} to {last}, but int64 cannot hold the '
                f'difference: were they read in another unit than seconds?'
            )
        clicks.slot = (clicks.time - start) // self.granularity
        clicks.edge_label_slot = (clicks.edge_label_time - start).clamp(min=0) // self.granularity
        clicks.num_slots = (last - int(start)) // self.granularity + 1
        clicks.slot_start, clicks.slot_length = int(start), self.granularity
        return data

    def __repr__(self) -> str:
        return f'{self.__class__.__name__}(granularity={self.granularity})'
