import argparse

import numpy as np
import pytest
import torch

for name in ('grpc', 'fastapi', 'uvicorn', 'httpx', 'deepctr_torch'):
    pytest.importorskip(name, reason=f'{name} is not installed')

from speed import online, online_rivals  # noqa: E402


def test_servers_answer_what_their_models_do() -> None:
    args = argparse.Namespace(
        users=30, items=20, macro=4, log=500, history=6, asked=9, clients=[1, 2], requests=4,
        rounds=1,
    )  # fmt: skip
    records, answers = online_rivals.measure(args)
    assert len(records) == 2 * len(online_rivals.WAYS)
    np.testing.assert_allclose(answers['grpc'], answers['json'], rtol=0, atol=1e-6)
    # DIN, called with rows that are made one by one.
    num_nodes = {'user': 30, 'item': 20}
    events = online.draw_events(num_nodes, 500, 1)
    history = [of['item'] + 1 for of in events if of['user'] == 0 and of['clicked']][-6:]
    items = online.request_of(num_nodes, 9)[1].tolist()
    ranker = online_rivals.DinRanker(online_rivals.histories(events, 30, 6), 20)
    padded = history + [0] * (6 - len(history))
    rows = [[0, item + 1, *padded, len(history)] for item in items]
    with torch.no_grad():
        expected = ranker.model(torch.tensor(rows, dtype=torch.float))[:, 0]
    np.testing.assert_allclose(answers['din'], expected, rtol=0, atol=1e-6)
    assert '| DIN, gRPC | 2 |' in '\n'.join(online_rivals.render(records, (1.0, 1.0), args))
