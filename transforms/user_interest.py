import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from tqdm import tqdm

from mag.checks import check_booleans, check_integers
from mag.cutoff import Cutoff, first_cutoff, history_clock, require_not_earlier, window_of_click
from mag.modality import check_features, has_modality, modality_features
from mag.schema import CLICKS, require, require_cpu, require_positive_integers
from mag.loader.unclicked_items import UnclickedItems

# Pairs that are scored at once.
_CHUNK = 2**14


class UserInterest(torch.nn.Module):
    r"""How much each user cares for what looks, sounds and texts tell of an item: the interest
    matrix and its pre-training from `"Click-Through Rate Prediction with Multi-Modal Hypergraphs"
    <https://doi.org/10.1145/3459637.3482327>`_ (eq. 9 and 10).

    .. code-block:: python

        model = UserInterest.from_data(train).fit(train)
        train['user'].interest = model.interest(train)

    The interest of a user :math:`u` who clicked item :math:`i`, in the modality :math:`m` of its
    features :math:`\mathbf{x}^m_i`, is

    .. math::
        f(u, i, \mathbf{a}) = \sigma \Big( \sum_k e^I_{ik} \, (\mathbf{W} \mathbf{a})_k \,
        e^U_{uk} \Big), \qquad \mathbf{a}^m_i = \mathbf{W}_m \mathbf{x}^m_i + \mathbf{b}_m,

    a number, which is the one reading of eq. 10 by which dimensions fit. It is learned by telling
    the features of a clicked item from those of items :math:`j` that the user did not click,

    .. math::
        \mathcal{L} = - \Big( f(u, i, \mathbf{a}^m_i) - \log \sum_j \exp f(u, i, \mathbf{a}^m_j)
        \Big),

    averaged over modalities and over pairs :math:`(u, i)` with a click or more. Eq. 9 is that
    without the first minus, and is said to be minimised; its sum is over negatives alone.

    The item's embedding can solve this task without the user: it need only learn which features are
    its own, after which :math:`f` is near 1 for everybody in everything. So :math:`\mathbf{e}^I_i`
    is :math:`\mathbf{1}` and a deviation, which starts small and is decayed, and features are left
    for the users to tell apart. The paper does not say how it starts.

    An item whose features of a modality are all zeros has nothing of it, and takes no part in loss
    and interest there.

    Args:
        num_users (int): The number of users.
        features (dict[str, torch.Tensor]): For one modality or more, the features of all items,
            shape :obj:`[num_items, F_m]`. They are no part of the state that is saved.
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`64`)
        include_positive (bool, optional): If set to :obj:`True`, the sum is over the positive, too,
            which makes the loss InfoNCE. (default: :obj:`False`)
        logits (bool, optional): If set to :obj:`True`, the loss is of the sums without
            :math:`\sigma`, whose gradients do not fade. Without :obj:`include_positive` it then has
            no lower bound. (default: :obj:`False`)

    Attributes:
        modalities (tuple[str, ...]): The name of each column of the interests.

    Raises:
        TypeError: If features are no floats.
        ValueError: If a size is not positive, there is no modality, or features have another shape
            or are NaN or infinite.
    """

    has_modality: Tensor
    _cutoff: Cutoff | None

    def __init__(
        self,
        num_users: int,
        features: Mapping[str, Tensor],
        embedding_dim: int = 64,
        include_positive: bool = False,
        logits: bool = False,
    ) -> None:
        super().__init__()
        require_positive_integers(num_users=num_users, embedding_dim=embedding_dim)
        check_booleans(include_positive=include_positive, logits=logits)
        num_items = check_features(features, 'UserInterest')
        self.modalities = tuple(features)
        self.num_users, self.num_items = num_users, num_items
        self.include_positive = include_positive
        self.use_logits = logits
        self.register_buffer('has_modality', has_modality(features), persistent=False)
        for column, x in enumerate(features.values()):
            self.register_buffer(f'x_{column}', x.float(), persistent=False)
        self.user_embedding = torch.nn.Embedding(num_users, embedding_dim)
        self.item_deviation = torch.nn.Embedding(num_items, embedding_dim)
        self.lin = torch.nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.lin_modality = torch.nn.ModuleList(
            torch.nn.Linear(x.size(1), embedding_dim) for x in features.values()
        )
        self.reset_parameters()

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> 'UserInterest':
        r"""Builds the model for a log, with every :obj:`x_<name>` of the items for a modality, and
        :obj:`has_<name>` where there is one.

        Args:
            data (HeteroData): A log, or a part of one.
            **kwargs (optional): Arguments of :class:`UserInterest`.

        Raises:
            ValueError: If the items have no features, they are of another shape or NaN or infinite,
                or a :obj:`has_<name>` is no boolean for each item.
        """
        require(data, 'UserInterest.from_data')
        features = modality_features(data, 'UserInterest.from_data')
        return cls(data['user'].num_nodes, features, **kwargs)

    def reset_parameters(self) -> None:
        self._cutoff = None
        torch.nn.init.normal_(self.user_embedding.weight, std=0.1)
        torch.nn.init.normal_(self.item_deviation.weight, std=0.01)
        self.lin.reset_parameters()
        for lin in self.lin_modality:
            lin.reset_parameters()  # type: ignore[operator]

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        r"""The interest :math:`f(u, i, \mathbf{a}^m_i)` of users in the modalities of items, and 0
        where the item has none, shape :obj:`[B, M]`.

        Args:
            user (torch.Tensor): Users, shape :obj:`[B]`.
            item (torch.Tensor): An item for each, shape :obj:`[B]`.
        """
        interest = self.logits(user, item, item.unsqueeze(1)).squeeze(1).sigmoid()
        return interest * self.has_modality[item]

    def logits(self, user: Tensor, item: Tensor, other: Tensor) -> Tensor:
        r"""The sums within :math:`f(u, i, \mathbf{a}^m_j)`, shape :obj:`[B, N, M]`.

        Args:
            user (torch.Tensor): Users, shape :obj:`[B]`.
            item (torch.Tensor): An item :math:`i` for each, shape :obj:`[B]`.
            other (torch.Tensor): Items :math:`j` whose features are scored, shape :obj:`[B, N]`.
        """
        query = self.user_embedding(user) * (1 + self.item_deviation(item)) @ self.lin.weight
        # Queries are projected, as there are fewer of them than of items.
        scores = []
        for column, projection in enumerate(self.lin_modality):
            x = getattr(self, f'x_{column}')[other]
            score = (x @ (query @ projection.weight).unsqueeze(-1)).squeeze(-1)
            scores.append(score + (query @ projection.bias).unsqueeze(1))
        return torch.stack(scores, dim=-1)

    def loss(self, user: Tensor, item: Tensor, negative: Tensor) -> Tensor:
        r"""The loss :math:`\mathcal{L}` of pairs, and 0 if none of the items has features.

        Args:
            user (torch.Tensor): Users, shape :obj:`[B]`.
            item (torch.Tensor): The item that each clicked, shape :obj:`[B]`.
            negative (torch.Tensor): Items that each did not click, shape :obj:`[B, N]`.
        """
        score = self.logits(user, item, torch.cat([item.unsqueeze(1), negative], dim=1))
        if not self.use_logits:
            score = score.sigmoid()
        has_negative = self.has_modality[negative]
        counts = self.has_modality[item] & has_negative.any(1)
        # What does not count must stay finite: its gradient would be NaN, and not 0.
        ignored = ~has_negative & counts.unsqueeze(1)
        against = score[:, 1:].masked_fill(ignored, -torch.inf)
        if self.include_positive:
            against = torch.cat([score[:, :1], against], dim=1)
        gain = score[:, 0] - against.logsumexp(1)
        return -(gain * counts).sum() / counts.sum().clamp(min=1)

    def fit(
        self,
        data: HeteroData,
        num_epochs: int = 10,
        batch_size: int = 1024,
        num_negatives: int = 10,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        seed: int = 0,
        progress: bool = True,
    ) -> 'UserInterest':
        r"""Learns from what users clicked before the first cutoff of :obj:`data`, with Adam.

        :func:`mag.training.fit` learns from labelled exposures, and goes on until it predicts
        others best. Here there are none: what is learned is a feature of the labelled rows, so that
        only clicks before the first of them can be read.

        Args:
            data (HeteroData): A training part, or a log without a cutoff, all of whose clicks are
                read. :obj:`TemporalSplit(num_windows=1)` leaves most to learn from.
            num_epochs (int, optional): Passes over these pairs. (default: :obj:`10`)
            batch_size (int, optional): Pairs a step. (default: :obj:`1024`)
            num_negatives (int, optional): Items a pair, drawn from those that the user did not
                click, all with the same chance. (default: :obj:`10`)
            learning_rate (float, optional): The step size. (default: :obj:`3e-3`)
            weight_decay (float, optional): The share of the embeddings of users, and of the
                deviations of items, that is added to their gradients. (default: :obj:`1e-2`)
            seed (int, optional): Seed of the order of pairs and of the negatives. The first
                weights are the caller's. (default: :obj:`0`)
            progress (bool, optional): If set to :obj:`False`, no progress bar is shown.
                (default: :obj:`True`)

        Raises:
            FloatingPointError: If the loss becomes NaN or infinite.
            TypeError: If :obj:`seed` is no integer.
            ValueError: If a number is out of range, there is no click to learn from, or the data
                has other numbers of users and items.
        """
        require_positive_integers(
            num_epochs=num_epochs, batch_size=batch_size, num_negatives=num_negatives
        )
        check_integers(0, seed=seed)
        check_booleans(progress=progress)
        if not 0 < learning_rate < math.inf:
            raise ValueError(f"'learning_rate' must be positive, but got {learning_rate}.")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"'weight_decay' must be at least 0, but got {weight_decay}.")
        pairs = self._positives(data)
        unclicked = UnclickedItems(pairs, self.num_users, self.num_items)
        # Who clicked everything has no negatives.
        user, item = pairs[:, unclicked.count[pairs[0]] > 0]
        if user.numel() == 0:
            raise ValueError(
                f'UserInterest.fit learns from clicks before the first cutoff, of users with an '
                f'item that they did not click, but none of {pairs.size(1)} pairs is one.'
            )
        groups: list[dict[str, Any]] = [
            {
                'params': [self.user_embedding.weight, self.item_deviation.weight],
                'weight_decay': weight_decay,
            },
            {'params': [*self.lin.parameters(), *self.lin_modality.parameters()]},
        ]
        optimizer = torch.optim.Adam(groups, learning_rate)
        cutoff = first_cutoff(data, 'UserInterest')
        if self._cutoff is not None:
            # Weights that go on to learn keep what they know.
            is_one_clock = cutoff.clock == self._cutoff.clock
            cutoff = max(cutoff, self._cutoff) if is_one_clock else Cutoff('time', math.inf)
        self._cutoff = cutoff
        generator = torch.Generator().manual_seed(seed)
        device = self.has_modality.device
        for _ in tqdm(range(num_epochs), 'Learning interests', leave=False, disable=not progress):
            for rows in torch.randperm(user.numel(), generator=generator).split(batch_size):
                negative = unclicked.draw(user[rows], num_negatives, generator)
                batch = (tensor.to(device) for tensor in (user[rows], item[rows], negative))
                optimizer.zero_grad()
                loss = self.loss(*batch)
                if not loss.isfinite():
                    raise FloatingPointError(
                        f'The loss of UserInterest became {loss.item()} with learning_rate='
                        f'{learning_rate}: a smaller one may help.'
                    )
                loss.backward()
                optimizer.step()
        return self

    @torch.no_grad()
    def interest(self, data: HeteroData) -> Tensor:
        r"""The interest matrix :math:`\mathbf{F}`: of each user and modality, the mean of :math:`f`
        over the items with features there that the user clicked before the first cutoff of
        :obj:`data`. A user without any has 0.

        Args:
            data (HeteroData): A log, or a part of one.

        Returns:
            Interests between 0 and 1, shape :obj:`[num_users, M]`.

        Raises:
            ValueError: If the data has other numbers of users and items than the model, or an
                earlier first cutoff than what :meth:`fit` learned from, which copies of the model
                know and its :obj:`state_dict` does not.
        """
        user, item = self._positives(data)
        if self._cutoff is not None:
            require_not_earlier(data, 'UserInterest', self._cutoff)
        device = self.has_modality.device
        total = torch.zeros(self.num_users, len(self.modalities), device=device)
        count = torch.zeros_like(total)
        for rows in torch.arange(user.numel()).split(_CHUNK):
            who, what = user[rows].to(device), item[rows].to(device)
            total.index_add_(0, who, self(who, what).float())
            count.index_add_(0, who, self.has_modality[what].to(count.dtype))
        return (total / count.clamp(min=1)).cpu()

    def _positives(self, data: HeteroData) -> Tensor:
        r"""Users above items, once for each pair that clicks before the first label."""
        require(data, 'UserInterest', 'edge_index')
        require_cpu(data, 'UserInterest')
        for name, number in (('user', self.num_users), ('item', self.num_items)):
            if data[name].num_nodes != number:
                raise ValueError(
                    f'UserInterest was built for {number} {name}s, but the data has '
                    f'{data[name].num_nodes}.'
                )
        clicks = data[CLICKS]
        edge_index = clicks.edge_index
        if 'cutoff' in clicks:
            window_of_click(data, 'UserInterest')
            edge_index = edge_index[:, history_clock(data) < torch.as_tensor(clicks.cutoff).min()]
        pairs = (edge_index[0] * self.num_items + edge_index[1]).unique()
        return torch.stack([pairs // self.num_items, pairs % self.num_items])

    def extra_repr(self) -> str:
        return (
            f'modalities={list(self.modalities)}, include_positive={self.include_positive}, '
            f'logits={self.use_logits}'
        )
