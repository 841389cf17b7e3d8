r"""Items that a user did not click, drawn exactly."""

from mag.negatives.clicked_by_then import ClickedByThen
from mag.negatives.drawing import draw_negatives
from mag.negatives.items_by_arrival import NEVER, ItemsByArrival
from mag.negatives.items_by_events import ItemsByEvents
from mag.negatives.row_hash import hash_clicks, hash_rows, mix, number_repeats
from mag.negatives.unclicked_items import UnclickedItems

__all__ = [
    'NEVER',
    'ClickedByThen',
    'ItemsByArrival',
    'ItemsByEvents',
    'UnclickedItems',
    'draw_negatives',
    'hash_clicks',
    'hash_rows',
    'mix',
    'number_repeats',
]
