import argparse
from pathlib import Path

import pytest
import torch


def test_the_log_gives_each_user_five_exposures() -> None:
    from speed import macro_rows

    log = macro_rows.draw_log(1_000)
    clicks = log['user', 'clicks', 'item']
    assert (log['user'].num_nodes, log['item'].num_nodes) == (200, 20)
    assert clicks.edge_label.numel() == 1_000
    assert torch.equal(clicks.edge_index, clicks.edge_label_index[:, clicks.time])


# Logs are so small here that parts lose many of their rows.
@pytest.mark.filterwarnings('ignore:TemporalSplit leaves out')
def test_the_table_has_two_rows_for_each_log(root: Path) -> None:
    from speed import macro_rows

    args = argparse.Namespace(root=str(root), clusters=3, exposures=2_000, repeats=1)
    lines = [line for line in macro_rows.run(args) if line.startswith('| ')][2:]
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in lines]
    assert [row[:2] for row in rows] == [
        [log, held]
        for log in ('MovieLens-1M', 'five exposures a user')
        for held in ('all windows', 'asked for')
    ]
    for row in rows:
        held, num_cells = (int(number.replace(',', '')) for number in row[2].split(' of '))
        assert held == num_cells if row[1] == 'all windows' else held <= num_cells
        assert float(row[3]) >= 0 and float(row[5]) > 0
    # Of a user with five exposures, most windows are asked for by none.
    assert int(rows[3][2].split(' of ')[0].replace(',', '')) < num_cells / 2


def test_rows_that_differ_end_the_run() -> None:
    from speed import macro_rows

    from mag.loader import Exposures
    from mag.transforms import MacroCoarsen, RecentNeighbors, TemporalSplit

    log = macro_rows.draw_log(2_000)
    train = TemporalSplit(keep_cold=True)(log)[0]
    part = RecentNeighbors(20)(MacroCoarsen({'user': 'group', 'item': 'group'})(train))
    exposures = Exposures(part)
    ways = {'dense': macro_rows.DenseRows(part), 'asked': macro_rows.make_asked(part, exposures)}
    macro_rows.require_same(ways, exposures)
    ways['dense'].hops['item'][0] += 1
    with pytest.raises(RuntimeError, match='Rows of items differ from those of all windows'):
        macro_rows.require_same(ways, exposures)
