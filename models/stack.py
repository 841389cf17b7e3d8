import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_booleans, check_numbers, check_sizes, described
from mag.lineage import ids_of, remember_ids, require_same_ids
from mag.loader import ExposureBatch, JoinedBatch
from mag.logits import Logits
from mag.models._batch import labels
from mag.models._field_embedding import FieldEmbedding
from mag.models._growth import check_grown
from mag.nn import MLP
from mag.schema import require

# What is predicted beside the branches, by the same dictionary.
_PREDICTIONS = ('click', 'conversion', 'click_and_conversion')


class Stack(torch.nn.Module):
    r"""One click model of several, its branches, whose features one head reads side by side,

    .. math::
        \hat{y} = \mathrm{MLP} \left( \mathbf{f}_1 \Vert \cdots \Vert \mathbf{f}_K \right), \qquad
        \hat{y}_k = \mathbf{w}_k^{\top} \mathbf{f}_k + b_k

    with the features :math:`\mathbf{f}_k` of branch :math:`k`, which is any model with

    * :obj:`out_channels`, the number of its features,
    * :obj:`features(batch)`, these, shape :obj:`[B, out_channels]`,
    * and, as may be, :obj:`contrast(features)`, a loss of its own, a scalar,

    such as :class:`MacGNN`, :class:`CountNet` and :class:`SimCEN`. That the macro graph, text and
    contrasted crosses help each other under one head is told of production systems and measured in
    no paper: one head over their features is all that is taken from there.

    All branches read one batch, see :class:`~mag.loader.JoinedLoader`; where none reads more than
    the features of exposures, batches of an :class:`~mag.loader.ExposureLoader` do, too.

    .. code-block:: python

        branches = {'macgnn': MacGNN.from_data(train), 'counts': CountNet.from_data(train)}
        for without in ((), ('macgnn',), ('counts',)):
            stack = Stack(copy.deepcopy(branches), without=without)

    Branches keep the weights that they have, such as those of a pre-training. They are not copied:
    two stacks of the same objects would train the same weights. What a branch has beside its
    features, such as the head by which it predicts alone, is not read here and not trained, which
    several processes have to be told: :obj:`fit(..., strategy="ddp_find_unused_parameters_true")`.

    Args:
        branches (Mapping[str, torch.nn.Module]): The branches, by names of the user's own.
        hidden_channels (Sequence[int], optional): Hidden sizes of the head.
            (default: :obj:`(200, 80)`)
        auxiliary (float, optional): The weight in the loss of the mean over the branches of the
            cross-entropy of :math:`\hat{y}_k`, by which each branch learns whatever the others
            know. At 0 branches have no logits of their own. (default: :obj:`1.0`)
        contrast (Mapping[str, float], optional): The weight in the loss of :obj:`contrast` of the
            branches, by their names, such as :obj:`{"simcen": 0.01}`; of a branch that is not
            named it is 0. (default: :obj:`None`)
        without (Sequence[str], optional): The names of branches to leave out.
            (default: :obj:`()`)
        share_embeddings (bool, optional): If set to :obj:`True`, the branches read one table of
            embeddings, that of the first, which they have each of its own otherwise. Their fields,
            the numbers of values and the sizes of embeddings must be the same, so that
            :class:`MacGNN`, whose tables are of another kind, has no part in it. What a branch has
            beside its first table, as dual :class:`SimCEN` has another, stays its own.
            (default: :obj:`False`)

    Raises:
        TypeError: If an argument has another type, or a branch no features.
        ValueError: If a number is out of range, a name stands for something else or for no branch,
            no branch is left, branches were built for different logs, or their tables cannot be
            shared.
    """

    def __init__(
        self,
        branches: Mapping[str, torch.nn.Module],
        hidden_channels: Sequence[int] = (200, 80),
        auxiliary: float = 1.0,
        contrast: Mapping[str, float] | None = None,
        without: Sequence[str] = (),
        share_embeddings: bool = False,
    ) -> None:
        super().__init__()
        _check_branches(branches)
        check_sizes(hidden_channels=hidden_channels)
        check_numbers('[0, inf)', auxiliary=auxiliary)
        weights = {} if contrast is None else contrast
        _check_contrast(branches, weights)
        kept = _left(branches, without)
        check_booleans(share_embeddings=share_embeddings)
        self.auxiliary, self.share_embeddings = auxiliary, share_embeddings
        self.contrast = {name: weights[name] for name in kept if weights.get(name, 0) > 0}
        found: dict[str, str] = {}
        for name, branch in kept.items():
            of_branch = ids_of(branch)
            caller = f'The branches before {name!r} were built for'
            require_same_ids(caller, found, of_branch, f'the branch {name!r}')
            found |= of_branch
        if found:
            self.id_maps = found
        self.branches = torch.nn.ModuleDict(kept)
        channels = {name: branch.out_channels for name, branch in kept.items()}
        self.head = MLP([sum(channels.values()), *hidden_channels, 1])
        self.auxiliary_heads = torch.nn.ModuleDict(
            {name: torch.nn.Linear(size, 1) for name, size in channels.items() if auxiliary > 0}
        )
        if share_embeddings:
            _check_tables(kept)
            self._share()

    def _share(self) -> None:
        first, *others = self.branches.values()
        for branch in others:
            branch.embedding.weight = first.embedding.weight  # type: ignore[union-attr]

    def reset_parameters(self) -> None:
        r"""Starts anew, with all branches, whatever they had learned before they were stacked."""
        # The first branch last, whose table others may share.
        parts: list[Any] = [*self.auxiliary_heads.values(), self.head, *self.branches.values()]
        for part in reversed(parts):
            part.reset_parameters()

    def grow(self, data: HeteroData) -> None:
        r"""Adds what a log has that grew to each branch, by its own :obj:`grow`, or to none if one
        refuses, which takes the memory of a copy of all. An optimizer has to be made anew.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`, or a branch
                does not grow.
            ValueError: If the data is of another log, or lacks what was there or is read.
        """
        require(data, 'Stack.grow')
        check_grown(self, data, {}, {})
        for name, branch in self.branches.items():
            if not callable(getattr(branch, 'grow', None)):
                raise TypeError(
                    f'Stack.grow needs branches with a method grow(data), but {name!r}, a '
                    f'{type(branch).__name__}, has none.'
                )
        # What one branch refuses must not be in another.
        for branches in (copy.deepcopy(self.branches), self.branches):
            for branch in branches.values():
                branch.grow(data)  # type: ignore[operator]
        if self.share_embeddings:
            self._share()
        remember_ids(self, data)

    def forward(self, batch: JoinedBatch | ExposureBatch) -> Logits:
        r"""
        Args:
            batch (JoinedBatch or ExposureBatch): Exposures with all that the branches read.

        Returns:
            The logits of the click, shape :obj:`[B]`: by all branches together and, as
            :obj:`branches`, by each of them alone. In training, as :obj:`views`, the features that
            are contrasted.

        Raises:
            IndexError: If an id does not exist.
            TypeError: If the batch is of another kind.
            ValueError: If the batch lacks something that a branch reads.
        """
        features = {
            name: branch.features(batch)  # type: ignore[operator]
            for name, branch in self.branches.items()
        }
        click = self.head(torch.cat(list(features.values()), dim=1)).squeeze(-1)
        branches = {
            name: head(features[name]).squeeze(-1) for name, head in self.auxiliary_heads.items()
        }
        views = {name: features[name] for name in self.contrast if self.training}
        return Logits(click, branches=branches or None, views=views or None)

    def loss(self, output: Logits, batch: JoinedBatch | ExposureBatch) -> Tensor:
        r"""The cross-entropy of the clicks, by all branches together and by each, and the branches'
        own contrasts, if the output has what they are of,

        .. math::
            \mathrm{BCE}(y, \hat{y}) + \frac{a}{K} \sum_k \mathrm{BCE}(y, \hat{y}_k) + \sum_k
            \alpha_k \, \mathrm{contrast}_k(\mathbf{f}_k)

        with the weights :math:`a`, :obj:`auxiliary`, and :math:`\alpha`, :obj:`contrast`. What else
        a branch has as a loss where it is trained alone is no part of it.

        Args:
            output (Logits): What :meth:`forward` returned for the batch.
            batch (JoinedBatch or ExposureBatch): The exposures, with their labels.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If the batch has no labels.
        """
        label = labels('Stack', batch).float()
        total = F.binary_cross_entropy_with_logits(output.click.float(), label)
        if output.branches is not None:
            logits = torch.stack(list(output.branches.values())).float()
            each = F.binary_cross_entropy_with_logits(logits, label.expand_as(logits))
            total = total + self.auxiliary * each
        for name, features in (output.views or {}).items():
            branch: Any = self.branches[name]
            total = total + self.contrast[name] * branch.contrast(features)
        return total

    def extra_repr(self) -> str:
        return (
            f'auxiliary={self.auxiliary}, contrast={self.contrast}, '
            f'share_embeddings={self.share_embeddings}'
        )


