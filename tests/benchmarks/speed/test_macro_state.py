import argparse

import pytest


def test_the_table_has_a_row_for_each_size(monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import macro_state

    monkeypatch.setattr(macro_state, 'SIZES', (1, 20))
    args = argparse.Namespace(clicks=[1000, 2000], repeats=2)
    rows = [line for line in macro_state.run(args) if line.startswith('| ')][2:]
    cells = [[cell.strip() for cell in row.split('|')[1:-1]] for row in rows]
    assert [row[:3] for row in cells] == [['1,000', '91', '21'], ['2,000', '182', '41']]
    assert all(len(row) == 6 and row[-1].endswith('times faster)') for row in cells)


def test_rows_that_differ_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from speed import macro_state

    monkeypatch.setattr(macro_state, 'SIZES', (1, 20))
    monkeypatch.setattr('mag.macro_graph.MacroState.update', lambda self, edge_index: None)
    with pytest.raises(RuntimeError, match='Rows of 1000 clicks that were moved are others'):
        macro_state.measure(1000, argparse.Namespace(repeats=1))
