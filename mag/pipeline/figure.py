r"""The macro graph of a pipeline, as a figure."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mag.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: More rows or columns could not be read.
_MOST = 40
_LONGEST_NAME = 18
_NODES = ('user', 'item')


def save_figure(summary: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    r"""Draws what :func:`draw` does to a file, under a temporary name first.

    Args:
        summary (dict): What :meth:`mag.pipeline.Pipeline.summary` returns.
        path (str): The file; what its name ends with, such as :obj:`.png`, is its format.

    Raises:
        ModuleNotFoundError: If matplotlib is not installed.
        ValueError: If the figure cannot have that format, or the model reads no macro graph.
    """
    check_format(path)
    if 'macro edges' not in summary:
        raise ValueError(f'The figure is of a macro graph, but {summary["model"]!r} reads none.')
    figure = draw(summary)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, format=_format(path))


def check_format(path: str | os.PathLike[str]) -> None:
    r"""Raises what :func:`save_figure` does, before anything is drawn."""
    formats = _new_figure().canvas.get_supported_filetypes()
    if _format(path) not in formats:
        raise ValueError(
            f'A figure must have a name that ends with one of {", ".join(sorted(formats))}, but '
            f'got {os.fspath(path)!r}.'
        )


def draw(summary: Mapping[str, Any]) -> 'Figure':
    r"""The macro edges between clusters of users and of items as a heat map, the largest clusters
    first, with the sizes of the clusters beside it.

    An edge of :math:`n` clicks from a cluster whose edges have :math:`r` clicks in all to one with
    :math:`c` of all :math:`t` has the *lift* :math:`n t / (r c)`: how many times as many clicks as
    if nobody had a taste. It is shown on a logarithmic scale, and grey where there is no click.

    Args:
        summary (dict): What :meth:`mag.pipeline.Pipeline.summary` returns.
    """
    clicks = np.array(summary['macro edges'], dtype=float)
    total = clicks.sum()
    expected = clicks.sum(1, keepdims=True) * clicks.sum(0) / max(total, 1.0)
    shown, names, sizes = [], [], []
    for node in _NODES:
        size = np.array(list(summary['clusters'][node].values()))
        order = np.argsort(-size, kind='stable')[:_MOST]
        keys = list(summary['clusters'][node])
        shown.append(order)
        names.append([_short(keys[place]) for place in order])
        sizes.append(size[order])
    block = np.ix_(*shown)
    with np.errstate(divide='ignore', invalid='ignore'):
        lift = np.log2(clicks[block] / expected[block])
    lift[clicks[block] == 0] = np.nan

    height, width = (2.5 + 0.22 * max(len(of), 4) for of in names)
    figure = _new_figure(figsize=(width + 2, height + 1), layout='constrained')
    top, corner, center, right = figure.subplots(
        2, 2, width_ratios=[4, 1], height_ratios=[1, 4], squeeze=True
    ).flat
    corner.set_axis_off()
    limit = max(1.0, float(np.nanmax(np.abs(lift), initial=0.0)))
    image = center.imshow(lift, cmap='RdBu_r', vmin=-limit, vmax=limit, aspect='auto')
    center.set_facecolor('0.75')
    center.set_xticks(range(len(names[1])), names[1], rotation=90, fontsize=8)
    center.set_yticks(range(len(names[0])), names[0], fontsize=8)
    center.set_xlabel(_title('item', summary))
    center.set_ylabel(_title('user', summary))
    _draw_sizes(top.bar, sizes[1])
    top.set_xlim(center.get_xlim())
    top.set_xticks([])
    top.set_ylabel('items')
    _draw_sizes(right.barh, sizes[0])
    right.set_ylim(center.get_ylim())
    right.set_yticks([])
    right.set_xlabel('users')
    for axes in (top, right):
        axes.spines[['top', 'right']].set_visible(False)
    bar = figure.colorbar(image, ax=[corner, right], format=lambda power, _: f'{2**power:.3g}')
    bar.set_label('clicks, times the expected')
    figure.suptitle(f'{summary["model"]}: {int(total):,} clicks between clusters', fontsize=11)
    return figure


def _draw_sizes(bars: Any, sizes: np.ndarray) -> None:
    bars(np.arange(len(sizes)), sizes, 0.8, color='0.5')


def _title(node: str, summary: Mapping[str, Any]) -> str:
    number = len(summary['clusters'][node])
    most = f', the {_MOST} largest of {number}' if number > _MOST else ''
    return f'clusters of {node}s{most}'


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f'{name[: _LONGEST_NAME - 1]}…'


def _format(path: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.fspath(path))[1].removeprefix('.').lower()


def _new_figure(**options: Any) -> 'Figure':
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "A figure needs matplotlib, which the extra 'examples' installs: "
            "pip install 'pyg-mag[examples]'."
        ) from error
    # One that no window is made for.
    return Figure(**options)