def _check_branches(branches: Any) -> None:
    if not isinstance(branches, Mapping):
        raise TypeError(
            f"'branches' must be a dictionary of models such as {{'macgnn': MacGNN(...)}}, but got "
            f'{described(branches)}.'
        )
    for name, branch in branches.items():
        is_word = isinstance(name, str) and name.isidentifier()
        if not is_word or name in _PREDICTIONS or hasattr(torch.nn.ModuleDict(), name):
            raise ValueError(
                f"The names of 'branches' must be words such as 'macgnn' that stand for nothing "
                f'else in a model or a prediction, but got {name!r}.'
            )
        if not callable(getattr(branch, 'features', None)) or not hasattr(branch, 'out_channels'):
            raise TypeError(
                f'Stack joins models with features(batch) and out_channels, such as MacGNN and '
                f'CountNet, but {name!r} is a {type(branch).__name__}.'
            )


def _check_contrast(branches: Mapping[str, Any], contrast: Any) -> None:
    if not isinstance(contrast, Mapping):
        raise TypeError(
            f"'contrast' must be a dictionary such as {{'simcen': 0.01}}, but got "
            f'{described(contrast)}.'
        )
    _check_names(branches, 'contrast', contrast)
    check_numbers('[0, inf)', **{f'contrast[{name!r}]': of for name, of in contrast.items()})
    for name in contrast:
        if not callable(getattr(branches[name], 'contrast', None)):
            raise ValueError(
                f"'contrast' weighs the contrast(features) of a branch, but {name!r}, a "
                f'{type(branches[name]).__name__}, has none.'
            )


