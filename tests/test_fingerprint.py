import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mag.fingerprint import check_same_config, describe_loader, describe_task
from mag.models import CountNet, HyperCTR, MacGNN, SimCEN, SRJGraph, Stack


def test_config_names_each_difference() -> None:
    saved = {
        'seed': 1,
        'rate': 0.1,
        **describe_task(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.1))),
    }
    check_same_config(saved, saved, 'runs/a')
    other = {
        'seed': 2,
        'rate': 0.1,
        **describe_task(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.2))),
    }
    with pytest.raises(ValueError) as error:
        check_same_config(saved, other, 'runs/a')
    message = str(error.value)
    assert 'The run in runs/a was started with other settings: seed is 1 there, 2 here;' in message
    assert '(1): Dropout(p=0.1, inplace=False) there' in message
    assert '(1): Dropout(p=0.2, inplace=False) here' in message
    assert 'parameter 0.weight is [3, 2] there, [4, 2] here' in message
    assert 'parameter 0.bias is [3] there, [4] here' in message
    assert 'rate' not in message


def test_description_of_a_model_holds_no_addresses() -> None:
    class Model(torch.nn.Module):
        def extra_repr(self) -> str:
            return f'{object()}'

    assert describe_task(Model()) == describe_task(Model())


class Numbers(torch.nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        vars(self).update(attributes)


@dataclass
class Config:
    gamma: float
    names: set[str]
    parent: Any = None

    def scale(self, x: Tensor) -> Tensor:
        return self.gamma * x

    def shift(self, x: Tensor) -> Tensor:
        return self.gamma + x


@pytest.mark.parametrize(
    ('there', 'here'),
    [
        ({'gamma': 2.0}, {'gamma': 2.5}),
        ({'gamma': 1}, {'gamma': True}),
        ({'gamma': '1'}, {'gamma': 1}),
        ({'sizes': (64, 32)}, {'sizes': (64, 16)}),
        ({'weights': {'click': 1.0}}, {'weights': {'click': 2.0}}),
        ({'prior': torch.ones(3)}, {'prior': torch.zeros(3)}),
        ({'prior': np.ones(3)}, {'prior': np.ones(4)}),
        ({'act': torch.relu}, {'act': torch.sigmoid}),
        ({'act': torch.nn.functional.relu}, {'act': torch.nn.functional.elu}),
        ({'act': partial(torch.clamp, min=0)}, {'act': partial(torch.clamp, min=1)}),
        ({'act': lambda x: x * 2}, {'act': lambda x: x * 3}),
        ({'act': lambda x, k=2: x * k}, {'act': lambda x, k=3: x * k}),
        ({'dtype': torch.float}, {'dtype': torch.double}),
        ({'gamma': np.float32(2)}, {'gamma': np.float32(3)}),
        ({'gamma': np.int64(2)}, {'gamma': np.bool_(True)}),
        ({'weights': {'click': np.float32(1)}}, {'weights': {'click': np.float32(2)}}),
        ({'config': Config(1.0, {'a'})}, {'config': Config(2.0, {'a'})}),
        ({'config': [Config(1.0, {'a'})]}, {'config': [Config(1.0, {'b'})]}),
        ({'names': {'a', 'b'}}, {'names': {'a', 'c'}}),
        ({'names': frozenset({1, 2})}, {'names': frozenset({1})}),
        ({'act': Config(1.0, set()).scale}, {'act': Config(1.0, set()).shift}),
    ],
)
def test_attributes_of_modules_are_compared(there: dict[str, Any], here: dict[str, Any]) -> None:
    saved, other = (describe_task(torch.nn.Sequential(Numbers(**a))) for a in (there, here))
    (name,) = there
    sentence = f'other settings: hyper-parameter 0.{name} is .* there, .* here'
    with pytest.raises(ValueError, match=sentence):
        check_same_config(saved, other, 'runs/a')
    check_same_config(saved, describe_task(torch.nn.Sequential(Numbers(**there))), 'runs/a')


def test_what_has_no_value_to_compare_is_not() -> None:
    first, second = (
        describe_task(Numbers(cache=object(), sizes=[1, object()], _hidden=number))
        for number in (1, 2)
    )
    assert first == second


def test_what_holds_itself_is_described() -> None:
    first, second = Config(1.0, set()), Config(2.0, set())
    first.parent, second.parent = first, second
    described = describe_task(Numbers(config=first))
    assert described == describe_task(Numbers(config=first))
    assert described != describe_task(Numbers(config=second))


def test_numbers_of_numpy_are_numbers() -> None:
    first, second = Numbers(gamma=2.0, size=3), Numbers(gamma=np.float64(2), size=np.int32(3))
    assert describe_task(first) == describe_task(second)


class Rows(Dataset):
    def __init__(self) -> None:
        self.ids = torch.arange(6).view(3, 2)
        self.tables = {'user': (torch.ones(2, dtype=torch.bfloat16), [np.arange(4.0)])}
        self.inner = TensorDataset(torch.zeros(3))
        self.window = None
        self.num_reads = 0

    def __len__(self) -> int:
        return 3


def names_that_differ(change: Callable[[Any], None]) -> list[str]:
    rows = Rows()
    change(rows)
    first, second = describe_loader(DataLoader(Rows())), describe_loader(DataLoader(rows))
    return [name for name in first | second if first.get(name) != second.get(name)]


@pytest.mark.parametrize(
    ('change', 'names'),
    [
        (lambda rows: None, []),
        (lambda rows: rows.ids[2].sub_(1), ['ids']),
        (lambda rows: setattr(rows, 'ids', rows.ids.flip(0)), ['ids']),
        (lambda rows: setattr(rows, 'ids', rows.ids.t().contiguous().t()), []),
        (lambda rows: setattr(rows, 'ids', rows.ids.view(2, 3)), ['ids']),
        (lambda rows: setattr(rows, 'ids', rows.ids.view(torch.double)), ['ids']),
        (lambda rows: rows.tables['user'][0].neg_(), ['tables.user']),
        (lambda rows: rows.tables['user'][1][0].sort(), []),
        (lambda rows: rows.tables['user'][1].__setitem__(0, np.arange(4)), ['tables.user']),
        (lambda rows: rows.inner.tensors[0].add_(1), ['inner.tensors']),
        (lambda rows: setattr(rows, 'window', torch.zeros(3)), ['window']),
        (lambda rows: setattr(rows, 'num_reads', 7), []),
    ],
)
def test_description_of_a_loader_holds_its_tensors(
    change: Callable[[Any], None], names: list[str]
) -> None:
    assert names_that_differ(change) == names


def test_hidden_parts_of_one_name_are_all_compared() -> None:
    def described(query: int, number: int) -> dict[str, Any]:
        rows = Rows()
        rows._contexts, rows._sizes = {'query': torch.tensor([query])}, {'query': number}
        rows._more = {'query': torch.tensor([number])}
        return describe_loader(DataLoader(rows))

    base = described(1, 5)
    assert base == described(1, 5)
    assert base['query'] != described(2, 5)['query'] and base['query'] != described(1, 6)['query']


def test_description_of_a_loader_holds_order_and_number_of_rows() -> None:
    rows = list(torch.arange(6.0))
    described = describe_loader(DataLoader(rows, batch_size=4))
    assert described['rows'] == 6
    assert described['batch size'] == '4'
    assert describe_loader(DataLoader(rows[::-1], batch_size=4)) != described


def recursive() -> Callable[[int], int]:
    def count(number: int) -> int:
        return count(number - 1) if number in {1, 2, 3} else 0

    return count


def numbers() -> Numbers:
    config = Config(np.float32(2), {'a', 'b', 'c'})
    act = lambda x: x in {'a', 'b', 'c'}  # noqa: E731
    return Numbers(act=act, count=recursive(), to=max, config=config, scale=config.scale)


OTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_fingerprint import DataLoader, Rows, describe_loader, describe_task, numbers
print(describe_loader(DataLoader(Rows())))
print(describe_task(numbers()))
"""


def test_descriptions_are_the_same_in_another_process() -> None:
    done = subprocess.run(
        [sys.executable, '-c', OTHER_PROCESS, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
    )
    described = [describe_loader(DataLoader(Rows())), describe_task(numbers())]
    assert done.stdout.splitlines() == list(map(str, described)), done.stderr


def test_ten_million_rows_are_described_in_a_second_at_most() -> None:
    rows = TensorDataset(*torch.arange(30_000_000).view(3, -1))
    start = time.perf_counter()
    described = describe_loader(DataLoader(rows))
    # A fifteenth of a second on two idle cores; the bound leaves room for a busy machine.
    assert time.perf_counter() - start < 1
    assert described['rows'] == 10_000_000


def test_a_model_on_another_hypergraph_is_another() -> None:
    generator = torch.Generator().manual_seed(0)
    features = {'visual': torch.rand(9, 4, generator=generator)}
    index = torch.stack([torch.randperm(9, generator=generator), torch.arange(9) // 3])

    def described(**changes: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            'features': features,
            'hypergraphs': {
                name: {'hyperedge_index': index, 'hyperedge_slot': torch.arange(3)}
                for name in ('user', 'item')
            },
            'embedding_dim': 8,
            **changes,
        }
        torch.manual_seed(0)
        return describe_task(HyperCTR(9, **arguments))

    weighted = {'hyperedge_weight': torch.ones(3)}
    hypergraph = {'hyperedge_index': index, 'hyperedge_slot': torch.arange(3)}
    other = {'hyperedge_index': index.flip(1), 'hyperedge_slot': torch.arange(3)}
    base = described()
    assert described() == base
    for changes in (
        {'features': {'visual': features['visual'] + 1}},
        {'features': {'text': features['visual']}},
        {'hypergraphs': {'user': hypergraph, 'item': other}},
        {'hypergraphs': {'user': hypergraph, 'item': {**hypergraph, **weighted}}},
        {'num_heads': 4},
        {'num_positions': 2},
    ):
        with pytest.raises(ValueError, match='was started with other settings'):
            check_same_config(base, described(**changes), 'runs/a')


@pytest.mark.parametrize(
    'model, changes',
    [
        (
            lambda **changes: MacGNN(5, 5, 3, 3, **changes),
            {'num_hops': 1, 'recent': False, 'item_graph': False, 'form': 'released'},
        ),
        (
            lambda **changes: SRJGraph({'user': 5, 'item': 5}, **changes),
            {'query': False, 'intention': False, 'upstream': False, 'form': 'released'},
        ),
        (
            lambda **changes: CountNet(
                {'user': 5, 'item': 5},
                ('user', 'item'),
                [-1, -1],
                0.5,
                **{
                    'rows': 'twin',
                    'num_macro': {'user': 3, 'item': 3},
                    'id_counts': {'user': 0, 'item': 1},
                    **changes,
                },
            ),
            {
                'rows': 'paper',
                'recent': True,
                'separate_tables': True,
                'num_crosses': 1,
                'num_hops': 1,
                'id_dropout': 0.1,
            },
        ),
        (
            lambda **changes: Stack(
                {name: CountNet({'user': 5}, ('user',), [-1], 0.5) for name in ('one', 'other')},
                **changes,
            ),
            {
                'hidden_channels': (20, 8),
                'auxiliary': 0.5,
                'without': ('one',),
                'share_embeddings': True,
            },
        ),
        (
            lambda **changes: SimCEN(
                {'user': 5, 'item': 5}, ('user', 'item'), hidden_channels=(9, 9), **changes
            ),
            {
                'alpha': 0.0,
                'temperature': 0.5,
                'contrast_form': 'standard',
                'through_dropout': 0.5,
                'dropouts': (0.1, 0.1, 0.1),
                'activations': ('relu', 'relu', 'relu'),
                'batch_norm': False,
                'embedding_regularization': 0.1,
                'views': False,
                'mlp_channels': (9,),
                'second_channels': (9,),
                'id_dropout': 0.1,
            },
        ),
    ],
)
def test_ablations_are_told_apart(
    model: Callable[..., torch.nn.Module], changes: dict[str, Any]
) -> None:
    described = [describe_task(model(**{name: value})) for name, value in changes.items()]
    described.append(describe_task(model()))
    for number, one in enumerate(described):
        assert all(one['model'] != other['model'] for other in described[:number])


def test_settings_that_are_missing_differ() -> None:
    with pytest.raises(ValueError, match='other settings: seed is missing there. Choose another'):
        check_same_config({'monitor': 'auc'}, {'monitor': 'auc', 'seed': 3}, 'runs/shop')
    # What only the run knows, such as its number of processes, is compared when it is known here.
    check_same_config({'monitor': 'auc', 'processes': 2}, {'monitor': 'auc'}, 'runs/shop')
