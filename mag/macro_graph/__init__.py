r"""The macro graph: nodes grouped into macro nodes, and the counts that describe each by them."""

from mag.macro_graph.counts_before import counts_before
from mag.macro_graph.grouping import Grouping
from mag.macro_graph.macro_clusters import MacroClusters
from mag.macro_graph.macro_edges import MacroEdges
from mag.macro_graph.macro_rows import MacroRows
from mag.macro_graph.macro_state import MacroState
from mag.macro_graph.sparse_counts import MacroNodes, SparseCounts
from mag.macro_graph.target_counts import Seen, target_counts
from mag.macro_graph.target_keys import TargetKeys
from mag.macro_graph.target_state import TargetState
from mag.macro_graph.target_view import TargetView, prior_places, target_views
from mag.macro_graph.window_counts import count_by_window

__all__ = [
    'Grouping',
    'MacroClusters',
    'MacroEdges',
    'MacroNodes',
    'MacroRows',
    'MacroState',
    'Seen',
    'SparseCounts',
    'TargetKeys',
    'TargetState',
    'TargetView',
    'count_by_window',
    'counts_before',
    'prior_places',
    'target_counts',
    'target_views',
]
