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

from mag.run_config import check_same_config, describe_loader, describe_model


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
