import copy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch_geometric.transforms as T
from torch_geometric.data import HeteroData, InMemoryDataset
from torch_geometric.loader import LinkNeighborLoader, NeighborLoader

from mag.cutoff import require_same_nodes
from mag.datasets import IdMap
from mag.files import read_tensors, write_tensors
from mag.lineage import has_grown, id_maps, ids_of, require_ids_of, require_same_ids
from mag.nn import IdEmbedding
from mag.schema import CLICKS

OLD = IdMap(['a', 'b'])
GROWN, OTHER = OLD.extend(['c']), IdMap(['b', 'z'])


def graph(user: IdMap, **ids: IdMap) -> HeteroData:
    data = HeteroData()
    data['user'].num_nodes = data['item'].num_nodes = 3
    data['user'].x, data['item'].x = torch.ones(3, 2), torch.ones(3, 1)
    data[CLICKS].edge_index = torch.tensor([[0, 1], [1, 2]])
    data.id_maps = {name: id_map.lineage for name, id_map in {'user': user, **ids}.items()}
    return data


def test_maps_that_grew_are_told_from_others() -> None:
    assert has_grown(OLD.lineage, GROWN.lineage)
    assert has_grown(GROWN.lineage, OLD.lineage)
    assert has_grown(GROWN.extend(['d']).lineage, OLD.lineage)
    assert has_grown(GROWN.lineage, IdMap(['a', 'b', 'c']).lineage)
    assert not has_grown(OLD.lineage, OTHER.lineage)
    assert not has_grown(GROWN.lineage, OLD.extend(['d']).lineage)


def test_another_map_is_refused_by_name() -> None:
    given = graph(OTHER, item=OLD, shade=OLD).id_maps
    with pytest.raises(
        ValueError,
        match=rf'^X was made for the users of the id map {OLD.fingerprint}, but this data has '
        rf'those of {OTHER.fingerprint}, .* adds the new ones\.$',
    ):
        require_same_ids('X was made for', {'user': OLD.lineage}, given)
    with pytest.raises(ValueError, match="the values of 'shade' of the id map"):
        require_same_ids('X was made for', {'shade': OTHER.lineage}, given)
    # What one of both does not say is not compared.
    require_same_ids('X was made for', {'item': GROWN.lineage, 'land': OTHER.lineage}, given)
    require_same_ids('X was made for', {}, given)
    require_same_ids('X was made for', given, {})


def test_graphs_of_one_log_share_their_ids() -> None:
    require_same_nodes(graph(OLD), 'X', history=graph(OLD))
    with pytest.raises(ValueError, match="X was given data with the users .* but 'history' has"):
        require_same_nodes(graph(OLD), 'X', history=graph(OTHER))


class Stored(InMemoryDataset):
    def __init__(self, data: HeteroData) -> None:
        super().__init__(None)
        self.data, self.slices = self.collate([data, data])


def test_graphs_keep_what_their_ids_are(tmp_path: Path) -> None:
    data = graph(OLD, item=GROWN)
    expected = {'user': OLD.lineage, 'item': GROWN.lineage}
    assert data.validate()
    torch.save(data, tmp_path / 'data.pt')
    write_tensors(data.to_dict(), tmp_path / 'cache.pt')
    kept = {
        'copy': copy.copy(data),
        'deep copy': copy.deepcopy(data),
        'clone': data.clone(),
        'to': data.to('cpu'),
        'subgraph': data.subgraph({'user': torch.tensor([0, 1]), 'item': torch.tensor([0, 1])}),
        'save': torch.load(tmp_path / 'data.pt', weights_only=False),
        'cache': HeteroData.from_dict(read_tensors(tmp_path / 'cache.pt')),
        'undirected': T.ToUndirected()(data),
        'normalized': T.NormalizeFeatures()(data),
        'split': T.RandomLinkSplit(edge_types=[CLICKS], num_val=0.0, num_test=0.5)(data)[0],
        'collated': Stored(data)[1],
    }
    for name, graph_ in kept.items():
        assert id_maps(graph_) == expected, name
    assert 'id_maps' in str(data)


@pytest.mark.sparse
def test_neighbor_loaders_keep_what_ids_are() -> None:
    data = T.ToUndirected()(graph(OLD))
    loader = NeighborLoader(data, [2], input_nodes='user', batch_size=2)
    assert [id_maps(batch) for batch in loader] == [{'user': OLD.lineage}] * 2
    links = LinkNeighborLoader(data, [2], edge_label_index=(CLICKS, data[CLICKS].edge_index))
    assert id_maps(next(iter(links))) == {'user': OLD.lineage}


def test_a_graph_made_by_hand_says_nothing() -> None:
    assert id_maps(HeteroData()) == {}


def test_models_in_a_model_say_what_they_were_built_for() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.Linear(1, 1))
    assert ids_of(model) == {}
    model[1].id_maps = {'user': OLD.lineage}  # type: ignore[assignment]
    assert ids_of(torch.nn.ModuleDict({'part': model})) == {'user': OLD.lineage}


def test_a_table_without_rows_for_the_ids_of_a_log_that_grew_is_refused() -> None:
    def loader_of(user: IdMap, **ids: IdMap) -> SimpleNamespace:
        return SimpleNamespace(data=graph(user, item=OLD, **ids))

    def model_of(name: str, num_ids: int) -> torch.nn.Module:
        model = torch.nn.Sequential(IdEmbedding(name, num_ids, 2))
        model.id_maps = {'user': OLD.lineage, 'item': OLD.lineage}  # type: ignore[assignment]
        return model

    task = torch.nn.ModuleDict({'model': model_of('user', 2)})
    require_ids_of(task, loader_of(OLD), 'the loader')
    sentence = (
        r"^Sequential has rows for 2 values of 'user', but the loader is of a log that grew to 3: "
        r'call model\.grow\(data\) .*\.$'
    )
    with pytest.raises(ValueError, match=sentence):
        require_ids_of(task, loader_of(GROWN), 'the loader')
    # What has no such table, or one with room, reads nothing of another.
    for model in (model_of('item', 2), model_of('user', 3), torch.nn.Linear(1, 1)):
        require_ids_of(model, loader_of(GROWN), 'the loader')
    # Of an attribute of items, too.
    model = model_of('item_shade', 2)
    model.id_maps = {'shade': OLD.lineage}  # type: ignore[assignment]
    with pytest.raises(ValueError, match="has rows for 2 values of 'item_shade'"):
        require_ids_of(model, loader_of(OLD, shade=GROWN), 'the loader')
    # One that was built for the log that grew knows all of the former.
    model = model_of('user', 2)
    model.id_maps = {'user': GROWN.lineage}  # type: ignore[assignment]
    require_ids_of(model, loader_of(OLD), 'the loader')
