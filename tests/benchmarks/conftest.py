from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def same_process_afterwards() -> Iterator[None]:
    r"""Benchmarks set up the process that they run in, which here is that of the other tests."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
