r"""What the examples show: a line on the log, a table, JSON, and figures."""

import argparse
import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torch_geometric.data import HeteroData
from torchmetrics.functional.classification import binary_auroc

from mag.loader import ExposureLoader
from mag.metrics import AuditGroup, popularity_audit, relative_improvement
from mag.models import GMCM, SimCEN, SRJGraph
from mag.nn import BehaviorGraphConv
from mag.schema import CLICKS, REVERSE_CLICKS, SEES

CLICK_COLUMNS = {'auc': 'AUC', 'gauc': 'GAUC', 'logloss': 'logloss'}
DAY = 24 * 3600


def describe(name: str, data: HeteroData, *more: str) -> str:
    r"""The sizes of a log."""
    clicks = data[CLICKS]
    sizes = (
        f'{data["user"].num_nodes:,} users',
        f'{data["item"].num_nodes:,} items',
        f'{clicks.edge_label.numel():,} exposures',
        f'{int(clicks.edge_label.sum()):,} clicks',
    )
    return f'{name}: {", ".join([*sizes, *more])}'


def stop_by(val: HeteroData, metric: str = 'auc') -> str:
    r"""What to stop and select by: a metric of validation or, where a small log leaves it rows of
    one class, which have no AUC, one that they have."""
    name = 'edge_label_conversion' if metric == 'ctcvr_auc' else 'edge_label'
    label = val[CLICKS][name]
    has_both = bool((label != label[0]).any())
    return metric if has_both else {'auc': 'logloss', 'ctcvr_auc': 'ctcvr_mse'}[metric]


def table(rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    r"""Rows of numbers below the titles of :obj:`columns`, from the name of each to its title."""
    indent = 2 + max(map(len, rows))
    lines = [' ' * indent + ''.join(f'{title:>12}' for title in columns.values())]
    for name, row in rows.items():
        values = [row[column] for column in columns]
        cells = [f'{value:,}' if isinstance(value, int) else f'{value:.4f}' for value in values]
        lines.append(f'{name:{indent}}' + ''.join(f'{cell:>12}' for cell in cells))
    return '\n'.join(lines)


def improvements(rows: Mapping[str, Mapping[str, float]], base: str) -> str:
    r"""How much better the AUC of each row is than that of one of them."""
    least = rows[base]['auc']
    # All rows have the same labels, and so all of them an AUC or none.
    if math.isnan(least):
        return 'Of rows of one class there is no AUC to improve.'
    if least <= 0.5:
        return f'{base} is not better than chance.'
    gains = [
        f'{name} {relative_improvement(row["auc"], least):+.1f} %'
        for name, row in rows.items()
        if name != base
    ]
    return f'Relative improvement of the AUC over {base}: {", ".join(gains)}'


def write_json(path: Path, args: argparse.Namespace, results: Mapping[str, Any]) -> None:
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps({'arguments': vars(args), 'results': results}, indent=2))
    os.replace(temporary, path)


def save(figure: Figure, path: Path) -> None:
    temporary = path.with_suffix('.tmp.png')
    figure.savefig(temporary, dpi=120)
    os.replace(temporary, path)


def draw_macro_graph(output: Path, data: HeteroData, item_names: Sequence[str] | None) -> Figure:
    r"""The macro graph as a heat map, and the learning curve."""
    figure = Figure(figsize=(13, 5), layout='constrained')
    left, right = figure.subplots(1, 2, width_ratios=[3, 2])
    _draw_heat_map(left, data, item_names)
    _draw_learning_curve(right, output / 'metrics.csv')
    return figure


