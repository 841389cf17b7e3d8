import torch
from torch import Tensor

from mag.checks import check_ids, check_integers, check_tensor


class UnclickedItems:
    r"""The items that each user did not click, to draw negatives from: exactly, without lists of
    them and without trying again.

    >>> unclicked = UnclickedItems(torch.tensor([[0, 0, 1], [1, 2, 0]]), num_users=2, num_items=4)
    >>> unclicked.count
    tensor([2, 3])
    >>> drawn = unclicked.draw(torch.tensor([0, 0, 0]), 5, torch.Generator().manual_seed(0))
    >>> drawn.unique()
    tensor([0, 3])

    Args:
        pairs (torch.Tensor): Users above items they clicked, each pair once, in ascending order,
            shape :obj:`[2, P]`.
        num_users (int): The number of users.
        num_items (int): The number of items.

    Attributes:
        count (torch.Tensor): How many items each user did not click, shape :obj:`[num_users]`.

    Raises:
        IndexError: If a user or an item does not exist.
        TypeError: If pairs are no int64.
        ValueError: If pairs have another shape, or do not ascend.
    """

    def __init__(self, pairs: Tensor, num_users: int, num_items: int) -> None:
        check_integers(1, num_users=num_users, num_items=num_items)
        check_tensor('UnclickedItems', 'pairs', pairs, (2, 'P'), torch.long)
        for what, ids, number in zip(('users', 'items'), pairs, (num_users, num_items)):
            check_ids('UnclickedItems', what, ids, number)
        user, item = pairs
        key = user * num_items + item
        if bool((key[1:] <= key[:-1]).any()):
            raise ValueError(
                'UnclickedItems expects each pair of user and item once, in ascending order, but '
                'got others: pass pairs.unique(dim=1).'
            )
        clicked = user.bincount(minlength=num_users)
        self.count = num_items - clicked
        self.width = num_items + 1
        self.start = clicked.cumsum(0) - clicked
        # A user's j-th clicked item has its id, less j, unclicked items before it.
        place = torch.arange(user.numel()) - self.start[user]
        self.key = user * self.width + item - place

    def draw(self, user: Tensor, num: int, generator: torch.Generator) -> Tensor:
        r"""Items that each user did not click, all with the same chance, shape :obj:`[B, num]`.

        Args:
            user (torch.Tensor): Users with such an item, shape :obj:`[B]`.
            num (int): How many items for each; one may be drawn twice.
            generator (torch.Generator): Where chance comes from.

        Raises:
            ValueError: If a user clicked every item.
        """
        count = self.count[user].unsqueeze(1)
        if bool((count == 0).any()):
            raise ValueError(
                f'UnclickedItems has nothing to draw for user {int(user[count[:, 0] == 0][0])}, '
                f'who clicked all of {self.width - 1} items.'
            )
        chance = torch.rand(user.numel(), num, dtype=torch.float64, generator=generator)
        # A product may round up to the count itself.
        place = (chance * count).long().minimum(count - 1)
        user = user.unsqueeze(1)
        key = user * self.width + place
        return place + torch.searchsorted(self.key, key, right=True) - self.start[user]
