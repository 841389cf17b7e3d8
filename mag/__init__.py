r"""Graph-based click and conversion prediction with PyTorch Geometric, from raw logs to models."""

__version__ = '0.1.0'