def _draw_heat_map(axes: Axes, data: HeteroData, item_names: Sequence[str] | None) -> None:
    coarse = data['macro_user', 'clicks', 'macro_item']
    counts = torch.zeros(data['macro_user'].num_nodes, data['macro_item'].num_nodes)
    counts[coarse.edge_index[0], coarse.edge_index[1]] = coarse.edge_weight
    expected = counts.sum(1, keepdim=True) * counts.sum(0) / counts.sum()
    # One click is added to both, so that the rarest pairs do not take all the color.
    lift = ((counts + 1) / (expected + 1)).log2()
    order = (lift * expected).svd().U[:, 0].argsort()
    limit = float(lift.abs().quantile(0.98))
    image = axes.imshow(lift[order], cmap='RdBu_r', vmin=-limit, vmax=limit, aspect='auto')
    axes.figure.colorbar(image, ax=axes, label='log2(clicks / clicks expected by chance)')
    sizes = data['macro_user'].size[order].tolist()
    axes.set_yticks(range(len(sizes)), [f'{size:,} users' for size in sizes], fontsize=7)
    if item_names is not None:
        axes.set_xticks(range(len(item_names)), item_names, rotation=90, fontsize=8)
    axes.set(xlabel='item clusters', ylabel='user clusters', title='The macro graph')


def _draw_learning_curve(axes: Axes, path: Path) -> None:
    axes.plot(*_points(path, 'train_loss'), color='tab:gray', label='train loss')
    axes.plot(*_points(path, 'val_logloss'), color='tab:blue', label='val logloss')
    axes.set(xlabel='step', ylabel='log loss')
    right = axes.twinx()
    right.plot(*_points(path, 'val_auc'), color='tab:red', marker='.')
    right.set_ylabel('AUC', color='tab:red')
    # Above the curves, which may run anywhere.
    axes.legend(loc='lower left', bbox_to_anchor=(0, 1), ncols=2, frameon=False)


def _points(path: Path, name: str) -> tuple[list[int], list[float]]:
    r"""The steps at which a number was logged, and the numbers."""
    with open(path, newline='') as file:
        found = [row for row in csv.DictReader(file) if row.get(name)]
    return [int(row['step']) for row in found], [float(row[name]) for row in found]


