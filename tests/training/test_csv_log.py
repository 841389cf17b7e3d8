from pathlib import Path

from mag.training.csv_log import CSVLog


def test_rows_of_one_step_merge_and_columns_grow(tmp_path: Path) -> None:
    log = CSVLog(str(tmp_path / 'log.csv'))
    log.log_metrics({'loss': 0.5}, 3)
    log.save()
    log.log_metrics({'loss': 0.25}, 6)
    log.log_metrics({'auc': 0.75}, 6)
    log.save()
    assert (tmp_path / 'log.csv').read_text().split() == ['step,loss,auc', '3,0.5,', '6,0.25,0.75']


def test_continues_after_the_rows_of_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / 'log.csv'
    log = CSVLog(str(path))
    for step in (1, 2):
        log.log_metrics({'loss': step / 8}, step)
    kept = [dict(row) for row in log.rows]
    log.log_metrics({'loss': 9.0}, 3)
    log.save()
    log = CSVLog(str(path), kept)
    log.log_metrics({'auc': 0.5}, 2)
    log.log_metrics({'loss': 1.0}, 3)
    log.save()
    assert path.read_text().split() == ['step,loss,auc', '1,0.125,', '2,0.25,0.5', '3,1.0,']
    assert kept == [{'step': 1, 'loss': 0.125}, {'step': 2, 'loss': 0.25}]


def test_starts_empty_without_rows(tmp_path: Path) -> None:
    path = tmp_path / 'log.csv'
    path.write_text('step,loss\n1,0.5\n')
    log = CSVLog(str(path))
    log.log_metrics({'auc': 0.5}, 1)
    log.save()
    assert path.read_text().split() == ['step,auc', '1,0.5']
