import math
from typing import Optional

import torch
from torch import Tensor
from torch_geometric.nn.conv import MessagePassing
from torch_geometric.typing import Adj, OptTensor
from torch_geometric.utils import is_sparse, scatter, softmax, to_edge_index

from mag.checks import (
    check_booleans,
    check_choice,
    check_ids,
    check_integers,
    check_numbers,
    check_tensor,
)

# PyG's inspector of message signatures does not read "int | None".
OptInt = Optional[int]  # noqa: UP045


class MacroConv(MessagePassing):
    r"""The macro neighborhood aggregation from the `"Macro Graph Neural Networks for Online
    Billion-Scale Recommender Systems" <https://doi.org/10.1145/3589334.3645517>`_ paper
    (eq. 6 to 9 and 11)

    .. math::
        \mathbf{z}_v = \sum_{q \in \mathcal{N}_v} w_{vq} \, \alpha_{vq} \,
        \mathbf{W}_V \mathbf{e}_q, \quad
        w_{vq} = \frac{(n_{vq} + 1)^{1 / \tau}}{\sum_j (n_{vj} + 1)^{1 / \tau}}, \quad
        \alpha_{vq} = \underset{q}{\mathrm{softmax}} \left(
        \frac{\langle \mathbf{W}_Q \mathbf{e}_q, \mathbf{W}_K \mathbf{e}_v \rangle}
        {\sqrt{d^{\prime}}} \right),

    where :math:`n_{vq}` counts how often :math:`v` reaches macro node :math:`q`. The two softmaxes
    multiply and are not normalized again.

    Since all three maps are linear, :math:`\mathbf{W}_Q^{\top} \mathbf{W}_K \mathbf{e}_v` is
    computed once a target, and :math:`\mathbf{W}_V` is applied to the few macro nodes, or after the
    sum: rows of length :math:`d^{\prime}` are never made for each neighbor of each target.

    :obj:`form="twin"` is the cluster-aware target attention from the `"TWIN V2: Scaling Ultra-Long
    User Behavior Sequence Modeling for Enhanced CTR Prediction at Kuaishou"
    <https://arxiv.org/abs/2407.16357>`_ paper, which puts both into one softmax over the macro
    nodes with :math:`n_{vq} > 0`,

    .. math::
        w_{vq} \, \alpha_{vq} = \underset{q}{\mathrm{softmax}} \left(
        \frac{\langle \mathbf{W}_Q \mathbf{e}_q, \mathbf{W}_K \mathbf{e}_v \rangle}
        {\sqrt{d^{\prime}}} + \frac{\ln n_{vq}}{\tau} \right),

    as if each of the :math:`n_{vq}` interactions were attended to by itself and all of one macro
    node had the same embedding. The paper has :math:`\tau = 1`; another one weighs by
    :math:`n_{vq}^{1 / \tau}`, as eq. 6 does.

    Args:
        in_channels (int): Size :math:`d` of the embeddings.
        out_channels (int): Size :math:`d^{\prime}` of the output.
        temperature (float, optional): :math:`\tau`. (default: :obj:`1.0`)
        form (str, optional): :obj:`"paper"`, or :obj:`"released"` for the code of its authors,
            whose softmax of the attention runs over an axis of size one. Every :math:`\alpha` is
            then 1, and :math:`\mathbf{W}_Q, \mathbf{W}_K` are never trained; or :obj:`"twin"` for
            one softmax. (default: :obj:`"paper"`)
        mask_zero (bool, optional): Whether macro nodes with count 0 are left out of the softmaxes,
            as in both papers; the released code takes them in, and :obj:`"twin"`, whose
            :math:`\ln 0` has no weight, cannot. (default: as :obj:`form` has it)
        weighting (bool, optional): If set to :obj:`False`, all :math:`w_{vq}` of a target are equal
            (the ablation "w/o weighting" of Table 4). (default: :obj:`True`)
        renormalize (bool, optional): If set to :obj:`True`, :math:`w \cdot \alpha` is scaled to
            sum to 1, which the paper does not, and one softmax always does.
            (default: :obj:`False`)

    Shapes:
        - **input:** embeddings of macro nodes and targets :math:`((M, d), (B, d))`, and the counts
          as edge indices :math:`(2, |\mathcal{E}|)` with edge weights :math:`(|\mathcal{E}|)`, as
          a sparse matrix :math:`(B, M)`, or as a dense one
        - **output:** :math:`(B, d^{\prime})`

    Raises:
        TypeError: If an argument has another type.
        ValueError: If a number is out of range, :obj:`form` is unknown, or :obj:`"twin"` is to take
            in macro nodes with count 0.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temperature: float = 1.0,
        form: str = 'paper',
        mask_zero: bool | None = None,
        weighting: bool = True,
        renormalize: bool = False,
    ) -> None:
        super().__init__(aggr='add')
        mask_zero = form != 'released' if mask_zero is None else mask_zero
        check_integers(1, in_channels=in_channels, out_channels=out_channels)
        check_numbers('(0, inf]', temperature=temperature)
        check_choice(('paper', 'released', 'twin'), form=form)
        check_booleans(mask_zero=mask_zero, weighting=weighting, renormalize=renormalize)
        if form == 'twin' and not mask_zero:
            raise ValueError(
                "MacroConv weighs macro nodes by ln n with form='twin', which leaves out those "
                "with count 0, but got mask_zero=False: leave it out, or take form='paper'."
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.temperature = temperature
        self.form = form
        self.mask_zero = mask_zero
        self.weighting = weighting
        self.renormalize = renormalize
        self.lin_query = torch.nn.Linear(in_channels, out_channels, bias=False)
        self.lin_key = torch.nn.Linear(in_channels, out_channels, bias=False)
        self.lin_value = torch.nn.Linear(in_channels, out_channels, bias=False)
        # A parameter that waits for a gradient that never comes stops distributed training.
        self.lin_query.requires_grad_(form != 'released')
        self.lin_key.requires_grad_(form != 'released')

    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.lin_query.reset_parameters()
        self.lin_key.reset_parameters()
        self.lin_value.reset_parameters()

    def forward(
        self,
        x: tuple[Tensor, Tensor],
        edge_index: Adj,
        edge_weight: OptTensor = None,
        x_attention: OptTensor = None,
    ) -> Tensor:
        r"""
        Args:
            x (tuple[torch.Tensor, torch.Tensor]): Embeddings of the macro nodes, shape
                :obj:`[M, d]`, and of the targets, shape :obj:`[B, d]`.
            edge_index (torch.Tensor or SparseTensor): The counts, in one of three forms: indices of
                macro nodes above those of targets, shape :obj:`[2, E]` of integers and no pair
                twice, with :obj:`edge_weight`; a sparse matrix of shape :obj:`[B, M]`, a
                :class:`torch_sparse.SparseTensor` or :class:`torch.sparse.Tensor`; or a dense
                matrix of floats of shape :obj:`[B, M]`.
            edge_weight (torch.Tensor, optional): Counts, shape :obj:`[E]`.
            x_attention (torch.Tensor, optional): What the attention reads of the macro nodes in the
                place of their embeddings, shape :obj:`[M, d]`. With embeddings of targets, which
                nothing but the attention reads, that are apart as well, these are the separate
                tables of the `"Long-Sequence Recommendation Models Need Decoupled Embeddings"
                <https://arxiv.org/abs/2410.02604>`_ paper. (default: :obj:`None`)

        Counts are finite and at least 0, which is not checked here: a GPU would wait for it.

        Raises:
            IndexError: If an edge names a macro node or a target that does not exist.
            TypeError: If :obj:`x` is no pair of tensors, or there are edges without counts.
            ValueError: If the shapes do not fit each other.
        """
        if not isinstance(x, (tuple, list)) or len(x) != 2:
            raise TypeError(
                f'{self} expects the embeddings of macro nodes and targets as a pair, but got '
                f'{type(x).__name__}.'
            )
        x_macro, x_target = x
        check_tensor(self, 'macro nodes', x_macro, ('M', self.in_channels), 'floats')
        check_tensor(self, 'targets', x_target, ('B', self.in_channels), 'floats')
        size = (x_macro.size(0), x_target.size(0))
        if x_attention is not None:
            check_tensor(self, 'x_attention', x_attention, (size[0], self.in_channels), 'floats')
        is_dense = not is_sparse(edge_index) and edge_index.is_floating_point()
        if is_dense or is_sparse(edge_index):
            self._check_matrix(edge_index, edge_weight, size)
        if is_dense:
            return self._forward_dense(x_macro, x_target, edge_index, x_attention)
        if is_sparse(edge_index):
            if isinstance(edge_index, Tensor) and edge_index.layout == torch.sparse_coo:
                edge_index = edge_index.coalesce()
            index, edge_weight = to_edge_index(edge_index)
            edge_index = index.flip(0)
        else:
            check_tensor(self, 'edge_index', edge_index, (2, 'E'), 'integers')
            check_tensor(self, 'edge_weight', edge_weight, (edge_index.size(1),), 'numbers')
            for row, name in enumerate(('macro nodes', 'targets')):
                check_ids(self, f"{name} of 'edge_index'", edge_index[row], size[row])
        if self.mask_zero:
            present = (edge_weight > 0).nonzero().view(-1)
            edge_index = edge_index.index_select(1, present)
            edge_weight = edge_weight.index_select(0, present)
        else:
            edge_index, edge_weight = self._complete(edge_index, edge_weight, size)
        # propagate_type: (x: Tensor, attended: OptTensor, query: Tensor, edge_weight: Tensor)
        out = self.propagate(
            edge_index,
            x=(x_macro, x_target),
            attended=None if x_attention is None else (x_attention, None),
            query=(None, self._query(x_target)),
            edge_weight=edge_weight,
            size=size,
        )
        return self.lin_value(out)

    def message(
        self,
        x_j: Tensor,
        attended_j: OptTensor,
        query_i: Tensor,
        edge_weight: Tensor,
        index: Tensor,
        ptr: OptTensor,
        size_i: OptInt,
    ) -> Tensor:
        log_weight = self._log_weight(edge_weight)
        if self.form != 'released':
            score = ((x_j if attended_j is None else attended_j) * query_i).sum(dim=-1)
        if self.form == 'twin':
            log_weight = score + log_weight
        weight = softmax(log_weight, index, ptr, size_i)
        if self.form == 'paper':
            weight = weight * softmax(score, index, ptr, size_i)
        if self.renormalize:
            total = scatter(weight, index, dim_size=size_i)
            total = total.clamp(min=torch.finfo(weight.dtype).tiny)
            weight = weight / total.index_select(0, index)
        return weight.to(x_j.dtype).unsqueeze(-1) * x_j

    def weigh(self, counts: Tensor) -> Tensor:
        r"""The weights :math:`w_{vq}` of eq. 6, which no embedding has a part in: what counts say
        can be kept while they stay as they are. Of the form :obj:`"twin"` there are none.

        Args:
            counts (torch.Tensor): Counts as a dense matrix of floats, shape :obj:`[B, M]`.

        Returns:
            Shape :obj:`[B, M]`; zero for macro nodes that are left out.

        Raises:
            TypeError: If the counts are no floats.
            ValueError: If the shape is another, or one softmax takes in the attention.
        """
        if self.form == 'twin':
            raise ValueError(f"{self} has no weights of counts alone: take form='paper'.")
        check_tensor(self, 'counts', counts, ('B', 'M'), 'floats')
        weight = self._masked_softmax(self._log_weight(counts), counts > 0)
        # A target without any count keeps the zero vector.
        return weight * (counts > 0) if self.mask_zero else weight

    def combine(
        self,
        x_macro: Tensor,
        x_target: Tensor,
        weight: Tensor,
        present: Tensor,
        x_attention: OptTensor = None,
    ) -> Tensor:
        r"""The sum of eq. 8 and 11 by weights of :meth:`weigh`. One row of targets stands for each
        row of weights, and one row of weights for each target.

        Args:
            x_macro (torch.Tensor): Embeddings of the macro nodes, shape :obj:`[M, d]`.
            x_target (torch.Tensor): Embeddings of the targets, shape :obj:`[B, d]` or
                :obj:`[1, d]`.
            weight (torch.Tensor): The weights, shape :obj:`[B, M]` or :obj:`[1, M]`.
            present (torch.Tensor): Which counts are above 0, of the same shape.
            x_attention (torch.Tensor, optional): See :meth:`forward`. (default: :obj:`None`)

        Returns:
            Shape :obj:`[B, d']`.
        """
        if self.form == 'paper':
            score = self._score(x_macro if x_attention is None else x_attention, x_target)
            weight = weight * self._masked_softmax(score, present)
        return self._sum(x_macro, weight)

    def attend(
        self, x: Tensor, x_target: Tensor, mask: Tensor, x_attention: OptTensor = None
    ) -> Tensor:
        r"""Plain attention over a short list of neighbors a target, without counts: the recent
        interactions of eq. 12 and 13. One target stands for each list, and one list for each
        target.

        Args:
            x (torch.Tensor): Embeddings of the neighbors, shape :obj:`[B, R, d]` or
                :obj:`[1, R, d]`.
            x_target (torch.Tensor): Embeddings of the targets, shape :obj:`[B, d]` or
                :obj:`[1, d]`.
            mask (torch.Tensor): Which neighbors there are, shape :obj:`[B, R]` or :obj:`[1, R]`.
                The paddings are left out of the softmax, unless :obj:`mask_zero=False`, which takes
                them in and drops them after, as the released code does.
            x_attention (torch.Tensor, optional): What the attention reads in the place of
                :obj:`x`, of the same shape. (default: :obj:`None`)

        Returns:
            Shape :obj:`[B, d']`; zero for a target without neighbors.
        """
        if self.form != 'released':
            attended = x if x_attention is None else x_attention
            if attended.size(0) == 1:
                score = self._score(attended[0], x_target)
            else:
                # Not bmm, whose backward takes twice as long for matrices as small as these.
                score = (attended * self._query(x_target).unsqueeze(1)).sum(dim=-1)
            weight = self._masked_softmax(score, mask) * mask
        else:
            weight = mask.to(x.dtype)
        if x.size(0) == 1:
            return self.lin_value(weight @ x[0])
        return self.lin_value((weight.unsqueeze(-1) * x).sum(dim=1))

    def _forward_dense(
        self, x_macro: Tensor, x_target: Tensor, counts: Tensor, x_attention: OptTensor
    ) -> Tensor:
        present = counts > 0
        if self.form != 'twin':
            return self.combine(x_macro, x_target, self.weigh(counts), present, x_attention)
        score = self._score(x_macro if x_attention is None else x_attention, x_target)
        weight = self._masked_softmax(score + self._log_weight(counts), present) * present
        return self._sum(x_macro, weight)

    def _score(self, x_attention: Tensor, x_target: Tensor) -> Tensor:
        r"""How much each target attends to each of the same neighbors, shape :obj:`[B, M]`."""
        return self._query(x_target) @ x_attention.t()

    def _sum(self, x_macro: Tensor, weight: Tensor) -> Tensor:
        if self.renormalize:
            total = weight.sum(dim=-1, keepdim=True)
            weight = weight / total.clamp(min=torch.finfo(weight.dtype).tiny)
        value = self.lin_value(x_macro)
        return weight.to(value.dtype) @ value

    def _check_matrix(self, counts: Adj, edge_weight: OptTensor, size: tuple[int, int]) -> None:
        if edge_weight is not None:
            raise ValueError(
                f"{self} takes a matrix of counts without 'edge_weight': they are the weights."
            )
        # torch_sparse has its own idea of a shape.
        shape = [counts.size(axis) for axis in range(counts.dim())]
        if shape != [size[1], size[0]]:
            raise ValueError(
                f'{self} expects counts of shape {[size[1], size[0]]} for {size[1]} targets and '
                f'{size[0]} macro nodes, but got shape {shape}.'
            )

    def _query(self, x_target: Tensor) -> Tensor:
        scale = math.sqrt(self.out_channels)
        return x_target @ (self.lin_key.weight.t() @ self.lin_query.weight / scale)

    def _log_weight(self, counts: Tensor) -> Tensor:
        if not self.weighting:
            return torch.zeros_like(counts)
        # Where there is no count, the softmax of form "twin" does not look.
        log = counts.where(counts > 0, 1).log() if self.form == 'twin' else counts.log1p()
        return log / self.temperature

    def _masked_softmax(self, score: Tensor, mask: Tensor) -> Tensor:
        if self.mask_zero:
            # Not -inf: a row without any neighbor would turn into NaN in the gradient.
            score = torch.where(mask, score, torch.finfo(score.dtype).min)
        return score.softmax(dim=-1)

    @staticmethod
    def _complete(
        edge_index: Tensor, edge_weight: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        r"""Adds the pairs without an edge with count 0, in the order of targets."""
        num_macro, num_targets = size
        pair = edge_index[1] * num_macro + edge_index[0]
        counts = scatter(edge_weight, pair, dim_size=num_macro * num_targets)
        pair = torch.arange(num_macro * num_targets, device=edge_index.device)
        return torch.stack([pair % num_macro, pair // num_macro]), counts

    def __repr__(self) -> str:
        return (
            f'{self.__class__.__name__}({self.in_channels}, {self.out_channels}, '
            f'temperature={self.temperature}, form={self.form!r}, '
            f'mask_zero={self.mask_zero}, weighting={self.weighting}, '
            f'renormalize={self.renormalize})'
        )
