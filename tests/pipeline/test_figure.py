import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mag.pipeline.figure import check_format, draw, save_figure

pytest.importorskip('matplotlib')


def summary() -> dict[str, Any]:
    return {
        'model': 'macgnn',
        'clusters': {
            'user': {'0': 5, '1': 20},
            'item': {'tea': 3, 'rice': 1, 'a very long name of a category': 8},
        },
        # Rows have 8 and 24 clicks, columns 8, 4 and 20, all 32.
        'macro edges': [[4, 0, 4], [4, 4, 16]],
    }


def test_lift_and_sizes_of_the_largest_first() -> None:
    figure = draw(summary())
    top, _, center, right, bar = figure.axes
    (image,) = center.images
    lift = image.get_array()
    # 16 of 24 * 20 / 32 = 15 expected; the second row is that of the smaller cluster of users.
    expected = [
        [math.log2(16 / 15), math.log2(4 / 6), math.log2(4 / 3)],
        [math.log2(4 / 5), math.log2(4 / 2), math.nan],
    ]
    np.testing.assert_allclose(np.ma.filled(lift, np.nan), expected)
    assert image.get_clim() == (-1.0, 1.0)
    assert bar.yaxis.get_major_formatter()(-1.0) == '0.5'
    assert [label.get_text() for label in center.get_xticklabels()] == [
        'a very long name …', 'tea', 'rice',
    ]  # fmt: skip
    assert [label.get_text() for label in center.get_yticklabels()] == ['1', '0']
    assert [bar.get_height() for bar in top.patches] == [8, 3, 1]
    assert [bar.get_width() for bar in right.patches] == [20, 5]
    assert center.get_xlabel() == 'clusters of items'
    assert figure.get_suptitle() == 'macgnn: 32 clicks between clusters'


def test_forty_clusters_at_most() -> None:
    values = summary()
    values['clusters']['item'] = {f'c{number}': number for number in range(50)}
    values['macro edges'] = np.ones((2, 50), dtype=int).tolist()
    center = draw(values).axes[2]
    names = [label.get_text() for label in center.get_xticklabels()]
    assert names == [f'c{number}' for number in range(49, 9, -1)]
    assert center.images[0].get_array().shape == (2, 40)
    assert not center.images[0].get_array().any()
    assert center.get_xlabel() == 'clusters of items, the 40 largest of 50'


def test_without_clicks_there_is_no_lift() -> None:
    values = summary() | {'macro edges': [[0, 0, 0], [0, 0, 0]]}
    array = draw(values).axes[2].images[0].get_array()
    assert np.isnan(np.ma.filled(array, np.nan)).all()


def test_the_file_is_whole_or_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / 'clusters.png'
    save_figure(summary(), path)
    content = path.read_bytes()
    assert content.startswith(b'\x89PNG')
    from matplotlib.figure import Figure

    def fail(self: Figure, where: str, **_: Any) -> None:
        Path(where).write_text('half')
        raise OSError('The disk is gone.')

    monkeypatch.setattr(Figure, 'savefig', fail)
    with pytest.raises(OSError, match='gone'):
        save_figure(summary(), path)
    assert path.read_bytes() == content and os.listdir(tmp_path) == ['clusters.png']


def test_bad_input_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ('clusters', 'clusters.txt'):
        with pytest.raises(ValueError, match=rf"^A figure must .*png.*, but got '{name}'\.$"):
            check_format(name)
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    with pytest.raises(ModuleNotFoundError, match=r'needs matplotlib.*extra .*\[examples\].\.$'):
        check_format('clusters.png')
