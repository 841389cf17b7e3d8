r"""Complete models, one a file, built from the layers of :mod:`mag.nn`."""

from mag.models.count_net import CountNet
from mag.models.gmcm import GMCM
from mag.models.hyperctr import HyperCTR
from mag.models.macgnn import MacGNN
from mag.models.simcen import SimCEN
from mag.models.srjgraph import SRJGraph
from mag.models.stack import Stack

__all__ = ['CountNet', 'GMCM', 'HyperCTR', 'MacGNN', 'SRJGraph', 'SimCEN', 'Stack']