def draw_count_net(
    output: Path,
    data: HeteroData,
    results: Mapping[str, Mapping[str, float]],
    item_names: Sequence[str] | None,
) -> Figure:
    r"""The macro graph of exposures and clicks, the edges of one user, and how both models learn:
    MacGNN from all edges, CountNet from the one to the macro node of the target."""
    figure = Figure(figsize=(15, 5.2), layout='constrained')
    left, middle, right = figure.subplots(1, 3, width_ratios=[4, 3, 3])
    sees, clicks = data[SEES], data[CLICKS]
    size = data['macro_item'].num_nodes
    names = item_names or [f'cluster {place}' for place in range(size)]
    user, item = sees.edge_index[0], data['item'].cluster[sees.edge_index[1]]

    def count(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
        # Who or what was not seen before the clusters were learned belongs to none.
        is_known = (rows >= 0) & (item >= 0)
        cell, length = (rows * size + item)[is_known], num_rows * size
        shown = cell.bincount(minlength=length).view(num_rows, size)
        return shown, cell[sees.clicked[is_known] > 0].bincount(minlength=length).view(
            num_rows, size
        )

    num_groups = data['macro_user'].num_nodes
    shown, clicked = count(data['user'].cluster[user], num_groups)
    share = (clicked / shown).masked_fill(shown == 0, torch.nan)
    # Few exposures tell little, and would take all the color.
    share[shown < 20] = torch.nan
    image = left.imshow(share, cmap='cividis', aspect='auto')
    figure.colorbar(image, ax=left, label='clicks / exposures')
    left.set_yticks([])
    left.set_xticks(range(size), names, rotation=90, fontsize=8)
    left.set(
        ylabel=f'{num_groups} groups of users',
        title='The macro graph counts what was shown and clicked',
    )

    shown, clicked = count(user, data['user'].num_nodes)
    target_user, target_item = clicks.edge_label_index
    target = data['item'].cluster[target_item]
    # The row whose user was shown the most different kinds of items, as there is most to see.
    row = int(((shown > 0).sum(1)[target_user] * (target >= 0)).argmax())
    of_user, place = int(target_user[row]), int(target[row])
    exposures, hits = int(shown[of_user, place]), int(clicked[of_user, place])
    middle.barh(range(size), shown[of_user], color='#cccccc', label='exposures')
    middle.barh(range(size), clicked[of_user], height=0.4, color='#0072b2', label='clicks')
    middle.axhspan(place - 0.5, place + 0.5, color='#e69f00', alpha=0.35, zorder=0)
    middle.set_yticks(range(size), names, fontsize=8)
    middle.invert_yaxis()
    middle.set_title(
        f'A user: MacGNN reads clicks on all, CountNet\n'
        f'{hits} clicks of {exposures} exposures of the target, {names[place]}'
    )
    middle.legend(loc='lower right', frameon=False)

    for name, title, color in (
        ('macgnn', 'MacGNN', '#999999'), ('count_net', 'CountNet', '#d55e00')
    ):  # fmt: skip
        steps, values = _points(output / name / 'metrics.csv', 'val_auc')
        right.plot(steps, values, color=color, marker='.', label=title)
    tests = [f'{name}: {row["auc"]:.3f}' for name, row in list(results.items())[2:]]
    right.set(xlabel='step', ylabel='AUC of validation', title='How both learn')
    box = {'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8}
    lines = '\n'.join(['AUC of test', *tests])
    right.text(0.97, 0.25, lines, transform=right.transAxes, ha='right', va='bottom', bbox=box)
    right.legend(loc='lower right', frameon=False)
    return figure


def draw_stack(
    val: HeteroData, test: HeteroData, predicted: Mapping[str, Tensor], branches: Sequence[str]
) -> Figure:
    r"""What each branch adds to the AUC of the others, in fifths of items by their popularity and
    of users by their activity, both counted in what was shown before validation."""
    clicks, history = test[CLICKS], val[SEES].edge_index
    user, item = clicks.edge_label_index
    activity, popularity = (
        nodes.bincount(minlength=test[name].num_nodes)
        for name, nodes in zip(('user', 'item'), history, strict=True)
    )

    def audit(names: Sequence[str]) -> dict[str, list[AuditGroup]]:
        scores = predicted['+'.join(names)]
        return popularity_audit(
            scores, clicks.edge_label, user, item, popularity, activity, 5, weighting='rows'
        )

    everything = audit(branches)
    others = {name: audit([other for other in branches if other != name]) for name in branches}
    figure = Figure(figsize=(12, 4.5), layout='constrained')
    panels = figure.subplots(1, 2, sharey=True)
    titles = {'item': 'items by exposures before', 'user': 'users by exposures before'}
    for ax, (of, title) in zip(panels, titles.items(), strict=True):
        groups = everything[of]
        for name in branches:
            gains = [
                math.nan if group.auc is None or without.auc is None else group.auc - without.auc
                for group, without in zip(groups, others[name][of], strict=True)
            ]
            ax.plot(range(len(groups)), gains, marker='o', label=name)
        ax.axhline(0, color='#999999', linewidth=0.8)
        ax.set_xticks(
            range(len(groups)), [f'{group.least:,.0f} to {group.most:,.0f}' for group in groups]
        )
        ax.set(xlabel=title)
    panels[0].set(ylabel='AUC of all less that without the branch')
    panels[0].legend(frameon=False)
    figure.suptitle('Who gains from which branch')
    return figure


def draw_views(output: Path, models: Mapping[str, SimCEN], loader: ExposureLoader) -> Figure:
    r"""How alike the streams of each model are, what each knows of clicks by itself, and how all
    models of a run learn."""
    figure = Figure(figsize=(15, 4.6), layout='constrained')
    left, middle, right = figure.subplots(1, 3, width_ratios=[4, 3, 3])
    pairs = {'view 1, view 2': (1, 2), 'ego, view 1': (0, 1), 'ego, view 2': (0, 2)}
    streams = ('ego', 'view 1', 'view 2')
    paths = {path.parent.name.replace('_', ' '): path for path in output.glob('*/metrics.csv')}
    names = [*models, *sorted(paths.keys() - models.keys())]
    colors = dict(zip(names, ('#d55e00', '#999999', '#0072b2', '#009e73')))
    for place, (name, model) in enumerate(models.items()):
        color = colors[name]
        model = model.cpu().eval()
        with torch.inference_mode():
            batches = [(model.features(batch), batch.label) for batch in loader]
        features, label = (torch.cat(parts) for parts in zip(*batches, strict=True))
        parts = features.chunk(3, dim=1)
        found = [cosine_similarity(parts[i], parts[j]) for i, j in pairs.values()]
        violin = left.violinplot(
            [values.numpy() for values in found],
            [3 * row + place for row in range(len(pairs))],
            showmedians=True,
        )
        for body in violin['bodies']:
            body.set_facecolor(color)
        for lines in ('cbars', 'cmins', 'cmaxes', 'cmedians'):
            violin[lines].set_color(color)
        weights = model.head.weight.view(-1).chunk(3)
        aucs = [
            float(binary_auroc((part @ weight).detach(), label.int()))
            for part, weight in zip(parts, weights, strict=True)
        ]
        bars = middle.bar([row + 0.4 * place for row in range(3)], aucs, 0.38, color=color)
        middle.bar_label(bars, fmt='%.3f', fontsize=8)
        middle.plot([], [], color=color, lw=6, label=name)
    left.set_xticks([3 * row + 0.5 for row in range(len(pairs))], list(pairs))
    left.set(ylabel='cosine, over the rows of test', title='How alike the streams are')
    middle.set_xticks([row + 0.2 for row in range(3)], streams)
    heights = [bar.get_height() for bar in middle.patches]
    middle.set(ylim=(min(heights) - 0.02, max(heights) + 0.04))
    middle.set_title('AUC of each stream, by its weights in the head')
    middle.legend(loc='upper left', frameon=False)
    for name, color in colors.items():
        steps, values = _points(paths[name], 'val_auc')
        right.plot(steps, values, color=color, marker='.', label=name)
    right.set(xlabel='step', ylabel='AUC of validation', title='How all learn')
    right.legend(loc='lower right', frameon=False)
    return figure


def draw_behaviors(data: HeteroData, model: GMCM, names: Sequence[str]) -> Figure:
    r"""The graph of behaviors without its loops as the convolution sees it: as counted, and with
    the learned bias."""
    follows = data['behavior', 'follows', 'behavior']
    edges = follows.edge_index, follows.edge_weight
    counted = BehaviorGraphConv(1, 1, len(names)).normalized_adjacency(*edges).detach()
    panels = [('Counted on training clicks', counted, 'Blues')]
    # All convolutions of a model have the same bias.
    convs = [module for module in model.cpu().modules() if isinstance(module, BehaviorGraphConv)]
    if convs:
        learned = convs[0].normalized_adjacency(*edges).detach()
        difference = 'Learned - counted', learned - counted, 'RdBu_r'
        panels += [('Learned', learned, 'Blues'), difference]
    figure = Figure(figsize=(5.5 * len(panels), 5), layout='constrained')
    axes = figure.subplots(1, len(panels), squeeze=False)
    for ax, (title, matrix, colors) in zip(axes[0], panels, strict=True):
        # The loops, by far the largest, would take all the color.
        matrix = matrix.clone().fill_diagonal_(torch.nan)
        limit = float(matrix.abs().nan_to_num(0).max())
        image = ax.imshow(matrix, cmap=colors, vmin=0 if colors == 'Blues' else -limit, vmax=limit)
        figure.colorbar(image, ax=ax, shrink=0.7)
        ax.set_xticks(range(len(names)), names, rotation=90)
        ax.set_yticks(range(len(names)), names if ax is axes[0, 0] else [''] * len(names))
        ax.set_title(title)
    return figure


def draw_attention(model: SRJGraph, batch: HeteroData) -> Figure:
    r"""The clicks that the user of one target attends to: the target with the most different
    clicks to choose from, of a batch of searches."""
    with torch.inference_mode():
        _, attention = model.cpu().eval()(batch, return_attention_weights=True)
    edges = batch[REVERSE_CLICKS]
    num_edges = edges.num_sampled_edges[0]
    user, click = edges.edge_index[1, :num_edges], edges.e_id[:num_edges]
    variety = torch.stack([user, click]).unique(dim=1)[0].bincount()
    target = int(variety.argmax())
    rows = (user == target).nonzero().view(-1)
    clicks = batch[CLICKS]
    asked = [term for term in clicks.edge_label_query[target].tolist() if term >= 0]
    labels, colors = ['itself'], ['tab:gray']
    for row in rows.tolist():
        item = int(batch['item'].n_id[edges.edge_index[0, row]])
        days = (int(clicks.edge_label_time[target]) - int(edges.time[row])) / DAY
        terms = [term for term in edges.query[row].tolist() if term >= 0]
        reached = f'search for {terms}' if edges.domain[row] == 1 else 'recommended'
        labels.append(f'item {item}, {days:.1f} days before, {reached}')
        colors.append('tab:orange' if set(terms) & set(asked) else 'tab:blue')
    own = torch.tensor([target])
    weights = attention['user'][torch.cat([own, clicks.edge_label_time.numel() + rows])]
    figure = Figure(figsize=(9, 1 + 0.3 * len(labels)), layout='constrained')
    ax = figure.subplots()
    ax.barh(range(len(labels)), weights, color=colors)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    ax.invert_yaxis()
    ax.set_xlabel('attention (orange: clicked on a query that shares a term)')
    ax.set_title(
        f'User {int(batch["user"].n_id[target])} is shown item {int(batch["item"].n_id[target])} '
        f'on a search for {asked}'
    )
    return figure


def draw_interests(interest: Tensor, modalities: Sequence[str], truth: Tensor | None) -> Figure:
    r"""How users divide by the modality of their largest interest, and on a simulated log by the
    one that they prefer in truth."""
    has_interest = interest.sum(1) > 0
    favorite = interest[has_interest].argmax(1)
    if truth is None:
        groups, labels = torch.zeros_like(favorite), ['all users']
    else:
        groups, labels = truth[has_interest], [f'prefer {name}' for name in modalities]
    counts = torch.zeros(len(labels), len(modalities))
    counts.index_put_((groups, favorite), torch.ones(len(favorite)), accumulate=True)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    figure = Figure(figsize=(7, 1.5 + 0.5 * len(labels)), layout='constrained')
    ax = figure.subplots()
    left = torch.zeros(len(labels))
    for column, name in enumerate(modalities):
        ax.barh(labels, share[:, column], left=left, label=name)
        left = left + share[:, column]
    ax.set_xlim(0, 1)
    ax.invert_yaxis()
    ax.set_xlabel('share of users by the modality of their largest interest')
    ax.legend(ncols=len(modalities), loc='lower center', bbox_to_anchor=(0.5, 1))
    return figure


def draw_recovery(found: Mapping[str, Mapping[str, float]]) -> Figure:
    r"""The share of rows whose masked id is found, by what it is found from, a group of bars a
    field."""
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    axes = figure.subplots()
    fields = list(next(iter(found.values())))
    width = 0.8 / len(found)
    colors = ('#cccccc', '#0072b2', '#d55e00', '#009e73', '#e69f00')
    for number, ((name, shares), color) in enumerate(zip(found.items(), colors)):
        places = [place + (number - (len(found) - 1) / 2) * width for place in range(len(fields))]
        axes.bar(places, [shares[field] for field in fields], width, color=color, label=name)
    axes.set_xticks(range(len(fields)), [field.replace('_', '\n', 1) for field in fields])
    axes.set(ylabel='share of rows', ylim=(0, 1))
    axes.set_title('A masked field is recovered from')
    axes.legend(loc='lower center', bbox_to_anchor=(0.5, 1.08), ncols=len(found), frameon=False)
    return figure
