r"""Trains a generic graph network of PyG on a click log: GraphSAGE, made heterogeneous, over
neighborhoods that LinkNeighborLoader samples, window by window.

    python examples/gnn.py

A network like this reads all edges that it is given. The edges of a training part that rolls over
windows reach its last cutoff, and so most of its labels are among them; `window` gives of each
window what was there before it. Needs '.[sparse]' or pyg-lib, which sample neighbors.
"""

import argparse

from options import make_log_parser, make_output, parse_log_args


def parse_args() -> argparse.Namespace:
    parser = make_log_parser('Train a generic graph network on windows of a click log.', 4)
    # What you may want to change as well.
    parser.set_defaults(
        windows=12,
        neighbors=[10, 5],  # of a node at each depth
        channels=32,
        batch_size=1024,
        learning_rate=5e-3,
        weight_decay=1e-5,
    )
    return parse_log_args(parser)


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

import copy

import torch
from lightning import seed_everything
from logs import load_dataset, split_by
from results import CLICK_COLUMNS, describe, table, write_json
from torch import Tensor
from torch_geometric.data import HeteroData
from torch_geometric.loader import LinkNeighborLoader
from torch_geometric.nn import GraphSAGE, to_hetero
from torch_geometric.transforms import ToUndirected
from tqdm import tqdm

from mag.schema import CLICKS
from mag.training import ClickTask, evaluate
from mag.transforms import TemporalSplit, window


class GNN(torch.nn.Module):
    r"""Embeddings of users and items, passed along clicks; a click is likely where they agree."""

    def __init__(self, data: HeteroData, channels: int, num_layers: int) -> None:
        super().__init__()
        first = {
            name: 0.5 * torch.randn(data[name].num_nodes, channels) for name in data.node_types
        }
        self.embedding = torch.nn.ModuleDict(
            {
                name: torch.nn.Embedding.from_pretrained(weight, freeze=False)
                for name, weight in first.items()
            }
        )
        metadata = ToUndirected()(window(data, 0)).metadata()
        self.layers = to_hetero(GraphSAGE(channels, channels, num_layers), metadata)
        self.bias = torch.nn.Parameter(torch.zeros(()))

    def forward(self, batch: HeteroData) -> Tensor:
        x = {name: embedding(batch[name].n_id) for name, embedding in self.embedding.items()}
        x = self.layers(x, batch.edge_index_dict)
        user, item = batch[CLICKS].edge_label_index
        return (x['user'][user] * x['item'][item]).sum(-1) + self.bias


def main(args: argparse.Namespace) -> None:
    output = make_output(args, 'gnn', args.dataset)
    data = load_dataset(args)[0]
    print(describe(args.dataset, data))
    train, val, test = (
        clicks_alone(part)
        for part in TemporalSplit(num_windows=args.windows, by=split_by(args))(data)
    )
    seed_everything(args.seed, verbose=False)
    task = ClickTask(GNN(train, args.channels, len(args.neighbors)))
    optimizer = torch.optim.Adam(
        task.parameters(), args.learning_rate, weight_decay=args.weight_decay
    )
    # Each reads the clicks before its own window, and none of the labels that it learns from.
    loaders = [
        load(window(train, number), args, shuffle=True)
        for number in range(train[CLICKS].cutoff.numel())
        if bool((train[CLICKS].edge_label_window == number).any())
    ]
    val_loader, test_loader = (load(window(part, 0), args) for part in (val, test))
    best, weights = -1.0, task.state_dict()
    for _ in tqdm(range(args.epochs), 'epochs'):
        for number in torch.randperm(len(loaders)).tolist():
            for batch in loaders[number]:
                optimizer.zero_grad()
                task.loss(batch).backward()
                optimizer.step()
        auc = evaluate(task, val_loader)['auc']
        if auc > best:
            best, weights = auc, copy.deepcopy(task.state_dict())
    task.load_state_dict(weights)
    results = {
        name: evaluate(task, loader)
        for name, loader in (('validation', val_loader), ('test', test_loader))
    }
    print(table(results, CLICK_COLUMNS))
    write_json(output / 'results.json', args, results)
    print(f'In {output}: results.json')


def clicks_alone(part: HeteroData) -> HeteroData:
    r"""The part without the exposures that it may read, of which this network knows nothing."""
    part = copy.copy(part)
    del part['user', 'sees', 'item']
    return part


def load(view: HeteroData, args: argparse.Namespace, shuffle: bool = False) -> LinkNeighborLoader:
    clicks = view[CLICKS]
    return LinkNeighborLoader(
        ToUndirected()(view),
        args.neighbors,
        edge_label_index=(CLICKS, clicks.edge_label_index),
        edge_label=clicks.edge_label,
        batch_size=args.batch_size,
        shuffle=shuffle,
    )


if __name__ == '__main__':
    main(ARGS)
