r"""Smaller models: embedding tables by product quantization, and counts of one byte."""

from mag.compression.compress_tables import TableBytes, compress_tables
from mag.compression.count_codes import decode_counts, encode_counts
from mag.compression.quantized_embedding import QuantizedEmbedding

__all__ = [
    'QuantizedEmbedding',
    'TableBytes',
    'compress_tables',
    'decode_counts',
    'encode_counts',
]
