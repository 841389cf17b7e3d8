from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn.resolver import activation_resolver

from mag.checks import (
    check_booleans,
    check_choice,
    check_integers,
    check_numbers,
    check_sizes,
    check_tensor,
)
from mag.lineage import remember_ids
from mag.loader import ExposureBatch, ExposureFeatures, JoinedBatch
from mag.logits import Logits
from mag.losses import view_contrast
from mag.models._batch import exposure_batch, labels
from mag.models._field_embedding import FieldEmbedding, check_fields
from mag.models._growth import check_grown, grown_fields
from mag.nn import ContrastiveProduct, GatedStreams
from mag.nn.gated_streams import check_streams
from mag.nn.id_embedding import all_rows

_NAMES = ('ego', 'view1', 'view2')
# Of the first tower and of the second.
_PREFIXES = ('', 'second_')


class SimCEN(torch.nn.Module):
    r"""The simple contrast-enhanced network from the `"SimCEN: Simple Contrast-enhanced Network for
    CTR Prediction" <https://doi.org/10.1145/3664647.3681203>`_ paper (released code): two views of
    the products of all pairs of fields pass one MLP with the fields themselves, the ego, which
    gates them, and are contrasted where they leave it.

    .. math::
        [\mathbf{e} \Vert \mathbf{a} \Vert \mathbf{b}] = \mathrm{GatedStreams}^L \left( \mathbf{E}
        \Vert \mathrm{ContrastiveProduct}(\mathbf{E}) \right), \qquad
        \mathbf{r} = \mathrm{Dropout}(\mathbf{e}), \qquad
        \hat{y} = \mathbf{w}^{\top} [\mathbf{e} \Vert \mathbf{r} + \mathbf{a} \Vert \mathbf{r} +
        \mathbf{b}] + b

    with the embeddings :math:`\mathbf{E}` of all fields. The loss is

    .. math::
        \mathcal{L} = \mathrm{BCE} + \alpha \, \mathrm{CL}(\mathbf{e}, \mathbf{r} + \mathbf{a},
        \mathbf{r} + \mathbf{b}) + \frac{\lambda}{2} \lVert \mathbf{E} \rVert^2,

    see :func:`~mag.losses.view_contrast`; at inference there is no contrast.

    Categorical fields are read. Dense features are read as the buckets that
    :class:`~mag.transforms.BucketNumbers` puts them in, which are such fields. The embedding of
    none is learned as any other, where that of the authors is zeros.

    The authors train with Adam at a rate of .001, batches of 10,000, and gradients clipped at a
    norm of 10.

    .. code-block:: python

        model = SimCEN.from_data(train)
        task = ClickTask(model, learning_rate=1e-3, weight_decay=0.0)

    Args:
        num_values (Mapping[str, int]): The number of values of each field of
            :obj:`ExposureBatch.sparse`, by its name.
        fields (Sequence[str]): The name of each column, as :obj:`ExposureLoader.fields` has them.
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`16`)
        hidden_channels (Sequence[int], optional): The width of each layer, of all three streams
            together: the same multiple of 3 for all, as later layers add the views of the one
            before. (default: :obj:`(480, 480, 480)`)
        alpha (float, optional): The weight :math:`\alpha` of the contrast. (default: :obj:`0.01`)
        temperature (float, optional): That of the contrast. (default: :obj:`0.2`)
        contrast_form (str, optional): :obj:`"released"` or :obj:`"standard"`, see
            :func:`~mag.losses.view_contrast`. (default: :obj:`"released"`)
        through_dropout (float, optional): The share of the ego that is dropped where it is added to
            the views. (default: :obj:`0.1`)
        dropouts (Sequence[float], optional): The shares of ego, first and second view that are
            dropped after each layer. (default: :obj:`(0.2, 0.1, 0.2)`)
        activations (Sequence[str], optional): Those of ego, first and second view, see
            :class:`~mag.nn.GatedStreams`. (default: :obj:`("relu", "mish", "gelu")`)
        batch_norm (bool, optional): If set to :obj:`False`, streams are not normalized.
            (default: :obj:`True`)
        embedding_regularization (float, optional): The :math:`\lambda` by which the squares of all
            embeddings count, in each step those of the whole table. (default: :obj:`0.0`)
        views (bool, optional): If set to :obj:`False`, there are no views: an MLP of the same
            widths reads the ego alone. (default: :obj:`True`)
        mlp_channels (Sequence[int], optional): If set, the widths of an MLP that reads the ego
            beside the tower, with its activation, dropout and normalization, "SimCEN+MLP": the
            authors take :obj:`(800, 400)` on Frappe. (default: :obj:`None`)
        second_channels (Sequence[int], optional): If set, the widths of a second tower, with
            embeddings of its own and without added views, so that they may differ, "dual SimCEN":
            the authors take :obj:`(960, 480)`. Its head reads what both towers give before the ego
            is added to the views, and the contrasts of both are added. (default: :obj:`None`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown in
            a step of training, so that the rest learns to do without them. (default: :obj:`0.0`)

    Attributes:
        out_channels (int): How many features the head reads, see :meth:`features`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of range, a field has no number of values, there is no field,
            a width is no multiple of 3, or those of the first tower differ.
    """

    def __init__(
        self,
        num_values: Mapping[str, int],
        fields: Sequence[str],
        embedding_dim: int = 16,
        hidden_channels: Sequence[int] = (480, 480, 480),
        alpha: float = 0.01,
        temperature: float = 0.2,
        contrast_form: str = 'released',
        through_dropout: float = 0.1,
        dropouts: Sequence[float] = (0.2, 0.1, 0.2),
        activations: Sequence[str] = ('relu', 'mish', 'gelu'),
        batch_norm: bool = True,
        embedding_regularization: float = 0.0,
        views: bool = True,
        mlp_channels: Sequence[int] | None = None,
        second_channels: Sequence[int] | None = None,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_fields(num_values, fields)
        if not fields:
            raise ValueError('SimCEN reads categorical fields, but was given none.')
        check_integers(1, embedding_dim=embedding_dim)
        widths = {'hidden_channels': hidden_channels}
        optional = {'mlp_channels': mlp_channels, 'second_channels': second_channels}
        widths |= {name: sizes for name, sizes in optional.items() if sizes is not None}
        check_sizes(**widths)
        for name, sizes in widths.items():
            if not sizes:
                raise ValueError(f"'{name}' must hold one width or more, but got {sizes!r}.")
        check_numbers('[0, inf)', alpha=alpha, embedding_regularization=embedding_regularization)
        check_numbers('[0, 1)', through_dropout=through_dropout, id_dropout=id_dropout)
        check_numbers('(0, inf)', temperature=temperature)
        check_choice(('released', 'standard'), contrast_form=contrast_form)
        check_booleans(batch_norm=batch_norm, views=views)
        check_streams(activations, dropouts)
        beside = [name for name, sizes in optional.items() if sizes is not None]
        if beside and not views:
            raise ValueError(
                f'{beside} lie beside the tower of the views, but SimCEN was built with '
                f'views=False.'
            )
        self.fields = tuple(fields)
        self.alpha, self.temperature, self.contrast_form = alpha, temperature, contrast_form
        self.embedding_regularization = embedding_regularization
        self.through_dropout, self.id_dropout = through_dropout, id_dropout

        def make_table() -> FieldEmbedding:
            return FieldEmbedding(
                'SimCEN', num_values, fields, embedding_dim, std=1e-4, id_dropout=id_dropout
            )

        def make_tower(channels: Sequence[int], skip: bool) -> _Tower:
            product = ContrastiveProduct(len(fields), embedding_dim)
            return _Tower(product, channels, skip, activations, dropouts, batch_norm)

        self.embedding = make_table()
        self.tower = make_tower(hidden_channels, True) if views else None
        self.second_embedding = self.second_tower = None
        if second_channels is not None:
            self.second_embedding = make_table()
            self.second_tower = make_tower(second_channels, False)
        mlp_channels = mlp_channels if views else hidden_channels
        self.mlp = None
        if mlp_channels is not None:
            sizes = [len(fields) * embedding_dim, *mlp_channels]
            self.mlp = _perceptron(sizes, activations[0], dropouts[0], batch_norm)
        of_towers = [hidden_channels] if views else []
        read = [*of_towers, *(sizes for sizes in (second_channels, mlp_channels) if sizes)]
        self.sizes = [sizes[-1] for sizes in read]
        self.out_channels = sum(self.sizes)
        self.head = torch.nn.Linear(self.out_channels, 1)
        self.reset_parameters()

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> 'SimCEN':
        r"""Builds the model for a log.

        Args:
            data (HeteroData): Any part of the log; all parts share their sizes.
            **kwargs (optional): Arguments of :class:`SimCEN`.

        Raises:
            TypeError: If the data is no graph.
        """
        features = ExposureFeatures(data, caller='SimCEN.from_data')
        return remember_ids(cls(features.num_values, features.fields, **kwargs), data)

    def reset_parameters(self) -> None:
        for part in (self.embedding, self.tower, self.second_embedding, self.second_tower):
            if part is not None:
                part.reset_parameters()
        for module in (*(self.mlp or ()), self.head):
            if isinstance(module, torch.nn.Linear):
                torch.nn.init.xavier_normal_(module.weight)
                torch.nn.init.zeros_(module.bias)
            elif isinstance(module, torch.nn.BatchNorm1d):
                module.reset_parameters()

    def grow(self, data: HeteroData) -> None:
        r"""Adds what a log has that grew: users, items and values of other fields, whose embeddings
        start as that of none. What was known is scored as before. An optimizer has to be made anew.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data has the ids of another log, other fields, or fewer values than
                before.
        """
        features, known, found = grown_fields(self, data)
        check_grown(self, data, known, found)
        for table in self._tables():
            table.grow(features.num_values)
        remember_ids(self, data)

    def _tables(self) -> list[FieldEmbedding]:
        tables = (self.embedding, self.second_embedding)
        return [table for table in tables if table is not None]

    def forward(self, batch: ExposureBatch | JoinedBatch) -> Logits:
        r"""
        Args:
            batch (ExposureBatch or JoinedBatch): Exposures with their features.

        Returns:
            The logits of clicks; in training, where the contrast is to be weighed, with the
            :obj:`views` :obj:`"ego"`, :obj:`"view1"` and :obj:`"view2"`, and those of a second
            tower, such as :obj:`"second_ego"`.

        Raises:
            IndexError: If a field has no such value.
            TypeError: If the batch is of another kind.
            ValueError: If the batch has other columns, or statistics of the batch are needed and it
                has one row.
        """
        features = self.features(batch)
        click = self.head(features).squeeze(-1)
        if not self.training or self.tower is None or self.alpha == 0:
            return Logits(click)
        return Logits(click, views=self._views(features))

    def features(self, batch: ExposureBatch | JoinedBatch) -> Tensor:
        r"""What the head reads, shape :obj:`[B, out_channels]`: the ego and the two views, the
        ego added to them, or, where there are two towers, those of both without it; and the last
        layer of the MLP, if there is one.

        Args:
            batch (ExposureBatch or JoinedBatch): Exposures; for the errors see :meth:`forward`.
        """
        known = self.embedding.known(exposure_batch('SimCEN', batch).sparse)
        x = self.embedding(known)
        features = []
        if self.tower is not None:
            streams = self.tower(x)
            features.append(streams if self.second_tower is not None else self._through(streams))
        if self.second_tower is not None and self.second_embedding is not None:
            features.append(self.second_tower(self.second_embedding(known)))
        if self.mlp is not None:
            features.append(self.mlp(x.flatten(1)))
        return torch.cat(features, dim=1)

    def contrast(self, features: Tensor) -> Tensor:
        r"""The contrast of the views that :meth:`features` returned, a scalar.

        Args:
            features (torch.Tensor): Shape :obj:`[B, out_channels]`.

        Raises:
            TypeError: If they are no floats.
            ValueError: If the shape is another, or the model has no views.
        """
        check_tensor('SimCEN', 'features', features, ('B', self.out_channels), 'floats')
        if self.tower is None:
            raise ValueError('SimCEN was built with views=False, and has none to contrast.')
        return self._contrast(self._views(features))

    def _through(self, streams: Tensor) -> Tensor:
        r"""The through connection: the ego, partly dropped, is added to both views."""
        ego, view1, view2 = streams.chunk(3, dim=1)
        through = F.dropout(ego, self.through_dropout, self.training)
        return torch.cat([ego, through + view1, through + view2], dim=1)

    def _views(self, features: Tensor) -> dict[str, Tensor]:
        towers = features.split(self.sizes, dim=1)[: len(self._tables())]
        if self.second_tower is not None:
            towers = tuple(map(self._through, towers))
        return {
            f'{prefix}{name}': stream
            for prefix, tower in zip(_PREFIXES, towers)
            for name, stream in zip(_NAMES, tower.chunk(3, dim=1), strict=True)
        }

    def _contrast(self, views: Mapping[str, Tensor]) -> Tensor:
        losses = []
        for prefix, _ in zip(_PREFIXES, self._tables()):
            ego, view1, view2 = (views[f'{prefix}{name}'] for name in _NAMES)
            losses.append(view_contrast(ego, view1, view2, self.temperature, self.contrast_form))
        return torch.stack(losses).sum()

    def loss(self, logits: Logits, batch: ExposureBatch | JoinedBatch) -> Tensor:
        r"""The mean binary cross-entropy of the clicks, the contrast of the views weighed by
        :obj:`alpha`, if the logits have some, and the squares of all embeddings.

        Args:
            logits (Logits): What :meth:`forward` returned for the batch.
            batch (ExposureBatch or JoinedBatch): The exposures, with their labels.

        Returns:
            The loss, a scalar.

        Raises:
            ValueError: If the batch has no labels.
        """
        label = labels('SimCEN', batch).float()
        loss = F.binary_cross_entropy_with_logits(logits.click.float(), label)
        if logits.views is not None:
            loss = loss + self.alpha * self._contrast(logits.views)
        if self.embedding_regularization > 0:
            squares = [all_rows(table.weight).square().sum() for table in self._tables()]
            loss = loss + self.embedding_regularization / 2 * torch.stack(squares).sum()
        return loss

    def extra_repr(self) -> str:
        return (
            f'fields={list(self.fields)}, alpha={self.alpha}, temperature={self.temperature}, '
            f'contrast_form={self.contrast_form!r}, through_dropout={self.through_dropout}, '
            f'embedding_regularization={self.embedding_regularization}, '
            f'id_dropout={self.id_dropout}'
        )


class _Tower(torch.nn.Module):
    r"""The products of all pairs of fields, and the layers that read them with the fields."""

    def __init__(
        self,
        product: ContrastiveProduct,
        channels: Sequence[int],
        skip: bool,
        activations: Sequence[str],
        dropouts: Sequence[float],
        batch_norm: bool,
    ) -> None:
        super().__init__()
        self.product = product
        sizes = [3 * product.num_fields * product.embedding_dim, *channels]
        self.layers = torch.nn.Sequential(
            *(
                GatedStreams(
                    *pair,
                    # Before the first layer there are no views of its width.
                    skip=skip and place > 0,
                    bias=place > 0,
                    batch_norm=batch_norm,
                    activations=activations,
                    dropouts=dropouts,
                )
                for place, pair in enumerate(pairwise(sizes))
            )
        )

    def reset_parameters(self) -> None:
        for module in (self.product, *self.layers):
            module.reset_parameters()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(torch.cat([x.flatten(1), *self.product(x)], dim=1))


def _perceptron(
    channels: Sequence[int], activation: str, dropout: float, batch_norm: bool
) -> torch.nn.Sequential:
    r"""Linear layers, each normalized, activated and dropped out."""
    layers: list[torch.nn.Module] = []
    for size, following in pairwise(channels):
        layers.append(torch.nn.Linear(size, following))
        if batch_norm:
            layers.append(torch.nn.BatchNorm1d(following))
        layers += [activation_resolver(activation), torch.nn.Dropout(dropout)]
    return torch.nn.Sequential(*layers)
