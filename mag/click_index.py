r"""The clicks of a log by owner and time."""

import torch
from torch import Tensor


class ClickIndex:
    r"""Finds the clicks of an owner strictly before a moment.

    An owner is whoever clicks are looked up for: a user, an item, or a user and a category
    together. Clicks are sorted by owner and time, so that those of one before a moment are an
    interval, whose end is found by binary search. Clicks of the same second keep the order of the
    log; those of the very second that is asked for are left out, since which came first is not
    known.

    Args:
        owner (torch.Tensor): The owner of each click, a number of 0 or more, shape :obj:`[E]`,
            int64.
        time (torch.Tensor): Its time, int64 seconds, shape :obj:`[E]`.
        num_owners (int): The number of owners.
        caller (str, optional): Whose name messages begin with. (default: :obj:`"ClickIndex"`)
        owners (str, optional): What the owners are, for messages. By default their number.

    Attributes:
        click (torch.Tensor): The clicks in the order of the index, as columns of the log, after a
            :obj:`-1`, which is found where there is none, shape :obj:`[1 + E]`.

    Raises:
        ValueError: If there are more owners times moments than int64 can number.
    """

    def __init__(
        self,
        owner: Tensor,
        time: Tensor,
        num_owners: int,
        *,
        caller: str = 'ClickIndex',
        owners: str | None = None,
    ) -> None:
        # Most logs are in the order of time, where no sort is needed.
        is_sorted = bool((time[1:] >= time[:-1]).all())
        unique = torch.unique_consecutive if is_sorted else torch.unique
        self.moments, moment = unique(time, return_inverse=True)
        # One more than there are moments: what is asked for may come after all of them.
        self._num_ranks = self.moments.numel() + 1
        if num_owners * self._num_ranks >= 2**63:
            raise ValueError(
                f'{caller} numbers the combinations of {owners or f"{num_owners} owners"} and '
                f'{self.moments.numel()} moments, which are too many for int64.'
            )
        key, click = (owner * self._num_ranks + moment).sort(stable=True)
        owner, place = owner[click], torch.arange(click.numel())
        is_first = torch.ones_like(owner, dtype=torch.bool)
        is_first[1:] = owner[1:] != owner[:-1]
        # How many there are of the same owner up to each.
        count = place + 1 - place.where(is_first, 0).cummax(0).values
        none = torch.tensor([torch.iinfo(torch.long).min, -1, 0]).split(1)
        self._key, self.click, self._count = (
            torch.cat(pair) for pair in zip(none, (key, click, count), strict=True)
        )

    def before(self, owner: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        r"""The clicks of each owner strictly before a time.

        Args:
            owner (torch.Tensor): The owners, of any shape. One that does not exist, such as
                :obj:`-1`, has no clicks.
            time (torch.Tensor): A time for each, int64 seconds, of a shape that broadcasts.

        Returns:
            The place of the newest in :obj:`click`, and how many there are, both of the shape of
            :obj:`owner`: the clicks are those at the places from :obj:`newest - count + 1` to
            :obj:`newest`.
        """
        start = owner * self._num_ranks
        newest = torch.searchsorted(self._key, start + torch.searchsorted(self.moments, time)) - 1
        # What comes before the moment is another's, if the owner has none.
        is_own = take(self._key, newest) >= start
        return newest, take(self._count, newest).where(is_own, 0)


def take(table: Tensor, index: Tensor) -> Tensor:
    r""":obj:`table.view(-1)[index]`, which is several times slower."""
    return table.reshape(-1).index_select(0, index.reshape(-1)).view(index.shape)


def first_click(clock: Tensor, node: Tensor, num_nodes: int) -> Tensor:
    r"""The clock of each node's first click, shape :obj:`[num_nodes]`; the largest value without a
    click. It serves exposures as well."""
    last = torch.inf if clock.is_floating_point() else torch.iinfo(clock.dtype).max
    first = torch.full((num_nodes,), last, dtype=clock.dtype)
    return first.scatter_reduce_(0, node, clock, 'amin')
