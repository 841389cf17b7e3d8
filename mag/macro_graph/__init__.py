r"""The macro graph: nodes grouped into macro nodes, and the counts that describe each by them."""

from mag.macro_graph.grouping import Grouping
from mag.macro_graph.macro_edges import MacroEdges

__all__ = ['Grouping', 'MacroEdges']
