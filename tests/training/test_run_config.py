import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from mag.models import HyperCTR, MacGNN, SRJGraph
from mag.training.run_config import check_same_config, describe_loader, describe_model


def test_config_names_each_difference() -> None:
    saved = {
        'seed': 1,
        'rate': 0.1,
        **describe_model(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Dropout(0.1))),
    }
    check_same_config(saved, saved, 'runs/a')
    other = {
        'seed': 2,
        'rate': 0.1,
        **describe_model(torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Dropout(0.2))),
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

    assert describe_model(Model()) == describe_model(Model())


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
        (lambda rows: rows.tables['user'][0].neg_(), ['tables']),
        (lambda rows: rows.tables['user'][1][0].sort(), []),
        (lambda rows: rows.tables['user'][1].__setitem__(0, np.arange(4)), ['tables']),
        (lambda rows: rows.inner.tensors[0].add_(1), ['inner']),
        (lambda rows: setattr(rows, 'window', torch.zeros(3)), ['window']),
        (lambda rows: setattr(rows, 'num_reads', 7), []),
    ],
)
def test_description_of_a_loader_holds_its_tensors(
    change: Callable[[Any], None], names: list[str]
) -> None:
    assert names_that_differ(change) == names


def test_description_of_a_loader_holds_order_and_number_of_rows() -> None:
    rows = list(torch.arange(6.0))
    described = describe_loader(DataLoader(rows, batch_size=4))
    assert described['rows'] == 6
    assert described['batch size'] == '4'
    assert describe_loader(DataLoader(rows[::-1], batch_size=4)) != described


OTHER_PROCESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_run_config import DataLoader, Rows, describe_loader
print(describe_loader(DataLoader(Rows())))
"""


def test_description_of_a_loader_is_the_same_in_another_process() -> None:
    done = subprocess.run(
        [sys.executable, '-c', OTHER_PROCESS, str(Path(__file__).parent)],
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == str(describe_loader(DataLoader(Rows()))), done.stderr


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
        return describe_model(HyperCTR(9, **arguments))

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
            {'num_hops': 1, 'recent': False, 'item_graph': False, 'attention': 'released'},
        ),
        (
            lambda **changes: SRJGraph({'user': 5, 'item': 5}, **changes),
            {'query': False, 'intention': False, 'upstream': False, 'released': True},
        ),
    ],
)
def test_ablations_are_told_apart(
    model: Callable[..., torch.nn.Module], changes: dict[str, Any]
) -> None:
    described = [describe_model(model(**{name: value})) for name, value in changes.items()]
    described.append(describe_model(model()))
    for number, one in enumerate(described):
        assert all(one['model'] != other['model'] for other in described[:number])
