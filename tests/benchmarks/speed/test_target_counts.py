import argparse

import pytest
import torch

pytest.importorskip('pandas')


def test_what_is_compared_is_the_same() -> None:
    from speed import target_counts

    keys, log = target_counts.make_log(3000)
    assert len(keys.views) == 13 and log.time.unique().numel() < 2500
    ours = target_counts.target_counts(keys, log, log)
    assert torch.equal(ours, target_counts.count_by_pandas(keys, log)) and ours.any()


def test_the_table_has_a_row_for_each_size() -> None:
    from speed import target_counts

    args = argparse.Namespace(
        rows=[1000, 2000], threads=torch.get_num_threads(), repeats=2, events=100
    )
    rows = [line for line in target_counts.run(args) if line.startswith('| ')][2:]
    cells = [[cell.strip().replace(',', '') for cell in row.split('|')[1:-1]] for row in rows]
    assert [row[0] for row in cells] == ['1000', '2000']
    assert all(float(cell) >= 0 for row in cells for cell in row) and all(
        len(r) == 7 for r in cells
    )


def test_counts_that_differ_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import target_counts

    monkeypatch.setattr(
        target_counts, 'count_by_pandas', lambda keys, log: torch.zeros(len(log.user), 13, 2)
    )
    args = argparse.Namespace(rows=[1000], threads=1, repeats=1, events=10)
    with pytest.raises(RuntimeError, match='The counts of 1000 rows differ from those of pandas'):
        target_counts.measure(1000, args)
