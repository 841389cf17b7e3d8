import torch
from torch import Tensor

from mag.checks import check_choice, check_ids, check_integers, check_tensor, check_values

BITS = (4, 8)


class QuantizedEmbedding(torch.nn.Module):
    r"""An embedding table by product quantization, as in the `"Product Quantization for Nearest
    Neighbor Search" <https://doi.org/10.1109/TPAMI.2010.57>`_ paper: a row is cut into :math:`m`
    pieces, each of which is one of the :math:`2^b` centroids that k-means found for its place,

    .. math::
        \hat{\mathbf{w}}_v = \mathbf{c}_{1, q_1(v)} \Vert \cdots \Vert \mathbf{c}_{m, q_m(v)},
        \qquad q_j(v) = \underset{k}{\mathrm{argmin}} \,
        {\lVert \mathbf{w}_{v, j} - \mathbf{c}_{j, k} \rVert}^2_2.

    A row takes :math:`m b / 8` bytes instead of :math:`4 d`, and the centroids of all rows together
    :math:`2^b \cdot 4 d`. What is read is put together from the centroids: the table as a whole is
    never there, unless :attr:`weight` is asked for. It is not trained any further.

    It takes the place of an embedding, or of its parameter :obj:`weight`, as
    :func:`compress_tables` puts it there.

    .. code-block:: pycon

        >>> embedding = torch.nn.Embedding(1000, 8)
        >>> quantized = QuantizedEmbedding.from_weight(embedding.weight, num_codes=4)
        >>> quantized(torch.tensor([[3, 7]])).shape
        torch.Size([1, 2, 8])
        >>> quantized.num_bytes
        12192

    Args:
        num_embeddings (int): The number of rows.
        embedding_dim (int): The size :math:`d` of a row.
        num_codes (int): The number :math:`m` of pieces of a row, which divides :math:`d`.
        num_bits (int, optional): The bits :math:`b` of a code, 4 or 8. (default: :obj:`8`)

    Attributes:
        codes (torch.Tensor): The codes of each row as FAISS packs them, one or two a byte, uint8,
            shape :obj:`[num_embeddings, ceil(m * b / 8)]`.
        codebooks (torch.Tensor): The centroids of each place, shape :obj:`[m, 2 ** b, d / m]`.

    Shapes:
        - **input:** ids :math:`(*)`
        - **output:** :math:`(*, d)`

    Raises:
        IndexError: If an id does not exist.
        TypeError: If a number or an id is no integer.
        ValueError: If a size is out of range, or the pieces do not divide a row.
    """

    codes: Tensor
    codebooks: Tensor
    first: Tensor

    def __init__(
        self, num_embeddings: int, embedding_dim: int, num_codes: int, num_bits: int = 8
    ) -> None:
        super().__init__()
        check_integers(
            1, num_embeddings=num_embeddings, embedding_dim=embedding_dim, num_codes=num_codes
        )
        check_choice(BITS, num_bits=num_bits)
        if embedding_dim % num_codes != 0:
            raise ValueError(
                f"'num_codes' must divide the size of an embedding, {embedding_dim}, but got "
                f'{num_codes}.'
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.num_codes, self.num_bits = num_codes, num_bits
        num_packed = -(-num_codes * num_bits // 8)
        codes = torch.zeros(num_embeddings, num_packed, dtype=torch.uint8)
        self.register_buffer('codes', codes)
        shape = num_codes, 2**num_bits, embedding_dim // num_codes
        self.register_buffer('codebooks', torch.zeros(shape))
        first = torch.arange(num_codes) * 2**num_bits
        self.register_buffer('first', first, persistent=False)

    @classmethod
    def from_weight(
        cls, weight: Tensor, num_codes: int, num_bits: int = 8, seed: int = 0
    ) -> 'QuantizedEmbedding':
        r"""Finds the centroids of a table with FAISS.

        Args:
            weight (torch.Tensor): The table, shape :obj:`[N, d]`.
            num_codes (int): The number :math:`m` of pieces of a row, which divides :math:`d`.
            num_bits (int, optional): The bits :math:`b` of a code, 4 or 8. (default: :obj:`8`)
            seed (int, optional): Seed of the k-means, below :math:`2^{31}`. (default: :obj:`0`)

        Raises:
            ValueError: If there are fewer rows than centroids, or a value is not finite.
        """
        check_tensor(cls.__name__, 'weight', weight, ('N', 'd'), 'floats')
        check_integers(0, below=2**31, seed=seed)
        num_embeddings, embedding_dim = weight.shape
        quantized = cls(num_embeddings, embedding_dim, num_codes, num_bits)
        if weight.size(0) < 2**num_bits:
            raise ValueError(
                f'{cls.__name__} has {2**num_bits} centroids with num_bits={num_bits}, but got '
                f'{weight.size(0)} rows, fewer than these: leave the table as it is.'
            )
        rows = weight.detach().float().cpu().contiguous()
        # FAISS ends the process where a squared distance is not finite.
        squares = rows.square().sum(dim=1)
        expected = 'rows with squares that float32 can sum'
        check_values(cls.__name__, 'weight', squares, squares.isfinite(), expected)
        # Here, so that importing mag does not wait for it, and after torch: with FAISS first, a
        # forked DataLoader worker that calls it hangs.
        import faiss

        quantizer = faiss.ProductQuantizer(weight.size(1), num_codes, num_bits)
        quantizer.cp.seed = seed
        quantizer.cp.min_points_per_centroid = 1
        quantizer.cp.max_points_per_centroid = weight.size(0)
        quantizer.train(rows.numpy())
        quantized.codes.copy_(torch.from_numpy(quantizer.compute_codes(rows.numpy())))
        centroids = torch.from_numpy(faiss.vector_to_array(quantizer.centroids))
        quantized.codebooks.copy_(centroids.view_as(quantized.codebooks))
        return quantized.to(weight.device)

    @property
    def num_bytes(self) -> int:
        r"""The bytes of codes and centroids."""
        return self.codes.nbytes + self.codebooks.nbytes

    @property
    def weight(self) -> Tensor:
        r"""All rows, put together anew each time, shape :obj:`[N, d]`."""
        return self._rows(self.codes)

    def forward(self, ids: Tensor) -> Tensor:
        check_tensor(self, 'ids', ids, ('*',), 'integers')
        check_ids(self, 'ids', ids, self.num_embeddings)
        return self.index_select(0, ids.reshape(-1)).view(*ids.shape, self.embedding_dim)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        r"""Some rows, as a table that is a tensor gives them.

        Args:
            dim (int): 0, as rows are what there is.
            index (torch.Tensor): Which rows, shape :obj:`[B]`.
        """
        return self._rows(self.codes.index_select(dim, index))

    def size(self, dim: int) -> int:
        r"""The number of rows, or the size of one."""
        return (self.num_embeddings, self.embedding_dim)[dim]

    def __len__(self) -> int:
        return self.num_embeddings

    def _rows(self, codes: Tensor) -> Tensor:
        if self.num_bits == 4:
            # The first of two codes has the low bits; of an odd number, the last one stands alone.
            codes = torch.stack([codes & 15, codes >> 4], dim=-1).flatten(1)[:, : self.num_codes]
        place = codes.int() + self.first
        pieces = self.codebooks.flatten(0, 1).index_select(0, place.view(-1))
        return pieces.view(-1, self.embedding_dim)

    def extra_repr(self) -> str:
        return (
            f'{self.num_embeddings}, {self.embedding_dim}, num_codes={self.num_codes}, '
            f'num_bits={self.num_bits}'
        )
