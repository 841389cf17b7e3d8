r"""Layers, each in the idiom of :mod:`torch_geometric.nn`."""

from mag.nn.dice import Dice
from mag.nn.macro_conv import MacroConv
from mag.nn.mlp import MLP

__all__ = ['Dice', 'MLP', 'MacroConv']
