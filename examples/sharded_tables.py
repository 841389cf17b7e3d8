r"""Trains on a store with embedding tables of users and items that are cut by rows among processes,
as where no machine holds them whole. TorchRec cuts them; all else is copied to each process.

    torchrun --nproc_per_node 2 examples/sharded_tables.py --store STORE

The store is one of `mag build` or of examples/store.py. TorchRec and its kernels are of one release
of torch each: with torch 2.13 these load, on a processor,

    pip install 'pyg-mag[torchrec]'
    pip install --no-deps torchrec==1.8.0
"""

import argparse


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description='Train with embedding tables that are cut among processes.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument('--store', required=True, help='the folder of a store')
    parser.add_argument('--epochs', type=int, default=3, help='passes over the training rows')
    parser.add_argument('--seed', type=int, default=0, help='of all that is drawn')
    # What you may want to change as well.
    parser.set_defaults(embedding_dim=8, batch_size=256, learning_rate=1e-2, table_rate=0.05)
    return parser.parse_args()


if __name__ == '__main__':
    # Before the imports that take seconds: --help and a wrong argument are answered at once.
    ARGS = parse_args()

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from lightning import seed_everything
from results import CLICK_COLUMNS, table
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.types import ParameterConstraints

from mag.loader import ExposureBatch
from mag.models import CountNet
from mag.store import Store, StoreLoader
from mag.training import ClickTask


class ShardedIds(torch.nn.Module):
    r"""CountNet without ids, plus the product of the embeddings of user and item, whose tables are
    nowhere whole: they are made where their rows will be.

    Args:
        store: What the log has.
        embedding_dim: Size of an embedding.
    """

    def __init__(self, store: Store, embedding_dim: int) -> None:
        super().__init__()
        self.counts = CountNet.from_data(store.graph(), ids=False)
        tables = [
            EmbeddingConfig(
                name=name, num_embeddings=number, embedding_dim=embedding_dim, feature_names=[name],
                init_fn=lambda weight: torch.nn.init.normal_(weight, std=0.1),
            )
            for name, number in store.num_nodes.items()
        ]  # fmt: skip
        self.tables = EmbeddingCollection(tables=tables, device=torch.device('meta'))

    def forward(self, batch: ExposureBatch) -> Tensor:
        ids = torch.cat([batch.user, batch.item])
        lengths = torch.ones_like(ids)
        found = self.tables(KeyedJaggedTensor(['user', 'item'], ids, lengths=lengths))
        # One id a row: values are embeddings in the order of rows.
        user, item = found['user'].values(), found['item'].values()
        return self.counts(batch) + (user * item).sum(dim=-1)


def shard(model: ShardedIds, args: argparse.Namespace) -> Any:
    r"""The model on all processes: tables cut by rows, with an optimizer that works where a row is,
    and the rest copied."""
    sharder = EmbeddingCollectionSharder(
        fused_params={
            'optimizer': EmbOptimType.EXACT_ROWWISE_ADAGRAD, 'learning_rate': args.table_rate
        }
    )  # fmt: skip
    planner = EmbeddingShardingPlanner(
        topology=Topology(torch.distributed.get_world_size(), 'cpu'),
        constraints={
            name: ParameterConstraints(sharding_types=['row_wise']) for name in ('user', 'item')
        },
    )
    return DistributedModelParallel(
        model,
        device=torch.device('cpu'),
        plan=planner.collective_plan(model, [sharder], torch.distributed.group.WORLD),
        sharders=[sharder],
    )


def main(args: argparse.Namespace) -> None:
    torch.distributed.init_process_group('gloo')
    rank = torch.distributed.get_rank()
    store = Store(args.store)
    seed_everything(args.seed, verbose=False)
    model = shard(ShardedIds(store, args.embedding_dim), args)
    held = {
        name: [part.tensor.size(0) for part in weight.local_shards()]
        for name, weight in model.state_dict().items()
        if name.startswith('tables.')
    }
    print(f'Process {rank} holds of {store.num_nodes} the rows {held}\n', end='', flush=True)

    optimizer = torch.optim.Adam(model.module.counts.parameters(), args.learning_rate)
    train = StoreLoader(store, 'train', args.batch_size, True, args.seed, batches='features')
    sampler: Any = train.sampler
    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        for batch in train:
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(model(batch), batch.label).backward()
            optimizer.step()
    task, results = ClickTask(model).eval(), {}
    # Not in inference mode, for which FBGEMM has no kernel on a processor.
    with torch.no_grad():
        for part in ('val', 'test'):
            loader = StoreLoader(store, part, batches='features')
            scores = [task.score(batch) for batch in loader]
            results[part] = task.measure(scores, torch.device('cpu'))
    if rank == 0:
        print(table(results, CLICK_COLUMNS))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    main(ARGS)
