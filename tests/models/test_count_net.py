from typing import Any

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import SyntheticMarket
from mag.loader import ExposureBatch, ExposureLoader
from mag.models import CountNet
from mag.training import ClickTask, evaluate, fit
from mag.transforms import MacroCoarsen, TargetCounts, TemporalSplit

FIELDS = ('user', 'item', 'item_brand', 'query', 'query')
NUM_VALUES = {'user': 5, 'item': 4, 'item_brand': 3, 'query': 6}


def make(seed: int = 0, **arguments: Any) -> CountNet:
    torch.manual_seed(seed)
    arguments = {'embedding_dim': 2, 'hidden_channels': (6, 4), **arguments}
    return CountNet(NUM_VALUES, FIELDS, [-1, 0], 0.3, **arguments)


def make_batch(size: int = 8) -> ExposureBatch:
    generator = torch.Generator().manual_seed(1)
    sparse = torch.stack(
        [torch.randint(-1, NUM_VALUES[name], (size,), generator=generator) for name in FIELDS], 1
    )
    seen = torch.randint(0, 9, (size, 2), generator=generator).float()
    counts = torch.stack([seen, (seen * torch.rand(size, 2, generator=generator)).floor()], -1)
    user, item = sparse[:, 0].clamp(min=0), sparse[:, 1].clamp(min=0)
    return ExposureBatch(user, item, sparse, torch.empty(size, 0), counts=counts)


def test_the_head_reads_embeddings_and_encoded_counts() -> None:
    model, batch = make().eval(), make_batch()
    torch.nn.init.normal_(model.embedding.weight)
    starts = {'user': 0, 'item': 6, 'item_brand': 11, 'query': 15}
    table = [
        torch.cat([model.embedding.weight[starts[name] + 1 + id] for name, id in zip(FIELDS, row)])
        for row in batch.sparse.tolist()
    ]
    x = torch.cat([torch.stack(table), model.encoder(batch.counts)], 1)
    torch.testing.assert_close(model(batch), model.head(x).squeeze(-1))
    assert model.embedding.num_embeddings == 5 + 4 + 3 + 6 + 4


def test_without_ids_users_and_items_are_told_apart_by_counts_alone() -> None:
    model, batch = make(ids=False).eval(), make_batch()
    other = batch._replace(sparse=batch.sparse.clone())
    other.sparse[:, :2] = 0
    assert torch.equal(model(batch), model(other))
    other.sparse[:, 2] = (other.sparse[:, 2] + 1) % 3
    torch.nn.init.normal_(model.embedding.weight)
    assert not torch.equal(model(batch), model(other))
    assert not torch.equal(model(batch), model(batch._replace(counts=batch.counts + 1)))


def test_dropped_ids_are_those_of_nobody_in_training_alone() -> None:
    model, batch = make(id_dropout=0.999999), make_batch()
    torch.nn.init.normal_(model.embedding.weight)
    nobody = batch._replace(sparse=batch.sparse.clone())
    nobody.sparse[:, :2] = -1
    plain = make()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.train()(batch), plain.train()(nobody))
    plain.load_state_dict(model.state_dict())
    assert torch.equal(model.eval()(batch), plain.eval()(batch))


def test_compiles_and_exports() -> None:
    model, batch = make().eval(), make_batch()
    expected = model(batch)
    compiled = torch.compile(model, fullgraph=True, backend='eager')
    torch.testing.assert_close(compiled(batch), expected)
    program = torch.export.export(model, (batch,))
    torch.testing.assert_close(program.module()(batch), expected)


def test_bfloat16() -> None:
    model, batch = make().eval(), make_batch()
    with torch.autocast('cpu', torch.bfloat16):
        logit = model(batch)
    torch.testing.assert_close(logit.float(), model(batch), atol=0.02, rtol=0.05)


@pytest.fixture(scope='module')
def parts() -> list[HeteroData]:
    data = SyntheticMarket(200, 60, 20_000, seed=0, log=False)[0]
    split = TemporalSplit(num_windows=3)(data)
    coarsen = MacroCoarsen({'user': 8, 'item': 'category'}).fit(split[0])
    train, val, test = (coarsen(part) for part in split)
    counts = TargetCounts().fit(train)
    return [counts(train, log=data), counts(val), counts(test)]


def test_it_learns_from_a_log(parts: list[HeteroData]) -> None:
    train, val, test = parts
    torch.manual_seed(0)
    values = {}
    for counts in (True, False):
        task = ClickTask(CountNet.from_data(train, counts=counts), 3e-3, 1e-4, average=0.9)
        fit(
            task, ExposureLoader(train, 512, shuffle=True), ExposureLoader(val), max_epochs=3,
            monitor='logloss', progress=False, accelerator='cpu',
        )  # fmt: skip
        values[counts] = evaluate(task, ExposureLoader(test))['auc']
    assert values[True] > values[False] + 0.01
    assert values[True] > 0.6


def test_sizes_are_those_of_the_log(parts: list[HeteroData]) -> None:
    train = parts[0]
    model = CountNet.from_data(train, embedding_dim=4)
    assert model.fields == ExposureLoader(train).fields
    assert len(model.encoder.prior) == train['user', 'clicks', 'item'].edge_label_counts.size(1)
    batch = next(iter(ExposureLoader(train, 8)))
    assert model(batch).shape == (8,)


@pytest.mark.parametrize(
    ('call', 'error', 'sentence'),
    [
        (lambda: make(id_dropout=1.0), ValueError, r"'id_dropout' must be a number in \[0, 1\)"),
        (lambda: make(ids='no'), TypeError, "'ids' must be True or False, but got 'no'"),
        (lambda: make(embedding_dim=0), ValueError, "'embedding_dim' must be at least 1"),
        (lambda: CountNet({}, ['user'], [], 0.5), ValueError, "lacks \\['user'\\]"),
        (lambda: make()(make_batch()._replace(counts=None)), ValueError, 'batch.counts is None'),
        (
            lambda: CountNet.from_data(SyntheticMarket(20, 10, 500, log=False)[0]),
            ValueError,
            'apply TargetCounts, or pass counts=False',
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        call()
