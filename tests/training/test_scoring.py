import sys
from pathlib import Path
from typing import Any

import duckdb
import pytest
import torch
from torch import Tensor

from mag.loader import PairBatch, PairLoader
from mag.logits import Logits
from mag.training import ClickTask, predict

sys.path.insert(0, str(Path(__file__).parent))
from training_run import TinyModel, macro_data  # noqa: E402


@pytest.fixture
def model() -> TinyModel:
    torch.manual_seed(0)
    return TinyModel()


def loader(batch_size: int = 50, **arguments: Any) -> PairLoader:
    return PairLoader(macro_data(301, 2), batch_size, **arguments)


def expected(model: TinyModel) -> Tensor:
    (batch,) = loader(301)
    model.eval()
    with torch.no_grad():
        probability = model(batch).double().sigmoid()
    model.train()
    return probability


def test_scores_are_probabilities_in_the_order_of_rows(model: TinyModel) -> None:
    scores = predict(model, loader())
    assert scores is not None and list(scores) == ['click']
    assert scores['click'].dtype == torch.double
    torch.testing.assert_close(scores['click'], expected(model), rtol=1e-6, atol=1e-7)
    assert model.training
    again = predict(ClickTask(model), loader())
    assert again is not None and torch.equal(again['click'], scores['click'])


def test_rows_need_no_labels(model: TinyModel) -> None:
    request = loader().request(3, torch.tensor([1, 4]))
    assert request.label is None
    batches = torch.utils.data.DataLoader([request], batch_size=None)
    scores = predict(model, batches)
    with torch.no_grad():
        torch.testing.assert_close(scores['click'], model.eval()(request).double().sigmoid())


class Conversions(torch.nn.Module):
    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both

    def forward(self, batch: PairBatch) -> Logits:
        click, conversion = batch.user - 10.0, batch.item - 20.0
        branches = {'wide': click / 2}
        return Logits(click, conversion, both=click - 3 if self.both else None, branches=branches)


@pytest.mark.parametrize('both', [False, True])
def test_conversions_and_branches_have_columns(both: bool) -> None:
    scores = predict(Conversions(both), loader())
    (batch,) = loader(301)
    click, conversion = (batch.user - 10.0).double(), (batch.item - 20.0).double()
    product = (click - 3).sigmoid() if both else click.sigmoid() * conversion.sigmoid()
    for name, value in {
        'click': click.sigmoid(),
        'conversion': conversion.sigmoid(),
        'click_and_conversion': product,
        'wide': (click / 2).sigmoid(),
    }.items():
        torch.testing.assert_close(scores.pop(name), value, rtol=1e-12, atol=0)
    assert not scores


def test_parquet_has_the_same_scores_in_the_same_order(tmp_path: Path, model: TinyModel) -> None:
    path = tmp_path / "it's.parquet"
    path.write_text('what was there before')
    assert predict(model, loader(), path) is None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    columns = duckdb.read_parquet(str(path)).fetchnumpy()
    scores = predict(model, loader())
    assert list(columns) == ['click']
    assert columns['click'].tolist() == scores['click'].tolist()


def test_many_rows_are_written_in_groups(tmp_path: Path) -> None:
    class Ids(torch.nn.Module):
        def forward(self, batch: Tensor) -> Tensor:
            return batch.float().logit()

    rows = torch.arange(500_000).double() / 500_000
    batches = torch.utils.data.DataLoader(rows.split(10_000), batch_size=None)
    predict(Ids(), batches, tmp_path / 'scores.parquet')
    ((number, rows_in_group),) = duckdb.sql(f"""
        SELECT count(DISTINCT row_group_id), max(row_group_num_rows)
        FROM parquet_metadata('{tmp_path}/scores.parquet')
    """).fetchall()
    assert number > 1 and rows_in_group < 500_000
    scores = duckdb.read_parquet(f'{tmp_path}/scores.parquet').fetchnumpy()['click']
    torch.testing.assert_close(torch.from_numpy(scores), rows, atol=1e-6, rtol=0)


class Broken(TinyModel):
    def forward(self, batch: PairBatch) -> Tensor:
        if len(batch.user) > 50:
            raise RuntimeError('failed on purpose')
        return super().forward(batch)


def test_what_fails_leaves_the_former_file(tmp_path: Path) -> None:
    path = tmp_path / 'scores.parquet'
    path.write_text('before')
    with pytest.raises(RuntimeError, match='failed on purpose'):
        predict(Broken(), loader(), path)
    assert path.read_text() == 'before'
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_bad_input(tmp_path: Path, model: TinyModel) -> None:
    with pytest.raises(ValueError, match='in the order of rows, but the loader shuffles them'):
        predict(model, loader(shuffle=True))
    rows = torch.utils.data.DataLoader(list(loader()), batch_size=None, shuffle=True)
    with pytest.raises(ValueError, match='in the order of rows, but the loader shuffles them'):
        predict(model, rows)
    with pytest.raises(ValueError, match=r'Linear must .* shape \[B\], but returned \[4, 1\]'):
        predict(torch.nn.Linear(2, 1), torch.utils.data.DataLoader([torch.ones(4, 2)], None))
    with pytest.raises(ValueError, match='There is nothing to predict: the loader is empty.'):
        predict(model, PairLoader(macro_data(0, 1)))
    with pytest.raises(TypeError, match="'model' must be a torch.nn.Module, but got str"):
        predict('model', loader())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'path' must be in a folder that is there.*nowhere"):
        predict(model, loader(), tmp_path / 'nowhere' / 'scores.parquet')
    with pytest.raises(TypeError, match='must return .*, but returned PairBatch'):
        predict(torch.nn.Identity(), loader())
