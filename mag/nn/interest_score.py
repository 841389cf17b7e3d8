from collections.abc import Sequence

import torch
from torch import Tensor

from mag.checks import check_integers, check_sizes, check_tensor


class InterestScore(torch.nn.Module):
    r"""How much a user who clicked an item cares for features, from the `"Click-Through Rate
    Prediction with Multi-Modal Hypergraphs" <https://doi.org/10.1145/3459637.3482327>`_ paper
    (eq. 10)

    .. math::
        f(u, i, \mathbf{a}) = \sigma \Big( \sum_k e^I_{ik} \, (\mathbf{W} \mathbf{a})_k \,
        e^U_{uk} \Big), \qquad \mathbf{a} = \mathbf{W}_m \mathbf{x} + \mathbf{b}_m,

    a number, which is the one reading of eq. 10 by which dimensions fit, for the features
    :math:`\mathbf{x}` of a modality :math:`m`, of item :math:`i` itself or of another.

    The item's embedding can learn which features are its own without the user. So
    :math:`\mathbf{e}^I_i` is :math:`\mathbf{1}` and a deviation, which starts small and may be
    decayed, and features are left for the users to tell apart. The paper does not say how it
    starts.

    Args:
        num_users (int): The number of users.
        num_items (int): The number of items.
        in_channels (Sequence[int]): Sizes :math:`F_m` of the features of each modality.
        embedding_dim (int, optional): Size of an embedding. (default: :obj:`64`)

    Raises:
        TypeError: If a size is no integer.
        ValueError: If a size is not positive.

    Shapes:
        - **input:** users and items :math:`(B)`, features of each modality :math:`(B, N, F_m)`
        - **output:** :math:`(B, N, M)`, for :math:`M` modalities
    """

    def __init__(
        self, num_users: int, num_items: int, in_channels: Sequence[int], embedding_dim: int = 64
    ) -> None:
        super().__init__()
        check_integers(1, num_users=num_users, num_items=num_items, embedding_dim=embedding_dim)
        check_sizes(in_channels=in_channels)
        self.in_channels = tuple(in_channels)
        self.user_embedding = torch.nn.Embedding(num_users, embedding_dim)
        self.item_deviation = torch.nn.Embedding(num_items, embedding_dim)
        self.lin = torch.nn.Linear(embedding_dim, embedding_dim, bias=False)
        self.lin_modality = torch.nn.ModuleList(
            torch.nn.Linear(size, embedding_dim) for size in in_channels
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        torch.nn.init.normal_(self.user_embedding.weight, std=0.1)
        torch.nn.init.normal_(self.item_deviation.weight, std=0.01)
        self.lin.reset_parameters()
        for lin in self.lin_modality:
            lin.reset_parameters()  # type: ignore[operator]

    def forward(self, user: Tensor, item: Tensor, x: Sequence[Tensor]) -> Tensor:
        r"""
        Args:
            user (torch.Tensor): Users, shape :obj:`[B]`.
            item (torch.Tensor): An item :math:`i` for each, shape :obj:`[B]`.
            x (Sequence[torch.Tensor]): The features to score of each modality, shape
                :obj:`[B, N, F_m]`.

        Returns:
            The sums within :math:`\sigma`, shape :obj:`[B, N, M]`.

        Raises:
            TypeError: If features are no floats.
            ValueError: If there are features of another number of modalities, or of another shape.
        """
        if len(x) != len(self.in_channels):
            raise ValueError(
                f'{self!r} expects the features of {len(self.in_channels)} modalities, but got '
                f'{len(x)}.'
            )
        query = self.user_embedding(user) * (1 + self.item_deviation(item)) @ self.lin.weight
        # Queries are projected, as there are fewer of them than of items.
        scores = []
        for column, (features, projection) in enumerate(zip(x, self.lin_modality)):
            shape = (user.size(0), 'N', self.in_channels[column])
            check_tensor(self, f'x[{column}]', features, shape, 'floats')
            score = (features @ (query @ projection.weight).unsqueeze(-1)).squeeze(-1)
            scores.append(score + (query @ projection.bias).unsqueeze(1))
        return torch.stack(scores, dim=-1)

    def __repr__(self) -> str:
        num_users, embedding_dim = self.user_embedding.weight.shape
        return (
            f'{self.__class__.__name__}({num_users}, {self.item_deviation.num_embeddings}, '
            f'{list(self.in_channels)}, embedding_dim={embedding_dim})'
        )
