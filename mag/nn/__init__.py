r"""Layers, each in the idiom of :mod:`torch_geometric.nn`."""

from mag.nn.behavior_graph_conv import BehaviorGraphConv
from mag.nn.behavior_merge import BehaviorMerge
from mag.nn.contrastive_product import ContrastiveProduct
from mag.nn.count_encoder import CountEncoder
from mag.nn.cross_net import CrossNet
from mag.nn.cross_net_mix import CrossNetMix
from mag.nn.deep_cross import DeepCross
from mag.nn.dice import Dice
from mag.nn.domain_heads import DomainHeads
from mag.nn.gated_streams import GatedStreams
from mag.nn.hash_embedding import HashEmbedding
from mag.nn.hypergraph_conv import HypergraphConv
from mag.nn.id_embedding import IdEmbedding
from mag.nn.intention_conv import IntentionConv
from mag.nn.interest_score import InterestScore
from mag.nn.macro_conv import MacroConv
from mag.nn.mlp import MLP
from mag.nn.pretrained_text_encoder import PretrainedTextEncoder
from mag.nn.projection_head import ProjectionHead
from mag.nn.query_embedding import QueryEmbedding
from mag.nn.slot_hypergraph_conv import SlotHypergraphConv
from mag.nn.tensor_fusion import TensorFusion
from mag.nn.text_encoder import TextEncoder

__all__ = [
    'BehaviorGraphConv',
    'BehaviorMerge',
    'ContrastiveProduct',
    'CountEncoder',
    'CrossNet',
    'CrossNetMix',
    'DeepCross',
    'Dice',
    'DomainHeads',
    'GatedStreams',
    'HashEmbedding',
    'HypergraphConv',
    'IdEmbedding',
    'IntentionConv',
    'InterestScore',
    'MLP',
    'MacroConv',
    'PretrainedTextEncoder',
    'ProjectionHead',
    'QueryEmbedding',
    'SlotHypergraphConv',
    'TensorFusion',
    'TextEncoder',
]
