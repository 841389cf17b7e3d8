import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mag.losses import gather_rows, instance_contrast


def test_golden_loss() -> None:
    ids, text = torch.tensor([[1.0, 0.0], [0.5, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert instance_contrast(ids, text).item() == pytest.approx(0.29466273225885525, abs=1e-7)


def test_both_directions_count_alike_and_lengths_matter() -> None:
    torch.manual_seed(0)
    ids, text = torch.randn(6, 4), torch.randn(6, 4)
    loss = instance_contrast(ids, text)
    torch.testing.assert_close(instance_contrast(text, ids), loss)
    by_row = [
        -(score[i] / 0.7).log_softmax(0)[i]
        for score in (ids @ text.t(), text @ ids.t())
        for i in range(6)
    ]
    torch.testing.assert_close(loss, sum(by_row) / 12)
    # Nothing is normalised: twice the length is half the temperature.
    torch.testing.assert_close(instance_contrast(2 * ids, text), instance_contrast(ids, text, 0.35))


def test_gradient() -> None:
    torch.manual_seed(0)
    ids = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    text = torch.randn(3, 2, dtype=torch.double, requires_grad=True)
    # The loss is summed in float32.
    assert torch.autograd.gradcheck(instance_contrast, (ids, text), eps=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda x: instance_contrast(x, x, 0), ValueError, r"'temperature' must be .* \(0, inf\)"),
        (lambda x: instance_contrast(x, x[:2]), ValueError, r"'other' of shape \[3, 2\], but got"),
        (lambda x: instance_contrast(x.long(), x), TypeError, "'one' of floats"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call(torch.ones(3, 2))


def vectors() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 4, generator=generator), torch.randn(7, 4, generator=generator)


def test_one_process_has_all_rows() -> None:
    ids, _ = vectors()
    assert gather_rows(ids) is ids


def contrast_in_process(rank: int, port: int, directory: str) -> None:
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo', rank=rank, world_size=2)
    # Shares of unequal size.
    own = [(x[:4] if rank == 0 else x[4:]).clone().requires_grad_() for x in vectors()]
    loss = instance_contrast(*map(gather_rows, own))
    loss.backward()
    torch.save((loss.detach(), [x.grad for x in own]), f'{directory}/{rank}.pt')
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_contrast_the_rows_of_both(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(port), str(tmp_path)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    whole = [x.requires_grad_() for x in vectors()]
    loss = instance_contrast(*whole)
    loss.backward()
    found = [torch.load(tmp_path / f'{rank}.pt') for rank in range(2)]
    for part, _ in found:
        torch.testing.assert_close(part, loss.detach())
    # Each process goes back through its own rows, to what all rows make of them.
    for of, x in enumerate(whole):
        torch.testing.assert_close(torch.cat([gradients[of] for _, gradients in found]), x.grad)


if __name__ == '__main__':
    contrast_in_process(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
