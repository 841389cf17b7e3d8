import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_integers, check_numbers, check_tensor, check_values
from mag.schema import CLICKS, NEIGHBOR_TYPE, require, require_cpu


@functional_transform('interest_hypergraph')
class InterestHypergraph(BaseTransform):
    r"""Joins users who clicked the same item, and items that the same user clicked, out of interest
    in the same modality, slot by slot: the hypergraphs of `"Click-Through Rate Prediction with
    Multi-Modal Hypergraphs" <https://doi.org/10.1145/3459637.3482327>`_
    (functional name: :obj:`interest_hypergraph`).

    .. code-block:: python

        data = TimeSlots(timedelta(days=7))(data)
        train, val, test = TemporalSplit(num_windows=1)(data)
        data = UserInterest().fit(train)(data)
        data = InterestHypergraph()(data)
        model = HyperCTR.from_data(data)

    These are the hypergraphs of the whole log, in which a row of any part looks up the last slot
    that ended before its own: those of a part would end with its clicks, and tell a later part
    nothing. What users care for is learned before the first label.

    Of :obj:`data['user'].interest`, :math:`\mathbf{F}` of shape :obj:`[num_users, M]`, a user
    :math:`u` is taken to care for the modalities

    .. math::
        S_{um} = \left[ F_{um} > \delta \; \textrm{or} \; m = \arg\max_{m^{\prime}}
        F_{um^{\prime}} > 0 \right],

    so that only users of whom nothing is known, :math:`\mathbf{F}_u = \mathbf{0}`, are left out.
    Within a slot

    * the hyperedge :math:`(i, m)` joins the users with :math:`S_{um} = 1` who clicked item
      :math:`i`;
    * the hyperedge :math:`(u, m)`, for :math:`S_{um} = 1`, joins the items that user :math:`u`
      clicked.

    Who clicked twice is a member once. Hyperedges of fewer than two members join nobody and are
    dropped; of those of more than :obj:`max_size`, members are drawn, all with the same chance.
    The hyperedges of a slot do not depend on later slots. Clicks are read, and no labels.

    Adds to :obj:`data['user']` and :obj:`data['item']`

    * :obj:`hyperedge_index`: nodes above the hyperedges they are in, shape :obj:`[2, nnz]`, in the
      order of hyperedges and then of nodes;
    * :obj:`hyperedge_slot`: the slot of each hyperedge, shape :obj:`[num_hyperedges]`, int64.
      Hyperedges are in the order of slot, item (or user) and modality, so that those of a slot are
      an interval;
    * :obj:`hyperedge_modality`: the modality of each, as a column of :math:`\mathbf{F}`, shape
      :obj:`[num_hyperedges]`;
    * :obj:`hyperedge_weight`: the mean interest :math:`F_{um}` of the members of :math:`(i, m)`,
      and :math:`F_{um}` of :math:`(u, m)`, shape :obj:`[num_hyperedges]`, for
      :class:`~mag.nn.HypergraphConv`. The paper says of the weights no more than that they are
      a diagonal matrix; without them, each is 1.

    Args:
        threshold (float, optional): :math:`\delta`, on which the paper is silent. Interests that
            :class:`~mag.transforms.UserInterest` learned crowd above a half, where a little more
            than the default keeps modalities much further apart. (default: :obj:`0.5`)
        max_size (int, optional): The most members that a hyperedge has. (default: :obj:`100`)
        seed (int, optional): Seed of the draws. (default: :obj:`0`)

    Raises:
        TypeError: If the data is no :class:`~torch_geometric.data.HeteroData`, or an argument or
            the slots are no integers.
        ValueError: If an argument is out of range, or slots or interests are missing, have another
            shape or are out of range.
    """

    def __init__(self, threshold: float = 0.5, max_size: int = 100, seed: int = 0) -> None:
        check_numbers('[0, 1]', threshold=threshold)
        check_integers(2, max_size=max_size)
        check_integers(0, seed=seed)
        self.threshold = threshold
        self.max_size = max_size
        self.seed = seed

    def forward(self, data: HeteroData) -> HeteroData:
        require(data, 'InterestHypergraph', 'edge_index', 'slot')
        require_cpu(data, 'InterestHypergraph')
        slot, interest = _checked(data)
        cares = interest > self.threshold
        most, favorite = interest.max(dim=1, keepdim=True)
        cares |= torch.zeros_like(cares).scatter_(1, favorite, most > 0)

        # A click and a modality that its user cares for, once for each slot.
        user, item = data[CLICKS].edge_index
        slot, user, item = torch.stack([slot, user, item]).unique(dim=1)
        click, modality = cares[user].nonzero(as_tuple=True)
        slot, node = slot[click], {'user': user[click], 'item': item[click]}
        # Slots may be as large as int64, and what they are multiplied with may not.
        rank = slot.unique_consecutive(return_inverse=True)[1]
        share = interest[node['user'], modality]
        num_modalities = interest.size(1)
        for number, (node_type, other) in enumerate(NEIGHBOR_TYPE.items()):
            shared = (rank * data[other].num_nodes + node[other]) * num_modalities + modality
            # Rows are in the order of slots, so that those of later slots change no draw.
            draw = np.random.default_rng([self.seed, number]).random(slot.numel())
            index, kept = self._join(node[node_type], shared, torch.from_numpy(draw))
            store = data[node_type]
            num_hyperedges = int(index[1, -1]) + 1 if index.size(1) > 0 else 0
            size = index[1].bincount(minlength=num_hyperedges)
            store.hyperedge_index = index
            # All members have the same slot and modality, so any of them may tell it.
            for name, value in (('slot', slot), ('modality', modality)):
                of_member = value.new_empty(num_hyperedges).scatter_(0, index[1], value[kept])
                store[f'hyperedge_{name}'] = of_member
            total = share.new_zeros(num_hyperedges).index_add_(0, index[1], share[kept])
            store.hyperedge_weight = total / size
        return data

    def _join(self, node: Tensor, shared: Tensor, draw: Tensor) -> tuple[Tensor, Tensor]:
        r"""The incidences of hyperedges of all that share a value, and of which rows they are."""
        # The first members in a random order are a uniform draw.
        row = draw.argsort(stable=True)
        row = row[shared[row].argsort(stable=True)]
        _, hyperedge, size = shared[row].unique_consecutive(return_inverse=True, return_counts=True)
        place = torch.arange(row.numel()) - (size.cumsum(0) - size)[hyperedge]
        row = row[(size[hyperedge] > 1) & (place < self.max_size)]
        # Rows are in the order of users and items within a slot.
        row = row.sort().values
        row = row[shared[row].argsort(stable=True)]
        _, hyperedge = shared[row].unique_consecutive(return_inverse=True)
        return torch.stack([node[row], hyperedge]), row

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}(threshold={self.threshold}, max_size={self.max_size}, '
            f'seed={self.seed})'
        )


def _checked(data: HeteroData) -> tuple[Tensor, Tensor]:
    r"""Slots of the clicks and interests of the users."""
    caller, slot = 'InterestHypergraph', data[CLICKS].slot
    check_tensor(caller, 'slot', slot, (data[CLICKS].edge_index.size(1),), torch.long)
    check_values(caller, 'slot', slot, slot >= 0, '0 or more, as TimeSlots makes them')
    interest = data['user'].get('interest')
    if interest is None:
        raise ValueError(
            f"InterestHypergraph needs data['user'].interest, as UserInterest makes it, but "
            f"data['user'] has {list(data['user'].keys())}."
        )
    name, shape = "data['user'].interest", (data['user'].num_nodes, 'num_modalities')
    check_tensor(caller, name, interest, shape, 'floats')
    check_values(caller, name, interest, (interest >= 0) & (interest <= 1), '0 to 1')
    if interest.size(1) == 0:
        raise ValueError(f'{caller} needs the interest in a modality or more, but got none.')
    return slot, interest
