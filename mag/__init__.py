r"""Graph-based click and conversion prediction with PyTorch Geometric, from raw logs to models."""

# torch comes before faiss: with faiss first, a forked DataLoader worker that calls faiss hangs.
# Every module of the package is imported after this line, so none needs to think of it.
import torch  # noqa: F401

__version__ = '0.1.0'
