import torch
from torch import Tensor

from mag.checks import check_choice, check_ids, check_integers, check_tensor
from mag.nn.id_embedding import add_rows


class QueryEmbedding(torch.nn.EmbeddingBag):
    r"""Embeds a search query as the sum of the embeddings of its terms, as the `"Joint Learning of
    E-commerce Search and Recommendation with a Unified Graph Neural Network"
    <https://doi.org/10.1145/3488560.3498414>`_ paper does

    .. math::
        \mathbf{e}_q = \sum_{t \in q} \mathbf{e}_t,

    where the empty query of a recommendation is the term 0, and paddings add nothing.

    >>> embedding = QueryEmbedding(num_terms=100, embedding_dim=16)
    >>> embedding(torch.tensor([[7, 9, 3], [4, -1, -1], [0, -1, -1]])).shape
    torch.Size([3, 16])

    Args:
        num_terms (int): The number of terms, the empty query among them.
        embedding_dim (int): Size of an embedding.
        form (str, optional): :obj:`"paper"`, or :obj:`"released"` for the code of its authors,
            where a padding has an embedding, which is added for each, and the empty query is one of
            paddings alone. (default: :obj:`"paper"`)

    Shapes:
        - **input:** terms :math:`(B, Q)`, padded by -1
        - **output:** :math:`(B, d)`
    """

    def __init__(self, num_terms: int, embedding_dim: int, form: str = 'paper') -> None:
        check_integers(1, num_terms=num_terms, embedding_dim=embedding_dim)
        check_choice(('paper', 'released'), form=form)
        # Row 0 stands for a padding.
        padding_idx = None if form == 'released' else 0
        super().__init__(num_terms + 1, embedding_dim, mode='sum', padding_idx=padding_idx)
        self.num_terms = num_terms
        self.form = form

    def grow(self, num_terms: int) -> None:
        r"""Adds terms that are new, which add nothing to a query until they are trained. Others
        stay as they are, in a parameter of its own, which an optimizer has to be told of.

        Args:
            num_terms (int): How many terms there are then.

        Raises:
            TypeError: If it is no integer.
            ValueError: If there are fewer than before.
        """
        check_integers(self.num_terms, num_terms=num_terms)
        nothing = torch.zeros_like(self.weight[:1])
        self.weight = add_rows(self.weight, num_terms - self.num_terms, nothing)
        self.num_terms, self.num_embeddings = num_terms, num_terms + 1

    def forward(self, terms: Tensor) -> Tensor:  # type: ignore[override]
        r"""
        Args:
            terms (torch.Tensor): The terms of each query, -1 for a padding, shape :obj:`[B, Q]`.

        Raises:
            IndexError: If a term does not exist.
            TypeError: If :obj:`terms` is no tensor of int64.
            ValueError: If the shape is another.
        """
        check_tensor(self, 'terms', terms, ('B', 'Q'), torch.long)
        check_ids(self, 'query terms', terms, self.num_terms, first=-1)
        if terms.size(1) == 0:
            # A query of no terms is one of paddings alone; PyTorch has no bags without a place.
            terms = terms.new_full((terms.size(0), 1), -1)
        if self.form == 'released':
            terms = terms.where(terms > 0, -1)
        return super().forward(terms + 1)

    def extra_repr(self) -> str:
        return f'{self.num_terms}, {self.embedding_dim}, form={self.form!r}'
