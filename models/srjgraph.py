from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.nn.module_dict import ModuleDict

from mag.checks import check_booleans, check_choice, check_ids, check_integers, check_tensor
from mag.lineage import remember_ids
from mag.models._growth import check_grown
from mag.nn import DomainHeads, IdEmbedding, IntentionConv, QueryEmbedding
from mag.nn.id_embedding import hide
from mag.schema import CLICKS, NEIGHBOR_TYPE, REVERSE_CLICKS, TO_PRECURSOR, categoricals, require


class SRJGraph(torch.nn.Module):
    r"""The click model from the `"Joint Learning of E-commerce Search and Recommendation with a
    Unified Graph Neural Network" <https://doi.org/10.1145/3488560.3498414>`_ paper.

    Search and recommendation are one graph, whose edges carry the query that led to the click. For
    a target :math:`(u, q, p)` the embeddings of its intention :math:`\mathbf{e}^I = \mathbf{e}_u
    \Vert \mathbf{e}_q \Vert \mathbf{e}_p` guide the aggregation of the paths from :math:`u` and
    from :math:`p` (:class:`~mag.loader.PathLoader`). A node :math:`n` comes with its upstream, the
    precursor and the query by which it was reached, as the triple :math:`\mathbf{e}^{(0)}_n` of
    user, query and item (eq. 7); :class:`~mag.nn.IntentionConv` aggregates, from the leaves to the
    roots, what its children have learned (eq. 8 to 11). One layer serves all users and one all
    items, at any depth. The click is predicted by a head of the target's domain,

    .. math::
        \hat{y} = \mathrm{MLP}_{domain} \left( \mathrm{BN} \left( \mathbf{e}_u \Vert \mathbf{e}_p
        \Vert \mathbf{e}_q \Vert \mathbf{e}^{(K)}_u \Vert \mathbf{e}^{(K)}_p \right) \right)

    (eq. 12 and 13). The embedding of a query is the sum of those of its terms; the empty query of a
    recommendation is a term of its own. Where the paper leaves it open, the upstream of the
    target's user is its item and the target's query, and vice versa, as in the released code. The
    released code differs from the paper, and from this, in more: it pairs children with other
    precursors than theirs where a precursor has several, gates the aggregation by a dense layer of
    its own in the variant that it runs by default, and its ablations leave out more than they say
    (the query of the target, too, or the other side of it).

    Args:
        num_nodes (dict[str, int]): For :obj:`"user"` and :obj:`"item"`, how many there are.
        attributes (dict[str, dict[str, int]], optional): For :obj:`"user"` and :obj:`"item"`, the
            number of values of each categorical attribute. (default: :obj:`None`)
        num_terms (int, optional): The number of query terms, the empty query among them.
            (default: :obj:`1`)
        num_domains (int, optional): The number of heads. (default: :obj:`2`)
        id_dim (int, optional): Size of the embedding of an id, and of a term.
            (default: :obj:`16`)
        attribute_dim (dict[str, int], optional): Size of that of an attribute. By default those of
            the paper, :obj:`{'user': 4, 'item': 8}`.
        hidden_channels (Sequence[int], optional): Hidden sizes of a head.
            (default: :obj:`(256, 64)`)
        num_positions (int, optional): See :class:`~mag.nn.IntentionConv`. (default: :obj:`26`)
        query (bool, optional): If set to :obj:`False`, edges carry no queries ("w/o query" of Table
            5); the target's own query stays in the intention, in the triples of the target's user
            and item, and in the head. (default: :obj:`True`)
        intention (bool, optional): If set to :obj:`False`, the intention guides nothing ("w/o
            intention"). (default: :obj:`True`)
        upstream (bool, optional): If set to :obj:`False`, centers do not know how they were reached
            ("w/o upstream"). (default: :obj:`True`)
        form (str, optional): :obj:`"paper"`; :obj:`"released"`, where queries are embedded as in
            the released code: paddings have an embedding, which is added for each, and the empty
            query is one of paddings alone; or :obj:`"literal"`, where the transformer of
            :class:`~mag.nn.IntentionConv` is the one that the paper cites.
            (default: :obj:`"paper"`)
        id_dropout (float, optional): The share of target users and items that are taken for unknown
            in a step of training, with their attributes known, also where they are on the paths of
            that target, see :class:`~mag.nn.IdEmbedding`. (default: :obj:`0.0`)

    Raises:
        ValueError: If a size is not positive, or that of a node type is missing.
    """

    def __init__(
        self,
        num_nodes: Mapping[str, int],
        attributes: Mapping[str, Mapping[str, int]] | None = None,
        num_terms: int = 1,
        num_domains: int = 2,
        id_dim: int = 16,
        attribute_dim: Mapping[str, int] | None = None,
        hidden_channels: Sequence[int] = (256, 64),
        num_positions: int = 26,
        query: bool = True,
        intention: bool = True,
        upstream: bool = True,
        form: str = 'paper',
        id_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_booleans(query=query, intention=intention, upstream=upstream)
        check_choice(('paper', 'released', 'literal'), form=form)
        num_nodes = _of_both('num_nodes', num_nodes, {})
        attributes = _of_both('attributes', attributes or {}, {'user': {}, 'item': {}})
        attribute_dim = _of_both('attribute_dim', attribute_dim or {}, {'user': 4, 'item': 8})
        check_integers(1, id_dim=id_dim)
        _check_sizes('num_nodes', num_nodes)
        _check_sizes('attribute_dim', attribute_dim)
        for name, sizes in attributes.items():
            _check_sizes(f'attributes[{name!r}]', sizes)
        self.query = query
        self.intention = intention
        self.upstream = upstream
        self.form = form
        self.embedding = torch.nn.ModuleDict(
            {
                name: IdEmbedding(name, num_nodes[name], id_dim, id_dropout)
                for name in ('user', 'item')
            }
        )
        self.attribute_embedding = torch.nn.ModuleDict(
            {
                # PyG's takes an attribute of any name, such as `type`.
                node_type: ModuleDict(
                    {
                        name: IdEmbedding(name, num, attribute_dim[node_type])
                        for name, num in attributes[node_type].items()
                    }
                )
                for node_type in ('user', 'item')
            }
        )
        query_form = 'released' if form == 'released' else 'paper'
        self.term_embedding = QueryEmbedding(num_terms, id_dim, query_form)
        self.size = {
            name: id_dim + attribute_dim[name] * len(attributes[name]) for name in ('user', 'item')
        }
        channels = self.size['user'] + id_dim + self.size['item']
        # The released transformer is what the paper's form has.
        conv_form = 'literal' if form == 'literal' else 'paper'
        # By the type of the centers.
        self.convs = torch.nn.ModuleDict(
            {
                name: IntentionConv(channels, channels, num_positions, conv_form)
                for name in ('user', 'item')
            }
        )
        self.heads = DomainHeads(3 * channels, hidden_channels, num_domains)
        self.reset_parameters()

    @classmethod
    def from_data(cls, data: HeteroData, **kwargs: Any) -> 'SRJGraph':
        r"""Builds the model for a log, with all categorical attributes of users and items.

        Args:
            data (HeteroData): Any part of the log; all parts share their sizes.
            **kwargs (optional): Arguments of :class:`SRJGraph`, such as :obj:`attributes` to leave
                some out.

        Raises:
            IndexError: If a value of an attribute is not below its number of values.
            TypeError: If an attribute is no tensor of integers; :obj:`attributes` leaves it out.
            ValueError: If it does not hold one value a node.
        """
        require(data, 'SRJGraph.from_data', 'edge_index')
        if 'attributes' not in kwargs:
            kwargs['attributes'] = {name: _num_values(data, name) for name in ('user', 'item')}
        kwargs.setdefault('num_terms', data[CLICKS].get('num_query', 1))
        kwargs.setdefault('num_domains', data[CLICKS].get('num_domain', 1))
        num_nodes = {node_type: data[node_type].num_nodes for node_type in ('user', 'item')}
        return remember_ids(cls(num_nodes, **kwargs), data)

    def reset_parameters(self) -> None:
        for module in self.modules():
            if isinstance(module, IdEmbedding):
                module.reset_parameters(torch.nn.init.xavier_uniform_)
            elif isinstance(module, torch.nn.EmbeddingBag):
                torch.nn.init.xavier_uniform_(module.weight)
        for module in (*self.convs.values(), self.heads):
            module.reset_parameters()  # type: ignore[operator]

    def grow(self, data: HeteroData) -> None:
        r"""Adds what a log has that grew: users, items and values of attributes, whose embeddings
        start as that of an unknown one, and query terms, which add nothing at first. What was known
        is scored as before. An optimizer has to be made anew.

        Args:
            data (HeteroData): A part of the grown log.

        Raises:
            TypeError: If :obj:`data` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If the data has the ids of another log, or fewer nodes, values or terms than
                before, lacks an attribute that is read, or has domains without a head.
        """
        require(data, 'SRJGraph.grow')
        clicks = data[CLICKS]
        num_domains = clicks.get('num_domain', 1)
        if num_domains > self.heads.num_domains:
            raise ValueError(
                f'SRJGraph has heads for {self.heads.num_domains} domains, but this data has '
                f'{num_domains}.'
            )
        tables: dict[str, Any] = {'query terms': self.term_embedding}
        found = {'query terms': clicks.get('num_query', 1)}
        for node_type, embedding in self.embedding.items():
            tables[f'{node_type}s'] = embedding
            found[f'{node_type}s'] = data[node_type].num_nodes
            numbers = categoricals(data[node_type])
            attributes: Any = self.attribute_embedding[node_type]
            for name, table in attributes.items():
                what = f"values of data['{node_type}'].{name}"
                tables[what], found[what] = table, numbers.get(name, 0)
        known = {
            what: table.num_terms if table is self.term_embedding else table.num_ids
            for what, table in tables.items()
        }
        check_grown(self, data, known, found)
        for what, table in tables.items():
            table.grow(found[what])
        remember_ids(self, data)

    def forward(
        self, batch: HeteroData, return_attention_weights: bool = False
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        r"""
        Args:
            batch (HeteroData): Targets with their paths, see :class:`~mag.loader.PathLoader`.
            return_attention_weights (bool, optional): If set to :obj:`True`, also returns for the
                targets' :obj:`"user"` and :obj:`"item"` their attention to themselves and then to
                each of their children, the first edges of the batch, shape :obj:`[B + E_1]`.
                (default: :obj:`False`)

        Returns:
            The logit of each click, shape :obj:`[B]`.

        Raises:
            IndexError: If a node, a value of an attribute or a term of a query does not exist, or a
                domain has no head.
            TypeError: If :obj:`batch` is no :class:`~torch_geometric.data.HeteroData`.
            ValueError: If :obj:`batch` is not one of :class:`~mag.loader.PathLoader`, or lacks an
                attribute or the queries that the model reads.
        """
        _check_batch(batch, self._needed())
        num_targets = batch[CLICKS].edge_label_index.size(1)
        node = {name: self._nodes(batch, name) for name in ('user', 'item')}
        query = self._queries(batch[CLICKS], 'edge_label_query', num_targets)
        root = {name: x[:num_targets] for name, x in node.items()}
        intention = torch.cat([root['user'], query, root['item']], dim=1)
        aggregated, attention = self._aggregate(batch, node, query, intention)
        features = torch.cat([root['user'], root['item'], query, *aggregated], dim=1)

        domain = batch[CLICKS].get('edge_label_domain')
        if domain is None:
            domain = torch.zeros(num_targets, dtype=torch.long, device=features.device)
        logit = self.heads(features, domain)
        return (logit, attention) if return_attention_weights else logit

    def _needed(self) -> dict[Any, list[str]]:
        r"""What each store of a batch must have."""
        nodes = {}
        for name in ('user', 'item'):
            attributes: Any = self.attribute_embedding[name]
            nodes[name] = ['n_id', 'batch', 'num_sampled_nodes', *attributes.keys()]
        edges, targets = ['edge_index', 'num_sampled_edges'], ['edge_label_index']
        # Where all queries are the empty one, or all rows of one domain, a batch may be without.
        if self.term_embedding.num_terms > 1:
            targets.append('edge_label_query')
            if self.query:
                edges.append('query')
        if self.heads.num_domains > 1:
            targets.append('edge_label_domain')
        return {**nodes, CLICKS: [*edges, *targets], REVERSE_CLICKS: edges}

    def _aggregate(
        self, batch: HeteroData, node: dict[str, Tensor], query: Tensor, intention: Tensor
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        triple = {name: self._triples(batch, node, query, name) for name in ('user', 'item')}
        place = {name: _ends(batch[name].num_sampled_nodes) for name in ('user', 'item')}
        edge = {
            name: _ends(batch[edge_type].num_sampled_edges)
            for name, edge_type in TO_PRECURSOR.items()
        }
        depth = len(place['user']) - 2
        blocks = {
            name: [triple[name][start:end] for start, end in zip(ends, ends[1:])]
            for name, ends in place.items()
        }
        hidden = {name: blocks[name][depth] for name in ('user', 'item')}
        for level in reversed(range(depth)):
            following, attention = {}, {}
            for center, child in NEIGHBOR_TYPE.items():
                edges = slice(edge[child][level], edge[child][level + 1])
                edge_index = batch[TO_PRECURSOR[child]].edge_index[:, edges]
                start = torch.tensor(
                    [[place[child][level + 1]], [place[center][level]]], device=edge_index.device
                )
                target = batch[center].batch[place[center][level] : place[center][level + 1]]
                # Not intention[target], whose gradient on several threads is another from run to
                # run.
                guide = intention.index_select(0, target)
                if not self.intention:
                    guide = torch.zeros_like(guide)
                centers = blocks[center][level]
                if not self.upstream:
                    centers = centers * self._own(center, centers)
                following[center], attention[center] = self.convs[center](
                    (hidden[child], centers),
                    edge_index - start,
                    guide,
                    return_attention_weights=True,
                )
            hidden = following
        return [hidden['user'], hidden['item']], attention

    def _nodes(self, batch: HeteroData, name: str) -> Tensor:
        embedding, ids = self.embedding[name], batch[name].n_id
        if embedding.drops:
            own = ids[: batch[CLICKS].edge_label_index.size(1)]
            kept, target = embedding.drop(own), batch[name].batch  # type: ignore[operator]
            ids = hide(ids, own.index_select(0, target), kept.index_select(0, target))
        parts = [embedding(ids)]
        attributes: Any = self.attribute_embedding[name]
        parts += [table(batch[name][attribute]) for attribute, table in attributes.items()]
        return torch.cat(parts, dim=1)

    def _queries(self, store: Any, name: str, num: int) -> Tensor:
        if name not in store:
            terms = torch.zeros(num, 1, dtype=torch.long, device=store.edge_index.device)
            return self.term_embedding(terms)
        check_tensor('SRJGraph', name, store[name], (num, 'Q'), torch.long)
        return self.term_embedding(store[name])

    def _triples(
        self, batch: HeteroData, node: dict[str, Tensor], query: Tensor, name: str
    ) -> Tensor:
        r"""User, query and item of the edge by which each node of a type was reached."""
        store = batch[TO_PRECURSOR[name]]
        # A child is numbered by its edge; the first are the targets' own, reached from each other.
        precursor = torch.cat(
            [torch.arange(query.size(0), device=query.device), store.edge_index[1]]
        )
        reached = self._queries(store, 'query', store.edge_index.size(1))
        if not self.query:
            reached = torch.zeros_like(reached)
        pair = {
            name: node[name],
            NEIGHBOR_TYPE[name]: node[NEIGHBOR_TYPE[name]].index_select(0, precursor),
        }
        return torch.cat([pair['user'], torch.cat([query, reached]), pair['item']], dim=1)

    def _own(self, name: str, like: Tensor) -> Tensor:
        r"""1 in the channels of a triple that are the node itself, 0 in those of its upstream."""
        own = torch.zeros(like.size(1), dtype=like.dtype, device=like.device)
        if name == 'user':
            own[: self.size['user']] = 1
        else:
            own[-self.size['item'] :] = 1
        return own

    def extra_repr(self) -> str:
        return (
            f'query={self.query}, intention={self.intention}, upstream={self.upstream}, '
            f'form={self.form!r}'
        )


def _of_both(name: str, value: Any, default: dict[str, Any]) -> dict[str, Any]:
    r"""An argument of users and items, with its defaults."""
    if not isinstance(value, Mapping):
        raise TypeError(f"'{name}' must be a dictionary of 'user' and 'item', but got {value!r}.")
    if {*default, *value} != {'user', 'item'}:
        raise ValueError(f"'{name}' must be of 'user' and 'item', but got {value!r}.")
    return {**default, **value}


def _check_sizes(name: str, sizes: Any) -> None:
    if not isinstance(sizes, Mapping):
        raise TypeError(f"'{name}' must be a dictionary of sizes, but got {sizes!r}.")
    check_integers(1, **{f'{name}[{key!r}]': size for key, size in sizes.items()})


def _num_values(data: HeteroData, node_type: str) -> dict[str, int]:
    r"""The number of values of each categorical attribute."""
    num_values = categoricals(data[node_type])
    for name, num in num_values.items():
        value, what = data[node_type][name], f"data['{node_type}'].{name}"
        check_tensor('SRJGraph.from_data', what, value, (data[node_type].num_nodes,), 'integers')
        check_ids('SRJGraph.from_data', f'values of {what}', value, num)
    return num_values


def _check_batch(batch: Any, needed: dict[Any, list[str]]) -> None:
    if not isinstance(batch, HeteroData):
        raise TypeError(
            f'SRJGraph reads the batches of PathLoader, which are HeteroData, but got '
            f'{type(batch).__name__}.'
        )
    types = {*batch.node_types, *batch.edge_types}
    for store, names in needed.items():
        missing = [name for name in names if store not in types or name not in batch[store]]
        if missing:
            raise ValueError(
                f'SRJGraph reads the batches of PathLoader, but in this one {store!r} has no '
                f'{missing}.'
            )
    num_targets = batch[CLICKS].edge_label_index.size(1)
    for name, edge_type in TO_PRECURSOR.items():
        # PyG's loaders share nodes among the paths of a target, and then none has one precursor.
        sizes = [num_targets, *batch[edge_type].num_sampled_edges]
        if batch[name].num_sampled_nodes != sizes:
            raise ValueError(
                f'SRJGraph reads the batches of PathLoader, where each node is a target or has one '
                f'edge, so {sizes} {name}s by depth, but got {batch[name].num_sampled_nodes}.'
            )


def _ends(sizes: list[int]) -> list[int]:
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    return ends
