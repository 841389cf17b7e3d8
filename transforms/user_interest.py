import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.data.datapipes import functional_transform
from torch_geometric.transforms import BaseTransform

from mag.checks import check_booleans, check_integers, check_numbers, check_tensor
from mag.cutoff import Cutoff, first_cutoff, history_clock, require_not_earlier, window_of_click
from mag.lineage import id_maps, require_same_ids
from mag.loader import NegativeBatch, NegativeLoader
from mag.losses import interest_loss
from mag.modality import has_modality, modality_features
from mag.nn import InterestScore
from mag.schema import CLICKS, require, require_cpu
from mag.training.task import Task
from mag.transforms._fitted import fitted

# Pairs that are scored at once.
_CHUNK = 2**14

# The arguments of mag.training.fit that are not the caller's, who has no validation.
_OWN = (
    'task',
    'train_loader',
    'max_epochs',
    'seed',
    'val_loader',
    'patience',
    'validate_every',
    'monitor',
)


@functional_transform('user_interest')
class UserInterest(BaseTransform):
    r"""Learns how much each user cares for what looks, sounds and texts tell of an item: the
    interest matrix and its pre-training from `"Click-Through Rate Prediction with Multi-Modal
    Hypergraphs" <https://doi.org/10.1145/3459637.3482327>`_ (eq. 9 and 10;
    functional name: :obj:`user_interest`).

    .. code-block:: python

        train, val, test = TemporalSplit(num_windows=1)(data)
        data = UserInterest().fit(train)(data)

    Adds :obj:`data['user'].interest`, :math:`\mathbf{F}`: of each user :math:`u` and modality
    :math:`m`, the mean of the scores :math:`f(u, i, \mathbf{a}^m_i)` of the items :math:`i` that
    the user clicked and that have features there (:class:`~mag.nn.InterestScore`), between 0 and 1,
    shape :obj:`[num_users, M]`. A user without any has 0. There is a modality for each
    :obj:`data['item'].x_<name>`; an item whose features are all zeros, or whose
    :obj:`has_<name>` is false, has nothing of it.

    The scores are learned by :meth:`fit` from what users clicked before the first cutoff of a
    training part, by telling the features of a clicked item from those of items that the user did
    not click (:func:`~mag.losses.interest_loss`). What a part is told are the clicks before its own
    first cutoff, and what a whole log is told those before that of :meth:`fit`: interests are a
    feature of labelled rows, the first of which may read no click after. A part whose first cutoff
    is earlier than that of the part it was fitted on is refused, as those scores know its future.
    On a later export that was read with the ids of the log it was fitted on, users that are new
    have no interest, and clicks on items that are new say nothing; a log of other ids is refused.
    An unfitted transform that is called fits on what it is given and leaves itself unchanged.

    Args:
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`64`)
        num_epochs (int, optional): Passes over the pairs of a user and a clicked item.
            (default: :obj:`10`)
        batch_size (int, optional): Pairs a step. (default: :obj:`1024`)
        num_negatives (int, optional): Items a pair, drawn from those that the user did not click,
            all with the same chance. (default: :obj:`10`)
        learning_rate (float, optional): The step size of Adam. (default: :obj:`3e-3`)
        weight_decay (float, optional): The share of the embeddings of users, and of the deviations
            of items, that is added to their gradients. Without it items learn which features are
            their own, and users nothing. (default: :obj:`1e-2`)
        include_positive (bool, optional): See :func:`~mag.losses.interest_loss`.
            (default: :obj:`False`)
        logits (bool, optional): If set to :obj:`True`, the loss is of the sums without
            :math:`\sigma`, whose gradients do not fade. Without :obj:`include_positive` it then has
            no lower bound. (default: :obj:`False`)
        seed (int, optional): Seed of the first weights, the order of pairs and the negatives.
            (default: :obj:`0`)

    Attributes:
        modalities (tuple[str, ...]): The name of each column of the interests; empty before
            :meth:`fit`.

    Raises:
        TypeError: If the data is no :class:`~torch_geometric.data.HeteroData`, features are no
            floats, or an argument has another type.
        ValueError: If an argument is out of range; if the items have no features, or such as are
            NaN or infinite or of another shape; or if the data has other users, items or modalities
            than what the transform was fitted on, or an earlier first cutoff.
    """

    def __init__(
        self,
        embedding_dim: int = 64,
        num_epochs: int = 10,
        batch_size: int = 1024,
        num_negatives: int = 10,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        include_positive: bool = False,
        logits: bool = False,
        seed: int = 0,
    ) -> None:
        check_integers(
            1,
            embedding_dim=embedding_dim,
            num_epochs=num_epochs,
            batch_size=batch_size,
            num_negatives=num_negatives,
        )
        check_numbers('(0, inf)', learning_rate=learning_rate)
        check_numbers('[0, inf)', weight_decay=weight_decay)
        check_booleans(include_positive=include_positive, logits=logits)
        check_integers(0, 2**32, seed=seed)
        self.embedding_dim = embedding_dim
        self.num_epochs = num_epochs
        self.batch_size = batch_size
        self.num_negatives = num_negatives
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.include_positive = include_positive
        self.logits = logits
        self.seed = seed
        self.modalities: tuple[str, ...] = ()
        self._score: InterestScore | None = None
        self._cutoff: Cutoff | None = None
        self._sizes: dict[str, int] = {}
        self._id_maps: dict[str, str] = {}

    def fit(self, data: HeteroData, **fit_arguments: Any) -> 'UserInterest':
        r"""Learns from what users clicked before the first cutoff of :obj:`data`. What was learned
        before is forgotten.

        Args:
            data (HeteroData): A training part, or a log without a cutoff, all of whose clicks are
                read. :obj:`TemporalSplit(num_windows=1)` leaves most to learn from.
            **fit_arguments (optional): Arguments of :func:`mag.training.fit`, such as
                :obj:`directory`, by which a fit that was killed goes on, :obj:`progress` or
                :obj:`accelerator`, but none of those that the transform sets itself.

        Raises:
            FloatingPointError: If the loss becomes NaN or infinite.
            TypeError: If an argument is one that the transform sets itself.
            ValueError: If there is no click to learn from, or :obj:`directory` holds a fit of
                other arguments.

        And whatever :func:`mag.training.fit` raises.
        """
        # Here, because it takes longer to import than all transforms.
        from mag.training import fit
        from mag.training.run import random_state, set_random_states

        own = sorted(set(_OWN).intersection(fit_arguments))
        if own:
            raise TypeError(
                f'UserInterest.fit takes directory, log_every_n_steps, resume, progress, callbacks '
                f"and arguments of lightning's Fabric, but got {own}: num_epochs and seed are "
                f'arguments of UserInterest.'
            )
        features = _features(data)
        pairs = _pairs(data, None)
        sizes = _sizes(data, features)
        loader = NegativeLoader(
            pairs,
            sizes['users'],
            sizes['items'],
            self.batch_size,
            shuffle=True,
            seed=self.seed,
            num_negatives=self.num_negatives,
        )
        if len(loader) == 0:
            raise ValueError(
                f'UserInterest.fit learns from clicks before the first cutoff, of users with an '
                f'item that they did not click, but none of {pairs.size(1)} pairs is one.'
            )
        cutoff = first_cutoff(data, 'UserInterest')
        # The generators are the caller's.
        state = random_state()
        try:
            torch.manual_seed(self.seed)
            widths = [x.size(1) for x in features.values()]
            score = InterestScore(sizes['users'], sizes['items'], widths, self.embedding_dim)
            task = _InterestTask(self, score, features)
            fit(task, loader, max_epochs=self.num_epochs, seed=self.seed, **fit_arguments)
        finally:
            set_random_states(state)
        self.modalities = tuple(features)
        # Interests are computed in the precision of the features, whatever that of the fit was.
        self._score, self._cutoff, self._sizes = score.float(), cutoff, sizes
        self._id_maps = id_maps(data)
        return self

    def forward(self, data: HeteroData) -> HeteroData:
        features = _features(data)
        if self._score is None or self._cutoff is None:
            return copy.copy(self).fit(data).forward(data)
        require_not_earlier(data, 'UserInterest', self._cutoff)
        sizes, given = _sizes(data, features), id_maps(data)
        require_same_ids('UserInterest was fitted on', self._id_maps, given)
        grown = {'users', 'items'} if {'user', 'item'} <= self._id_maps.keys() & given else set()
        if sizes.keys() != self._sizes.keys() or any(
            size < self._sizes[name] if name in grown else size != self._sizes[name]
            for name, size in sizes.items()
        ):
            raise ValueError(f'UserInterest was fitted on {self._sizes}, but the data has {sizes}.')
        pairs = _pairs(data, self._cutoff)
        pairs = pairs[:, (pairs[0] < self._sizes['users']) & (pairs[1] < self._sizes['items'])]
        data['user'].interest = _interest(self._score, pairs, features, sizes['users'])
        return data

    def fitted_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        r"""What was fitted, as tensors and as values of JSON, for :meth:`load_fitted_state`.

        Raises:
            ValueError: If nothing was.
        """
        if self._score is None:
            raise ValueError('UserInterest has learned nothing yet: fit it on a training part.')
        values = {
            'modalities': list(self.modalities),
            'cutoff': self._cutoff,
            'sizes': self._sizes,
            'id_maps': self._id_maps,
        }
        return self._score.state_dict(), values

    def load_fitted_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        r"""Takes what :meth:`fitted_state` gave for a transform with the same arguments."""
        sizes, modalities = dict(values['sizes']), tuple(values['modalities'])
        widths = [sizes[f'x_{name}'] for name in modalities]
        # The generators are the caller's.
        with torch.random.fork_rng(devices=[]):
            score = InterestScore(sizes['users'], sizes['items'], widths, self.embedding_dim)
        score.load_state_dict(tensors)
        self._score, self.modalities, self._sizes = score, modalities, sizes
        self._cutoff = Cutoff(*values['cutoff'])
        self._id_maps = dict(values['id_maps'])

    def __repr__(self) -> str:
        learned = ''
        if self._score is not None:
            tensors = self._score.state_dict().values()
            learned = f', {fitted(tensors, f"{self.modalities} {self._cutoff}")}'
        return (
            f'{self.__class__.__name__}(embedding_dim={self.embedding_dim}, '
            f'num_epochs={self.num_epochs}, batch_size={self.batch_size}, '
            f'num_negatives={self.num_negatives}, learning_rate={self.learning_rate}, '
            f'weight_decay={self.weight_decay}, include_positive={self.include_positive}, '
            f'logits={self.logits}, seed={self.seed}{learned})'
        )


