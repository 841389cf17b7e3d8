from collections.abc import Sequence
from typing import NamedTuple


class TargetView(NamedTuple):
    r"""Which exposures are counted together: those that agree in something of the user, of the item
    and of the exposure.

    Attributes:
        user (str or None): :obj:`"id"`, a categorical attribute of users, such as
            :obj:`"cluster_20"`, or :obj:`None` for all users alike. (default: :obj:`None`)
        item (str or None): The same of items. (default: :obj:`None`)
        exposure (str or None): A categorical attribute of exposures, such as :obj:`"position"`, or
            :obj:`None`. (default: :obj:`None`)
        prior (str or None): The name of the view whose rate is expected where this one has seen
            little; by default that of the user alone for a view of the user, else that of the item
            alone for a view of the item, else the rate of all exposures.
    """

    user: str | None = None
    item: str | None = None
    exposure: str | None = None
    prior: str | None = None

    @property
    def name(self) -> str:
        r"""Such as :obj:`"user"` or :obj:`"user_cluster_20 x item"`."""
        parts = [
            node_type if name == 'id' else f'{node_type}_{name}'
            for node_type, name in (('user', self.user), ('item', self.item))
            if name is not None
        ]
        return ' x '.join(parts + ([self.exposure] if self.exposure is not None else []))

    @property
    def expected(self) -> str | None:
        r"""The name of the view whose rate is the prior of this one's."""
        if self.prior is not None:
            return self.prior
        nodes = [name for name, of in (('user', self.user), ('item', self.item)) if of == 'id']
        return nodes[0] if nodes and nodes[0] != self.name else None


def target_views(user: list[str], item: list[str]) -> list[TargetView]:
    r"""The views of a macro graph at the target: the user, the item, the user's edge to the item's
    macro node, the item's edge to the user's, and the edge between both, at every resolution.

    Args:
        user (list[str]): The attributes that hold the macro nodes of users, one a resolution.
        item (list[str]): Those of items.
    """
    return [
        TargetView('id'),
        TargetView(item='id'),
        *(TargetView('id', name) for name in item),
        *(TargetView(name, 'id') for name in user),
        *(TargetView(of_user, of_item) for of_user in user for of_item in item),
    ]


def prior_places(views: Sequence[TargetView], num_ages: int = 1) -> list[int]:
    r"""For each column of counts the place of the one whose rate it is expected to have, or -1.

    Args:
        views (list[TargetView]): What is counted.
        num_ages (int, optional): How many columns a view has, one after the other.
            (default: :obj:`1`)
    """
    places = {view.name: place for place, view in enumerate(views)}
    return [
        -1 if view.expected is None else places[view.expected] * num_ages + age
        for view in views
        for age in range(num_ages)
    ]