def _left(branches: Mapping[str, Any], without: Any) -> dict[str, Any]:
    r"""The branches that are not left out."""
    if not isinstance(without, Sequence) or isinstance(without, str):
        raise TypeError(
            f"'without' must be a sequence of names such as ('flip',), but got {without!r}."
        )
    _check_names(branches, 'without', without)
    kept = {name: branch for name, branch in branches.items() if name not in without}
    if not kept:
        raise ValueError(
            f'Stack needs at least one branch, but got {{{", ".join(branches)}}} and '
            f'without={without!r}.'
        )
    return kept


def _check_names(branches: Mapping[str, Any], argument: str, names: Any) -> None:
    unknown = [name for name in names if name not in branches]
    if unknown:
        raise ValueError(f"'{argument}' names {unknown}, but the branches are {list(branches)}.")


def _check_tables(branches: Mapping[str, Any]) -> None:
    r"""Raises unless all branches have a table of all fields, and the rows of all mean the same."""
    tables: dict[str, Any] = {
        name: getattr(branch, 'embedding', None) for name, branch in branches.items()
    }
    first, *_ = tables
    for name, table in tables.items():
        if not isinstance(table, FieldEmbedding):
            raise ValueError(
                f'share_embeddings=True needs branches with one table of all fields, as CountNet '
                f'has it, but {name!r}, a {type(branches[name]).__name__}, has other tables.'
            )
        # Rows follow from the fields, their order and their numbers of values.
        rows, own = ((of.starts, of.num_values, of.embedding_dim) for of in (tables[first], table))
        if own != rows:
            raise ValueError(
                f'share_embeddings=True needs branches that embed the same fields in the same '
                f'order by as many numbers, but {first!r} embeds {rows[1]} by {rows[2]}, and '
                f'{name!r} {own[1]} by {own[2]}.'
            )
