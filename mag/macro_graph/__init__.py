r"""The macro graph: nodes grouped into macro nodes, and the counts that describe each by them."""

from mag.macro_graph.grouping import Grouping
from mag.macro_graph.macro_clusters import MacroClusters
from mag.macro_graph.macro_edges import MacroEdges
from mag.macro_graph.macro_rows import MacroRows
from mag.macro_graph.window_counts import count_by_window

__all__ = ['Grouping', 'MacroClusters', 'MacroEdges', 'MacroRows', 'count_by_window']
