import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(
    find_spec('deepctr_torch') is None,
    reason="the benchmark needs 'pip install pyg-mag[benchmarks]'",
)


def arguments(root: Path) -> argparse.Namespace:
    return argparse.Namespace(
        root=str(root), batch_size=64, steps=2, repeats=1, requests=3, candidates=5, threads=[1]
    )


def test_din_gathers_what_it_reads_alone(root: Path) -> None:
    from speed import macgnn

    benches = macgnn.make_benches(arguments(root))
    ours, theirs = (benches[name].batches[0] for name in ('MacGNN', 'DIN'))
    assert (
        ours.user.tolist() == theirs.user.tolist() and ours.label.tolist() == theirs.label.tolist()
    )
    assert (ours.user_recent.size(1), theirs.user_recent.size(1)) == (20, 100)
    assert (len(ours.user_hops), ours.item_recent.size(1)) == (2, 20)
    assert (theirs.user_hops, theirs.item_hops, theirs.item_recent.size(1)) == ((), (), 0)


def test_a_step_trains_and_scoring_does_not(root: Path) -> None:
    from speed import macgnn

    for bench in macgnn.make_benches(arguments(root)).values():
        weights = [parameter.clone() for parameter in bench.subject.model.parameters()]
        bench.subject.score(bench.batches[0])
        assert all(map(torch.equal, weights, bench.subject.model.parameters()))
        bench.subject.step(bench.batches[0])
        assert not all(map(torch.equal, weights, bench.subject.model.parameters()))


def test_the_table_has_what_is_measured(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import macgnn

    def take_apart(*_: object) -> Iterator[str]:
        yield 'Compiling takes long.'

    monkeypatch.setattr(macgnn, 'take_apart', take_apart)
    lines = list(macgnn.run(arguments(root)))
    rows = {line.split(' | ')[0][2:]: line.split(' | ')[1:] for line in lines if line[:2] == '| '}
    measured = [name for name in rows if name.endswith(('samples/s', 'loader', 'ms'))]
    assert len(measured) == 6
    for name in measured:
        ours, theirs = (float(cell.replace(',', '')) for cell in rows[name][:2])
        ahead = theirs / ours if name.startswith('latency') else ours / theirs
        assert float(rows[name][2].split()[0]) == pytest.approx(ahead, abs=0.1 + 0.02 * ahead)
    assert lines[-1].startswith('Made by `python benchmarks')
