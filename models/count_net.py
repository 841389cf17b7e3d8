from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData

from mag.checks import check_booleans, check_integers, check_numbers, check_sizes
from mag.loader import ExposureBatch, ExposureFeatures
from mag.nn import MLP, CountEncoder
from mag.schema import CLICKS, require


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

    Embeddings start near 0, so that an id says something only once it was seen often enough to move
    it, and the counts speak for the rest. How fast it moves is a matter of the weight decay, which
    is best chosen for each log. The last step of training is noisier than its neighborhood:
    :obj:`ClickTask(model, average=0.99)` is what the table in :obj:`benchmarks/accuracy/counts.md`
    was made with.

    Args:
        num_values (Mapping[str, int]): The number of values of each field of
            :obj:`ExposureBatch.sparse`, by its name.
        fields (Sequence[str]): The name of each column, as :obj:`ExposureLoader.fields` has them.
        count_prior (Sequence[int]): The place of each column's prior, see
            :class:`~mag.nn.CountEncoder`; empty if no counts are read.
        count_rate (float): The share of exposures that are clicked, of all together.
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`16`)
        hidden_channels (Sequence[int], optional): Hidden sizes of the head.
            (default: :obj:`(200, 80)`)
        ids (bool, optional): If set to :obj:`False`, users and items have no embedding of their
            own. (default: :obj:`True`)
        id_dropout (float, optional): The share of users and of items that are taken for unknown in
            a step of training, so that the rest learns to do without them. (default: :obj:`0.0`)

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of range, or a field has no number of values.
    """

    offset: Tensor
    is_id: Tensor

    def __init__(
        self,
        num_values: Mapping[str, int],
        fields: Sequence[str],
        count_prior: Sequence[int],
        count_rate: float,
        embedding_dim: int = 16,
        hidden_channels: Sequence[int] = (200, 80),
        ids: bool = True,
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        missing = [name for name in fields if name not in num_values]
        if missing:
            raise ValueError(
                f"'num_values' must tell how many values each field has, but lacks {missing}."
            )
        check_integers(1, **{f'num_values[{name!r}]': num for name, num in num_values.items()})
        check_integers(1, embedding_dim=embedding_dim)
        check_sizes(hidden_channels=hidden_channels)
        check_booleans(ids=ids)
        check_numbers('[0, 1)', id_dropout=id_dropout)
        self.fields = tuple(fields)
        self.ids, self.id_dropout = ids, id_dropout
        # Of each field the first row stands for none, -1; columns of one name share their rows.
        starts, size = {}, 0
        for name in dict.fromkeys(fields):
            starts[name] = size
            size += num_values[name] + 1
        read = [place for place, name in enumerate(fields) if ids or name not in ('user', 'item')]
        self.columns = read
        self.register_buffer('offset', torch.tensor([starts[fields[i]] for i in read]), False)
        is_id = torch.tensor([fields[i] in ('user', 'item') for i in read], dtype=torch.bool)
        self.register_buffer('is_id', is_id, False)
        self.embedding = torch.nn.Embedding(max(size, 1), embedding_dim)
        self.embedding.requires_grad_(bool(read))
        self.encoder = CountEncoder(count_prior, count_rate) if count_prior else None
        channels = len(read) * embedding_dim + 2 * len(count_prior)
        self.head = MLP([channels, *hidden_channels, 1])
        self.reset_parameters()

    @classmethod
    def from_data(cls, data: HeteroData, counts: bool = True, **kwargs: Any) -> 'CountNet':
        r"""Builds the model for a part that went through :class:`~mag.transforms.TargetCounts`.

        Args:
            data (HeteroData): Any part of the log; all parts share their sizes.
            counts (bool, optional): If set to :obj:`False`, no counts are read.
                (default: :obj:`True`)
            **kwargs (optional): Arguments of :class:`CountNet`.

        Raises:
            ValueError: If counts are to be read and there are none.
        """
        require(data, 'CountNet.from_data')
        clicks = data[CLICKS]
        if counts and 'count_prior' not in clicks:
            raise ValueError(
                'CountNet.from_data needs the counts at the target, but the data has none: apply '
                'TargetCounts, or pass counts=False.'
            )
        features = ExposureFeatures(data, caller='CountNet.from_data')
        prior, rate = (clicks.count_prior, clicks.count_rate) if counts else ((), 0.5)
        return cls(features.num_values, features.fields, prior, rate, **kwargs)

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.embedding.weight, std=0.001)
        if self.encoder is not None:
            self.encoder.reset_parameters()
        self.head.reset_parameters()

    def forward(self, batch: ExposureBatch) -> Tensor:
        r"""
        Args:
            batch (ExposureBatch): Exposures with their features and counts.

        Returns:
            The logit of each click, shape :obj:`[B]`.

        Raises:
            ValueError: If the batch has no counts, and some are read.
        """
        features = []
        if self.columns:
            row = batch.sparse[:, self.columns] + 1
            if self.training and self.id_dropout > 0:
                dropped = torch.rand(row.shape, device=row.device) < self.id_dropout
                row = row.masked_fill(dropped & self.is_id, 0)
            rows = self.embedding.weight.index_select(0, (row + self.offset).view(-1))
            features.append(rows.view(row.size(0), -1))
        if self.encoder is not None:
            if batch.counts is None:
                raise ValueError(
                    'CountNet reads counts at the target, but batch.counts is None: apply '
                    'TargetCounts, or build it with counts=False.'
                )
            features.append(self.encoder(batch.counts))
        return self.head(torch.cat(features, dim=1)).squeeze(-1)

    def extra_repr(self) -> str:
        return f'fields={list(self.fields)}, ids={self.ids}, id_dropout={self.id_dropout}'