class _InterestTask(Task):
    r"""Learns the scores of a transform's arguments from pairs with negatives, with Adam."""

    has_modality: Tensor

    def __init__(
        self, transform: UserInterest, score: InterestScore, features: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.interest_score = score
        self.learning_rate, self.weight_decay = transform.learning_rate, transform.weight_decay
        self.include_positive, self.logits = transform.include_positive, transform.logits
        # A fit in the directory of another one compares them.
        self.num_epochs, self.num_negatives = transform.num_epochs, transform.num_negatives
        # What is made of the data is not part of what was learned.
        self.register_buffer('has_modality', has_modality(features), persistent=False)
        for column, x in enumerate(features.values()):
            self.register_buffer(f'x_{column}', x, persistent=False)

    def loss(self, batch: NegativeBatch) -> Tensor:
        scored = torch.cat([batch.item.unsqueeze(1), batch.negative], dim=1)
        x = [getattr(self, f'x_{column}')[scored] for column in range(self.has_modality.size(1))]
        score = self.interest_score(batch.user, batch.item, x)
        if not self.logits:
            score = score.sigmoid()
        has = self.has_modality[scored]
        return interest_loss(
            score[:, 0], score[:, 1:], has[:, 0], has[:, 1:], self.include_positive
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        score = self.interest_score
        embeddings = [score.user_embedding.weight, score.item_deviation.weight]
        groups: list[dict[str, Any]] = [
            {'params': embeddings, 'weight_decay': self.weight_decay},
            {'params': [*score.lin.parameters(), *score.lin_modality.parameters()]},
        ]
        return torch.optim.Adam(groups, self.learning_rate)


def _features(data: HeteroData) -> dict[str, Tensor]:
    r"""The features of each modality in float32, once the data is checked."""
    require(data, 'UserInterest', 'edge_index')
    require_cpu(data, 'UserInterest')
    return {name: x.float() for name, x in modality_features(data, 'UserInterest').items()}


def _sizes(data: HeteroData, features: Mapping[str, Tensor]) -> dict[str, int]:
    r"""The numbers by which the data of a fit and of a call are compared."""
    widths = {f'x_{name}': x.size(1) for name, x in features.items()}
    return {'users': data['user'].num_nodes, 'items': data['item'].num_nodes, **widths}


def _pairs(data: HeteroData, fitted: Cutoff | None) -> Tensor:
    r"""Users above items, once for each pair that clicks before the first label of a part; of a
    whole log, before what was fitted, or ever, in ascending order, shape :obj:`[2, P]`."""
    clicks = data[CLICKS]
    edge_index = clicks.edge_index
    if 'cutoff' in clicks:
        window_of_click(data, 'UserInterest')
        edge_index = edge_index[:, history_clock(data) < torch.as_tensor(clicks.cutoff).min()]
    elif fitted is not None and fitted.moment < math.inf:
        if fitted.clock not in clicks:
            raise ValueError(
                f'UserInterest was fitted as of {fitted}, but this data has neither a cutoff nor '
                f"a '{fitted.clock}' of its clicks, so what came before cannot be told: call it on "
                f'a part of the same split.'
            )
        clock = clicks[fitted.clock]
        check_tensor('UserInterest', fitted.clock, clock, (edge_index.size(1),), 'numbers')
        edge_index = edge_index[:, clock < fitted.moment]
    num_items = data['item'].num_nodes
    key = (edge_index[0] * num_items + edge_index[1]).unique()
    return torch.stack([key // num_items, key % num_items])


@torch.no_grad()
def _interest(
    score: InterestScore, pairs: Tensor, features: Mapping[str, Tensor], num_users: int
) -> Tensor:
    r"""The mean score of each user and modality over pairs, shape :obj:`[num_users, M]`."""
    has = has_modality(features).float()
    total = torch.zeros(num_users, len(features))
    count = torch.zeros_like(total)
    for user, item in zip(*(ids.split(_CHUNK) for ids in pairs)):
        x = [values[item].unsqueeze(1) for values in features.values()]
        scores = score(user, item, x).squeeze(1).sigmoid()
        total.index_add_(0, user, scores * has[item])
        count.index_add_(0, user, has[item])
    return total / count.clamp(min=1)
