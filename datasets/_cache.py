r"""A folder of files that are there all or not at all, each as it was written."""

from typing import Any

import torch

from mag.files import read_tensors, write_tensors
from mag.folder import Folder


class Cache(Folder):
    r"""The folder of a dataset that was made from raw files, which are not needed any more."""

    manifest = 'cache.json'
    kind = 'cache'
    elsewhere = "choose another 'root' or move that folder away"
    remedy = 'Pass force_reload=True to make it again'

    def read_graph(self, manifest: dict[str, Any], name: str) -> dict[str, Any]:
        r"""The dictionary of tensors that a file holds.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            graph = read_tensors(self.file(name), manifest['files'].get(name, ''))
        except FileNotFoundError as error:
            raise self.damaged(name, 'it is missing') from error
        except ValueError as error:
            raise self.damaged(name, str(error).removesuffix('.')) from error
        if not isinstance(graph, dict):
            raise self.damaged(name, 'it holds no graph')
        return graph


def write_graph(graph: dict[str, Any], path: str, pre_transform: str) -> None:
    r"""Writes what :meth:`Cache.read_graph` reads.

    Args:
        graph (dict): Tensors, by node type and edge type.
        path (str): The file.
        pre_transform (str): What has changed the graph, for the message.

    Raises:
        ValueError: If the graph holds what could not be read again.
    """
    # `InMemoryDataset.save` holds two more copies of the data in memory.
    write_tensors(graph, path)
    try:
        torch.load(path, weights_only=True, mmap=True)
    except Exception as error:
        raise ValueError(
            f"'pre_transform' must put tensors, numbers, words, lists and dictionaries into the "
            f'data, as a cache holds nothing else, but {pre_transform} puts objects of other '
            f'classes there.'
        ) from error
