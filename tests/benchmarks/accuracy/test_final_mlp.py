from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F

# Not importorskip: that import of deepctr_torch asks PyPI for a newer version.
if not all(find_spec(name) for name in ('deepctr_torch', 'lightgbm', 'fuxictr')):
    pytest.skip(
        "the baselines need 'pip install pyg-mag[benchmarks,fuxictr]'", allow_module_level=True
    )
from accuracy.final_mlp import FinalMLP, InteractionAggregation  # noqa: E402

from mag.datasets import SyntheticMarket  # noqa: E402
from mag.loader import ExposureLoader, JoinedLoader  # noqa: E402
from mag.transforms import TemporalSplit  # noqa: E402


@pytest.fixture(scope='module')
def batch():
    train, *_ = TemporalSplit(num_windows=2)(SyntheticMarket(60, 40, 4_000, log=False)[0])
    return train, next(iter(JoinedLoader([ExposureLoader(train)], 256)))


def test_is_the_published_model(batch):
    data, rows = batch
    torch.manual_seed(0)
    model = FinalMLP(data).eval()
    x = model.fields(rows.features)
    # Gates of constants, two MLPs, and a bilinear form as the library computes it.
    streams = []
    for gate, bias, stream in zip(
        (model.select.fs1_gate, model.select.fs2_gate),
        (model.select.fs1_ctx_bias, model.select.fs2_ctx_bias),
        model.streams,
        strict=True,
    ):
        first, _, last, _ = gate.mlp
        share = 2 * torch.sigmoid(last(F.relu(first(bias))))
        linear, norm, *_ = stream.mlp
        streams.append(F.relu(norm(linear(x * share))))
    expected = InteractionAggregation.forward(model.merge, *streams).squeeze(-1)
    torch.testing.assert_close(model(rows), expected, rtol=1e-4, atol=1e-5)


def test_learns(batch):
    data, rows = batch
    torch.manual_seed(0)
    model = FinalMLP(data)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(15):
        loss = F.binary_cross_entropy_with_logits(model(rows), rows.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(parameter.grad is not None for parameter in model.parameters())
    rate = rows.label.mean()
    assert losses[-1] < 0.97 * F.binary_cross_entropy(rate.expand_as(rows.label), rows.label)
