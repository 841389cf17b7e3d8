import torch
import torch.nn.functional as F
from torch import Tensor

from mag.checks import check_choice, check_integers, check_tensor
from mag.nn.behavior_graph_conv import BehaviorGraphConv


class BehaviorMerge(torch.nn.Module):
    r"""How the embeddings of an exposure's micro-behaviors learn from each other and become one, in
    the `"GMCM: Graph-based Micro-behavior Conversion Model for Post-click Conversion Rate
    Estimation" <https://doi.org/10.1145/3397271.3401425>`_ paper (eq. 15 and :math:`f_{output}` of
    eq. 17), and in the models that it compares with.

    With :obj:`merge="graph"`, :class:`BehaviorGraphConv` and a leaky ReLU of slope 0.01 follow each
    other :obj:`num_layers` times, with one learned bias for all layers,

    .. math::
        \mathbf{H}^{(l)} = \sigma \left( \hat{\mathbf{A}} \mathbf{H}^{(l-1)} \mathbf{\Theta}^{(l)}
        \right).

    >>> merge = BehaviorMerge(8, num_behaviors=3)
    >>> edge_index, edge_weight = torch.tensor([[0, 1], [1, 2]]), torch.tensor([0.5, 1.0])
    >>> hidden = merge(torch.randn(4, 3, 8), edge_index, edge_weight)
    >>> hidden.shape, merge.pool(hidden).shape
    (torch.Size([4, 3, 8]), torch.Size([4, 8]))

    Args:
        channels (int): Size :math:`H` of an embedding.
        num_behaviors (int): The number :math:`N` of behaviors.
        merge (str, optional): :obj:`"graph"`; :obj:`"gru"`, a GRU over the behaviors, in their
            order, pooled to its last state; or :obj:`"concat"`, where they learn nothing of each
            other and are concatenated. (default: :obj:`"graph"`)
        output (str, optional): How the graph is pooled: :obj:`"mean"`, :obj:`"sum"` or
            :obj:`"concat"`. (default: :obj:`"mean"`)
        num_layers (int, optional): The number of convolutions. (default: :obj:`2`)
        form (str, optional): See :class:`BehaviorGraphConv`. (default: :obj:`"paper"`)

    Shapes:
        - **input:** embeddings :math:`(B, N, H)`, and with :obj:`merge="graph"` edge indices
          :math:`(2, |\mathcal{E}|)` and edge weights :math:`(|\mathcal{E}|)`
        - **output:** :math:`(B, N, H)`; pooled :math:`(B, H)` or, concatenated, :math:`(B, N H)`
    """

    def __init__(
        self,
        channels: int,
        num_behaviors: int,
        merge: str = 'graph',
        output: str = 'mean',
        num_layers: int = 2,
        form: str = 'paper',
    ) -> None:
        super().__init__()
        check_integers(1, channels=channels, num_behaviors=num_behaviors, num_layers=num_layers)
        check_choice(('graph', 'gru', 'concat'), merge=merge)
        check_choice(('mean', 'sum', 'concat'), output=output)
        check_choice(('paper', 'literal'), form=form)
        self.channels = channels
        self.num_behaviors = num_behaviors
        self.merge = merge
        self.output = {'graph': output, 'gru': 'last', 'concat': 'concat'}[merge]
        self.out_channels = channels * (num_behaviors if self.output == 'concat' else 1)
        if merge == 'gru':
            self.gru = torch.nn.GRU(channels, channels, batch_first=True)
        convs = [
            BehaviorGraphConv(channels, channels, num_behaviors, form)
            for _ in range(num_layers if merge == 'graph' else 0)
        ]
        for conv in convs[1:]:
            # There is one graph, and so one bias of its edges.
            conv.edge_bias = convs[0].edge_bias
        self.convs = torch.nn.ModuleList(convs)

    def reset_parameters(self) -> None:
        for module in [self.gru] if self.merge == 'gru' else self.convs:
            module.reset_parameters()  # type: ignore[operator]

    def forward(
        self, hidden: Tensor, edge_index: Tensor | None = None, edge_weight: Tensor | None = None
    ) -> Tensor:
        r"""
        Args:
            hidden (torch.Tensor): The embeddings of the behaviors, shape :obj:`[B, N, H]`.
            edge_index (torch.Tensor, optional): As that of :class:`BehaviorGraphConv`, whose errors
                it raises; only read with :obj:`merge="graph"`. (default: :obj:`None`)
            edge_weight (torch.Tensor, optional): As :obj:`edge_index`. (default: :obj:`None`)

        Raises:
            TypeError: If :obj:`hidden` holds no floats.
            ValueError: If its shape is another.
        """
        shape = ('B', self.num_behaviors, self.channels)
        check_tensor('BehaviorMerge', 'hidden', hidden, shape, 'floats')
        for conv in self.convs:
            hidden = F.leaky_relu(conv(hidden, edge_index, edge_weight), 0.01)
        return self.gru(hidden)[0] if self.merge == 'gru' else hidden

    def pool(self, hidden: Tensor) -> Tensor:
        r"""One embedding of all behaviors, shape :obj:`[B, out_channels]`.

        Args:
            hidden (torch.Tensor): What :meth:`forward` returned, shape :obj:`[B, N, H]`.
        """
        if self.output == 'last':
            return hidden[:, -1]
        if self.output == 'concat':
            return hidden.flatten(1)
        return hidden.mean(1) if self.output == 'mean' else hidden.sum(1)

    def extra_repr(self) -> str:
        return f'merge={self.merge!r}, output={self.output!r}'
