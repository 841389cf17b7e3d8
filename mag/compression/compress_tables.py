from typing import NamedTuple

import torch
from torch import Tensor

from mag.compression.quantized_embedding import QuantizedEmbedding


class TableBytes(NamedTuple):
    r"""What a table takes.

    Attributes:
        before (int): The bytes of its weight.
        after (int): The bytes of what took its place; the same if it was left as it is.
    """

    before: int
    after: int


def compress_tables(
    model: torch.nn.Module, num_codes: int, num_bits: int = 8, seed: int = 0
) -> dict[str, TableBytes]:
    r"""Puts a :class:`QuantizedEmbedding` in the place of each embedding table of a trained model:
    of nodes, macro nodes and other fields. The rest of the model stays as it is, and is read as
    before; compressed tables do not grow, and are trained no further.

    .. code-block:: python

        found = compress_tables(model.eval(), num_codes=4)
        before, after = (sum(of_table) for of_table in zip(*found.values()))

    A table that would not become smaller is left: one of few rows, whose centroids take more than
    it does, as that of a few macro nodes. Tables that are shared stay shared.

    To load what was saved, compress a model of the same sizes in the same way first:

    .. code-block:: python

        torch.save(model.state_dict(), path)
        model = MacGNN.from_data(train)
        compress_tables(model, num_codes=4)
        model.load_state_dict(torch.load(path))

    Args:
        model (torch.nn.Module): The model, which is changed. Its tables are modules derived from
            :class:`torch.nn.Embedding`, and matrices in a :class:`torch.nn.ParameterDict`.
        num_codes (int): The pieces of a row, which divide the size of each embedding.
        num_bits (int, optional): The bits of a code, 4 or 8. (default: :obj:`8`)
        seed (int, optional): Seed of the k-means. (default: :obj:`0`)

    Returns:
        The bytes of each table, by the name of its weight; of one that is shared, by the first.

    Raises:
        TypeError: If :obj:`model` is no :class:`torch.nn.Module`.
        ValueError: If it has no tables, or :obj:`num_codes` does not divide the size of an
            embedding.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"'model' must be a torch.nn.Module, but got {type(model).__name__}.")
    tables = _tables(model)
    if not tables:
        raise ValueError(
            f'compress_tables found no table in {type(model).__name__} that is not compressed yet; '
            f'QuantizedEmbedding.from_weight compresses a single one.'
        )
    # By weights, as tables are shared by these; all are made before one is put in.
    weights: dict[int, _Table] = {}
    for table in tables:
        weights.setdefault(id(table.weight), table)
    found, made = {}, {}
    for key, (name, _, _, weight) in weights.items():
        rows, width = weight.shape
        after = QuantizedEmbedding(rows, width, num_codes, num_bits).num_bytes
        is_smaller = rows >= 2**num_bits and after < weight.nbytes
        found[name] = TableBytes(weight.nbytes, after if is_smaller else weight.nbytes)
        if is_smaller:
            made[key] = QuantizedEmbedding.from_weight(weight, num_codes, num_bits, seed)
    for _, owner, attribute, weight in tables:
        if id(weight) not in made:
            continue
        # PyTorch puts no module where a parameter is.
        if isinstance(getattr(owner, attribute), Tensor):
            delattr(owner, attribute)
        setattr(owner, attribute, made[id(weight)])
    return found


class _Table(NamedTuple):
    r"""A table, and what takes another one instead: a module, under the name of an attribute."""

    name: str
    owner: torch.nn.Module
    attribute: str
    weight: Tensor


def _tables(model: torch.nn.Module) -> list[_Table]:
    found = []
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.Embedding) and isinstance(module.weight, Tensor):
            parent, _, child = path.rpartition('.')
            # What only looks rows up is replaced as a whole; others do more than that.
            is_plain = type(module).forward is torch.nn.Embedding.forward
            if is_plain and path:
                owner = model.get_submodule(parent)
                found.append(_Table(f'{path}.weight', owner, child, module.weight))
            elif not is_plain:
                found.append(_Table(f'{path}.weight'.lstrip('.'), module, 'weight', module.weight))
        elif isinstance(module, torch.nn.ParameterDict):
            found += [
                _Table(f'{path}.{name}'.lstrip('.'), module, name, value)
                for name, value in module.named_parameters(recurse=False)
                if value.dim() == 2
            ]
    return found
