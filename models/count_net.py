from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import (
    check_booleans,
    check_choice,
    check_integers,
    check_keys,
    check_numbers,
    check_sizes,
)
from mag.lineage import remember_ids
from mag.loader import ExposureBatch, ExposureFeatures, JoinedBatch
from mag.models._batch import exposure_batch
from mag.models._field_embedding import FieldEmbedding, check_fields, check_id_counts
from mag.models._growth import check_grown, grown_fields
from mag.models._macro_readout import MacroReadout, require_macro
from mag.nn import MLP, CountEncoder, CrossNet
from mag.schema import CLICKS, MACRO, hops, require


class CountNet(torch.nn.Module):
    r"""A click model that reads the macro graph at the target: what was shown and clicked before of
    the user, of the item, of the user with items like this one, of users like this one with the
    item, and of both kinds together.

    .. math::
        \hat{y} = \mathrm{MLP} \left( \mathbf{e}_1 \Vert \cdots \Vert \mathbf{e}_F \Vert
        \mathrm{CountEncoder}(\mathbf{n}, \mathbf{c}) \right)

    with embeddings :math:`\mathbf{e}` of the ids and attributes of user, item and exposure, and the
    exposures :math:`\mathbf{n}` and clicks :math:`\mathbf{c}` that
    :class:`~mag.transforms.TargetCounts` counts, see :class:`~mag.nn.CountEncoder`. Where
    :class:`MacGNN` reads a node's clicks over all macro nodes, this reads those over the one that
    the target is of, and what was shown in vain.

    How much an id says follows from how often it was seen: its embedding starts near 0 and is
    scaled by :math:`n / (n + 100)` where it had :math:`n` exposures, and the counts speak for the
    rest. The last step of training is noisier than its neighborhood:
    :obj:`ClickTask(model, average=0.99)` is what the table in :obj:`benchmarks/accuracy/counts.md`
    was made with.

    Each as an option, the head reads more: all macro rows and the recent lists, as :class:`MacGNN`
    does, and products of the features. Macro rows and recent lists come from a
    :class:`~mag.loader.JoinedLoader`, of which the plain model reads the features alone.

    .. code-block:: python

        loader = JoinedLoader([ExposureLoader(train), PairLoader(train)])
        model = CountNet.from_data(train, rows='twin', recent=True)

    Args:
        num_values (Mapping[str, int]): The number of values of each field of
            :obj:`ExposureBatch.sparse`, by its name.
        fields (Sequence[str]): The name of each column, as :obj:`ExposureLoader.fields` has them.
        count_prior (Sequence[int]): The place of each column's prior, see
            :class:`~mag.nn.CountEncoder`; empty if no counts are read.
        count_rate (float): The share of exposures that are clicked, of all together.
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`16`)
        hidden_channels (Sequence[int], optional): Hidden sizes of the head.
            (default: :obj:`(64, 32)`)
        ids (bool, optional): If set to :obj:`False`, users and items have no embedding of their
            own. (default: :obj:`True`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown in
            a step of training, so that the rest learns to do without them. Such an id is read
            nowhere in that row: neither as what attends, nor among the recent neighbors, where a
            repeated click has it; other neighbors are read as ever. (default: :obj:`0.0`)
        id_strength (float, optional): The embeddings of a user and an item are scaled by
            :math:`n / (n + s)`, with the :math:`n` exposures of each before the row, and this
            :math:`s`: as a shrunk rate, an id says half of what it knows after :math:`s` exposures.
            At 0 they are not, and where :obj:`recent` lists and rows attend they never are.
            (default: :obj:`100.0`)
        id_counts (Mapping[str, int], optional): The place of the column that counts the exposures
            of the :obj:`"user"`, and of that which counts those of the :obj:`"item"`; the
            embeddings of one that is not named are not scaled. (default: :obj:`None`)
        rows (str, optional): If set, the head reads the macro rows of user and item at all hops,
            by :class:`~mag.nn.MacroConv` of the form :obj:`"paper"`, as :class:`MacGNN` does, or
            :obj:`"twin"`. (default: :obj:`None`)
        recent (bool, optional): If set to :obj:`True`, the head reads the user's recent items, as
            the item attends to them, and the item's recent users, as the user does.
            (default: :obj:`False`)
        separate_tables (bool, optional): If set to :obj:`True`, what attends and is attended to has
            embeddings of its own, apart from those that the head reads, as in the `"Long-Sequence
            Recommendation Models Need Decoupled Embeddings" <https://arxiv.org/abs/2410.02604>`_
            paper. (default: :obj:`False`)
        num_crosses (int, optional): Layers of :class:`~mag.nn.CrossNet` between the features and
            the head: the stacked structure of Figure 1 (a) of its paper. (default: :obj:`0`)
        num_macro (Mapping[str, int], optional): The number of macro users, :obj:`"user"`, and of
            macro items, :obj:`"item"`, if :obj:`rows` are read. (default: :obj:`None`)
        num_hops (int, optional): Hops of macro rows to read. (default: :obj:`2`)

    Attributes:
        out_channels (int): How many features the head reads, see :meth:`features`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of range, a field has no number of values, an option lacks
            what it reads, or there is nothing to read.
    """

    def __init__(
        self,
        num_values: Mapping[str, int],
        fields: Sequence[str],
        count_prior: Sequence[int],
        count_rate: float,
        embedding_dim: int = 16,
        hidden_channels: Sequence[int] = (64, 32),
        ids: bool = True,
        id_dropout: float = 0.0,
        id_strength: float = 100.0,
        id_counts: Mapping[str, int] | None = None,
        rows: str | None = None,
        recent: bool = False,
        separate_tables: bool = False,
        num_crosses: int = 0,
        num_macro: Mapping[str, int] | None = None,
        num_hops: int = 2,
    ) -> None:
        super().__init__()
        check_fields(num_values, fields)
        check_integers(1, embedding_dim=embedding_dim)
        check_sizes(hidden_channels=hidden_channels)
        check_booleans(ids=ids)
        check_numbers('[0, 1)', id_dropout=id_dropout)
        check_numbers('[0, inf)', id_strength=id_strength)
        if id_counts is not None:
            check_id_counts(ids, id_counts, len(count_prior))
        check_choice((None, 'paper', 'twin'), rows=rows)
        check_booleans(recent=recent, separate_tables=separate_tables)
        check_integers(0, num_crosses=num_crosses)
        check_integers(1, num_hops=num_hops)
        attends = rows is not None or recent
        if attends and not (ids and {'user', 'item'} <= set(fields)):
            raise ValueError(
                "CountNet attends by the ids of users and items, but was asked for 'rows' or "
                "'recent' without them."
            )
        if separate_tables and not attends:
            raise ValueError(
                "'separate_tables' are read by the attention, but CountNet was asked for neither "
                "'rows' nor 'recent'."
            )
        if rows is not None:
            check_keys(('user', 'item'), num_macro=num_macro)
        macro = dict(num_macro or {}) if rows is not None else {}
        check_integers(1, **{f'num_macro[{name!r}]': num for name, num in macro.items()})
        self.fields = tuple(fields)
        self.ids, self.id_dropout = ids, id_dropout
        # Nothing says by which counts.
        self.id_strength = id_strength if id_counts is not None else 0.0
        self.embedding = FieldEmbedding(
            'CountNet',
            num_values,
            fields,
            embedding_dim,
            ids=ids,
            id_dropout=id_dropout,
            id_strength=self.id_strength,
            id_counts=id_counts or {},
        )
        if not (self.embedding.columns or count_prior):
            raise ValueError(
                f'CountNet was given nothing to read: no counts, and of the fields {list(fields)} '
                f'none with ids={ids}.'
            )
        channels = len(self.embedding.columns) * embedding_dim
        self.encoder = CountEncoder(count_prior, count_rate) if count_prior else None
        if self.encoder is not None:
            channels += self.encoder.out_channels
        self.readout = None
        if attends:
            num_nodes = {name: num_values[name] for name in ('user', 'item')}
            self.readout = MacroReadout(
                embedding_dim, num_nodes, macro, num_hops, rows, recent, separate_tables
            )
            channels += self.readout.out_channels
        self.out_channels = channels
        self.cross = CrossNet(channels, num_crosses) if num_crosses > 0 else None
        self.head = MLP([channels, *hidden_channels, 1])
        self.reset_parameters()

    @classmethod
    def from_data(cls, data: HeteroData, counts: bool = True, **kwargs: Any) -> 'CountNet':
        r"""Builds the model for a part that went through :class:`~mag.transforms.TargetCounts`.

        Args:
            data (HeteroData): Any part of the log; all parts share their sizes.
            counts (bool, optional): If set to :obj:`False`, no counts are read.
                (default: :obj:`True`)
            **kwargs (optional): Arguments of :class:`CountNet`. By default all hops of the data are
                read, if macro rows are, and users are scaled where they are counted, as items are.

        Raises:
            TypeError: If the data is no graph, or :obj:`counts` is neither true nor false.
            ValueError: If counts, macro rows or recent lists are to be read and there are none.
        """
        check_booleans(counts=counts)
        require(data, 'CountNet.from_data')
        clicks = data[CLICKS]
        if counts and 'count_prior' not in clicks:
            raise ValueError(
                'CountNet.from_data needs the counts at the target, but the data has none: apply '
                'TargetCounts, or pass counts=False.'
            )
        names = clicks.count_names if counts and kwargs.get('ids', True) else []
        places = {name: names.index(name) for name in ('user', 'item') if name in names}
        if places:
            kwargs = {'id_counts': places, **kwargs}
        features = ExposureFeatures(data, caller='CountNet.from_data')
        prior, rate = (clicks.count_prior, clicks.count_rate) if counts else ((), 0.5)
        if kwargs.get('rows') is not None:
            kwargs = {'num_hops': max(len(hops(data, 'user')), 1), **kwargs}
            require_macro(data, 'CountNet.from_data', kwargs['num_hops'], False)
            kwargs['num_macro'] = {name: data[macro].num_nodes for name, macro in MACRO.items()}
        require_macro(data, 'CountNet.from_data', 0, kwargs.get('recent', False))
        return remember_ids(cls(features.num_values, features.fields, prior, rate, **kwargs), data)

    def reset_parameters(self) -> None:
        for part in (self.embedding, self.encoder, self.readout, self.cross, self.head):
            if part is not None:
                part.reset_parameters()

    def grow(self, data: HeteroData) -> None:
        r"""Adds what a log has that grew: users, items and values of other fields, whose embeddings
        start as that of none, and, where macro rows are read, macro nodes, such as those of new
        categories, whose embeddings start as the mean of the others. What was known is scored as
        before. An optimizer has to be made anew.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data has the ids of another log, other fields, or fewer values or
                macro nodes than before, or lacks macro rows or recent lists that are read.
        """
        features, known, found = grown_fields(self, data)
        num_macro = {}
        if self.readout is not None:
            require_macro(data, 'CountNet.grow', self.readout.num_hops, self.readout.recent)
            num_macro = {name: data[MACRO[name]].num_nodes for name in self.readout.macro.keys()}
            known |= {f'macro {name}s': len(table) for name, table in self.readout.macro.items()}
            found |= {f'macro {name}s': num for name, num in num_macro.items()}
        check_grown(self, data, known, found)
        self.embedding.grow(features.num_values)
        if self.readout is not None:
            num_nodes = {name: features.num_values[name] for name in ('user', 'item')}
            self.readout.grow(num_nodes, num_macro)
        remember_ids(self, data)

    def forward(self, batch: ExposureBatch | JoinedBatch) -> Tensor:
        r"""
        Args:
            batch (ExposureBatch or JoinedBatch): Exposures with their features and counts; with
                their macro rows beside them if :obj:`rows` or :obj:`recent` are read.

        Returns:
            The logit of each click, shape :obj:`[B]`.

        Raises:
            IndexError: If a field has no such value, or a recent neighbor does not exist.
            TypeError: If the batch is of another kind.
            ValueError: If the batch lacks something that is read, or has other columns.
        """
        return self.head(self.features(batch)).squeeze(-1)

    def features(self, batch: ExposureBatch | JoinedBatch) -> Tensor:
        r"""What the head reads, shape :obj:`[B, out_channels]`: the embeddings of the fields, what
        the counts say, and what of macro rows and recent lists is read, after the crosses.

        Args:
            batch (ExposureBatch or JoinedBatch): Exposures; for the errors see :meth:`forward`.
        """
        of_rows = exposure_batch('CountNet', batch)
        if self.encoder is not None and of_rows.counts is None:
            raise ValueError(
                'CountNet reads counts at the target, but batch.counts is None: apply '
                'TargetCounts, or build it with counts=False.'
            )
        ids = self.embedding.known(of_rows.sparse)
        features = [self.embedding(ids, of_rows.counts).flatten(1)]
        if self.encoder is not None:
            features.append(self.encoder(of_rows.counts))
        if self.readout is not None:
            if not isinstance(batch, JoinedBatch) or batch.pairs is None:
                raise ValueError(
                    'CountNet reads macro rows or recent neighbors, but the batch has none: load '
                    'JoinedLoader([ExposureLoader(part), PairLoader(part)]).'
                )
            columns = {name: ids[:, self.fields.index(name)] for name in ('user', 'item')}
            features += self.readout(batch.pairs, columns, self.embedding.of)
        x = torch.cat(features, dim=1)
        return x if self.cross is None else self.cross(x)

    def extra_repr(self) -> str:
        return (
            f'fields={list(self.fields)}, ids={self.ids}, id_dropout={self.id_dropout}, '
            f'id_strength={self.id_strength}'
        )
