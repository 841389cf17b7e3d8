r"""All that scoring needs, as of a position in the log."""

import hashlib
import os
import os.path as osp
import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

import mag
from mag.checks import check_integers, check_keys
from mag.folder import Folder
from mag.id_map import IdMap
from mag.online.node_rows import RowLayout, columns_of
from mag.online.pair_runs import spans
from mag.schema import NEIGHBOR_TYPE

if TYPE_CHECKING:
    from mag.online.program import Compiled, Program

_FORMAT = 'mag.snapshot'
#: Raised by one whenever a folder holds something else.
_VERSION = 2
_FACTS = (
    'format', 'version', 'mag', 'torch', 'model', 'batch', 'position', 'log_checksum', 'time',
    'num_recent', 'num_clusters', 'num_nodes', 'num_pairs', 'resolutions', 'hops', 'id_maps',
    'attributes', 'contexts', 'program', 'compiled', 'shares_without_cluster', 'sizes',
)  # fmt: skip
# What the models of mag read that snapshots are made of.
_READS = {'count_net': 'ExposureBatch', 'macgnn': 'PairBatch'}


class _Folder(Folder):
    manifest = 'manifest.json'
    kind = 'snapshot'
    elsewhere = 'choose another folder or move that one away'
    remedy = 'Copy the folder again, or write the snapshot again'

    def __init__(self, path: str, root: str | None = None) -> None:
        super().__init__(path)
        self._root = root

    def _replace(self) -> None:
        if self._root is not None:
            self.path = osp.join(self._root, _name_of(self._partial))
        if osp.exists(self.path):
            try:
                Snapshot.open(self.path).verify()
            except (OSError, ValueError):
                # What is damaged is of no use to those who read it.
                shutil.rmtree(self.path, ignore_errors=True)
            else:
                return
        super()._replace()

    def read_manifest(self, *facts: str) -> dict[str, Any]:
        if not osp.isdir(self.path):
            raise FileNotFoundError(f'There is no folder {self.path!r}.')
        if not osp.exists(self.file(self.manifest)):
            raise ValueError(f'{self.path!r} is no snapshot: it has no {self.manifest}.')
        manifest = super().read_manifest()
        if manifest.get('format') != _FORMAT:
            raise ValueError(
                f'{self.path!r} is no snapshot: its {self.manifest} is that of another.'
            )
        if manifest.get('version') != _VERSION:
            raise ValueError(
                f'{self.path!r} was written in version {manifest.get("version")!r} of the format '
                f'by mag {manifest.get("mag")!r}, but mag {mag.__version__} reads version '
                f'{_VERSION}: write the snapshot again.'
            )
        manifest = super().read_manifest(*facts)
        if (name := _name_of(self.path)) != osp.basename(self.path):
            raise self.damaged(
                self.manifest, f'what it says belongs to a snapshot with the name {name}'
            )
        for name, size in manifest['sizes'].items():
            try:
                found = osp.getsize(self.file(name))
            except FileNotFoundError as error:
                raise self.damaged(name, 'it is missing') from error
            if found != size:
                raise self.damaged(name, f'it has {found} bytes of {size}')
        return manifest


class Snapshot:
    r"""A folder with all that scoring needs as of a position in the log, named by its content.

    .. code-block:: python

        path = pipeline.snapshot('snapshots/')      # such as 'snapshots/3f0c5a7d9e1b2c48'
        snapshot = Snapshot.open(path)

    It never changes, so that whoever is told its name reads the same. What nodes have is mapped
    from the disk, so that several processes share it in memory and opening takes milliseconds.

    ====================================== =======================================================
    file                                   holds
    ====================================== =======================================================
    :obj:`manifest.json`                   versions, the name of the model, position and time of
                                           the last event, shapes, sizes and checksums
    :obj:`ids_<name>.parquet`              the :class:`~mag.datasets.IdMap` of users, items, and
                                           each attribute
    :obj:`clusters_<type>.npy`             the cluster of each node at each resolution, :obj:`-1`
                                           for none, shape :obj:`[S, N]`
    :obj:`rows_<type>.npy`                 the row of each node, see :class:`RowLayout`
    :obj:`hop_2_<type>.npy`                where the model reads it, the counts of hop 2 at the
                                           first resolution, shape :obj:`[N, C]`
    :obj:`cells_<s>_<t>.npy`               exposures and clicks between each cluster of users at
                                           resolution :obj:`s`, or none, and each of items at
                                           :obj:`t`, shape :obj:`[C_s + 1, C_t + 1, 2]`
    :obj:`pair_start.npy`, :obj:`pair_item.npy` the items that each user clicked, ascending: those
                                           of user :math:`u` from :obj:`start[u]` to
                                           :obj:`start[u + 1]`
    :obj:`attribute_<type>_<name>.npy`     the categorical attributes of nodes
    :obj:`model.safetensors`               the weights
    :obj:`program.pt2`                     where asked for, the :class:`Program` of the model, which
                                           takes these weights
    :obj:`compiled.pt2`                    where asked for, its native code, which
                                           :func:`load_program` runs if it is trusted
    ====================================== =======================================================

    Exposures and clicks, in rows and cells, were counted by the clusters that neighbors had when
    they happened, as :class:`~mag.transforms.TargetCounts` counts them, or in a snapshot of a store
    by those that they have now; pairs, by the clusters that they have now, as
    :class:`~mag.transforms.MacroCoarsen` does. Nothing that is read can run code, but
    :obj:`compiled.pt2`, which is read only where its hash is told.

    Attributes:
        path (str): The folder.
        manifest (dict[str, Any]): What :obj:`manifest.json` says.
        model (str): The name of the model.
        batch (str): The name of the class of the batches that it reads.
        position (int): The position in the log that all is as of.
        checksum (int): That of the events before it, see :func:`~mag.online.checksum_of`.
        time (int): The time of the last event before it.
        layout (RowLayout): How rows are packed.
        num_nodes (dict[str, int]): How many users and items there are.
        resolutions (dict[str, list[str]]): What their clusters are named at each resolution.
        shares_without_cluster (bool): Whether the model reads of a node that is in no cluster the
            counts of all that are in none, as in a log in memory; if not, it reads 0, as in a
            store.
    """

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path, self.manifest = path, manifest
        self.model: str = manifest['model']
        self.batch: str = manifest['batch']
        self.position: int = manifest['position']
        self.checksum: int = manifest['log_checksum']
        self.time: int = manifest['time']
        self.layout = RowLayout(manifest['num_recent'], manifest['num_clusters'])
        self.num_nodes: dict[str, int] = manifest['num_nodes']
        self.resolutions: dict[str, list[str]] = manifest['resolutions']
        self.shares_without_cluster: bool = manifest['shares_without_cluster']
        folder = _Folder(path)

        def array(name: str, dtype: Any, *shape: int) -> np.ndarray:
            return _mapped(folder, name, dtype, shape)

        numbers, num_nodes = self.layout.num_clusters, self.num_nodes
        self.clusters = {
            node: array(f'clusters_{node}', '<i4', len(numbers[node]), num_nodes[node])
            for node in NEIGHBOR_TYPE
        }
        self.rows = {
            node: array(f'rows_{node}', self.layout.dtypes[node], num_nodes[node])
            for node in NEIGHBOR_TYPE
        }
        self.hop_2 = {
            node: array(f'hop_2_{node}', '<i8', num_nodes[node], numbers[node][0])
            for node in (NEIGHBOR_TYPE if manifest['hops'] > 1 else ())
        }
        self.cells = {
            (s, t): array(f'cells_{s}_{t}', '<i8', of_user + 1, of_item + 1, 2)
            for s, of_user in enumerate(numbers['user'])
            for t, of_item in enumerate(numbers['item'])
        }
        self.attributes = {
            node: {
                name: array(f'attribute_{node}_{name}', '<i8', num_nodes[node])
                for name in manifest['attributes'][node]
            }
            for node in NEIGHBOR_TYPE
        }
        self._pair_start = array('pair_start', '<i8', num_nodes['user'] + 1)
        self._pair_item = array('pair_item', '<i4', manifest['num_pairs'])

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> 'Snapshot':
        r"""Opens a snapshot: its manifest is checked, and that all files have their sizes; what is
        in them is mapped, and checked by :meth:`verify`.

        Args:
            path (str or os.PathLike): The folder, or a link to it.

        Raises:
            FileNotFoundError: If there is no folder.
            ValueError: If it is no snapshot, is of another version, or a file is missing, cut or
                damaged.
        """
        path = osp.realpath(osp.expanduser(path))
        return cls(path, _Folder(path).read_manifest(*_FACTS))

    def verify(self) -> 'Snapshot':
        r"""Reads all files once, and returns the snapshot.

        Raises:
            ValueError: If one is another than the one that was written.
        """
        folder = _Folder(self.path)
        for name in self.manifest['files']:
            with folder.opening(self.manifest, name):
                pass
        return self

    def read(self, name: str) -> bytes:
        r"""The content of a file.

        Raises:
            ValueError: If it is missing or another than the one that was written.
        """
        with _Folder(self.path).opening(self.manifest, name) as path, open(path, 'rb') as file:
            return file.read()

    @cached_property
    def id_maps(self) -> dict[str, IdMap]:
        r"""The ids of users and items, and the names of the values of attributes."""
        return {
            name: IdMap.load(osp.join(self.path, f'ids_{name}.parquet'))
            for name in self.manifest['id_maps']
        }

    def weights(self) -> dict[str, Tensor]:
        r"""The weights of the model, as its :meth:`load_state_dict` takes them."""
        from safetensors.torch import load_file

        with _Folder(self.path).opening(self.manifest, 'model.safetensors') as path:
            return load_file(path)

    @cached_property
    def columns(self) -> dict[str, np.ndarray]:
        r"""For :obj:`"user"` and :obj:`"item"`, the column at which each node counts in the row of
        a neighbor, at each resolution; the last row is that of who is in no cluster. Shape
        :obj:`[N + 1, S]`."""
        return {
            node: columns_of(self.layout, node, clusters)
            for node, clusters in self.clusters.items()
        }

    def has_pairs(self, user: np.ndarray, item: np.ndarray) -> np.ndarray:
        r"""Whether each user has clicked each item, shape :obj:`[B]`.

        Args:
            user (numpy.ndarray): Users, which need not be here, int64, shape :obj:`[B]`.
            item (numpy.ndarray): An item for each.
        """
        low, high = self._pairs_of(user)
        end = high
        # All are looked for at once, each in the items of its own user.
        while (low < high).any():
            middle = (low + high) // 2
            is_below = self._pair_item[np.minimum(middle, len(self._pair_item) - 1)] < item
            is_open = low < high
            low = np.where(is_open & is_below, middle + 1, low)
            high = np.where(is_open & ~is_below, middle, high)
        found = low < end
        found[found] = self._pair_item[low[found]] == item[found]
        return cast(np.ndarray, found)

    def items_of(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""The items that users have clicked, each once: the place of its user for each, and the
        item, int64, shape :obj:`[P]` each.

        Args:
            user (numpy.ndarray): Users, which need not be here, int64, shape :obj:`[B]`.
        """
        owner, place = spans(*self._pairs_of(user))
        return owner, self._pair_item[place].astype(np.int64)

    def _pairs_of(self, user: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r"""From where to where the pairs of users are."""
        is_here = (user >= 0) & (user < self.num_nodes['user'])
        # Where nobody is here, a span of no pairs.
        low = self._pair_start[np.where(is_here, user, -1)]
        return low, self._pair_start[np.where(is_here, user + 1, -1)]

    def __repr__(self) -> str:
        return f'{type(self).__name__}({self.path!r}, position={self.position})'


def write_snapshot(
    root: str | os.PathLike[str],
    *,
    model: str,
    position: int,
    checksum: int,
    time: int,
    layout: RowLayout,
    resolutions: Mapping[str, Sequence[str]],
    clusters: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    hop_2: Mapping[str, np.ndarray],
    cells: Mapping[tuple[int, int], np.ndarray],
    pairs: np.ndarray,
    id_maps: Mapping[str, IdMap],
    attributes: Mapping[str, Mapping[str, np.ndarray]],
    contexts: Sequence[str],
    weights: Mapping[str, Tensor],
    program: 'Program | None' = None,
    compiled: 'Compiled | None' = None,
    shares_without_cluster: bool = True,
) -> str:
    r"""Writes a :class:`Snapshot`, under a temporary name that is changed at the end.

    Args:
        root: The folder that gets one named by its content.
        model: The name of the model, any where there is a program.
        position: The position that all is as of.
        checksum: That of the events before it, see :func:`~mag.online.checksum_of`.
        time: The time of the last event before it.
        layout: How rows are packed.
        resolutions: As :attr:`Snapshot.resolutions`.
        clusters: As :attr:`Snapshot.clusters`.
        rows: As :attr:`Snapshot.rows`.
        hop_2: As :attr:`Snapshot.hop_2`, empty if the model does not read it.
        cells: As :attr:`Snapshot.cells`.
        pairs: The pairs that have clicked, each once, users above items, ascending, shape
            :obj:`[2, P]`.
        id_maps: Those of users, items and all attributes and contexts.
        attributes: The categorical attributes of nodes, by node type and name.
        contexts: The names of those of exposures.
        weights: The weights of the model.
        program: The program that takes them. (default: :obj:`None`)
        compiled: Its native code. (default: :obj:`None`)
        shares_without_cluster: As :attr:`Snapshot.shares_without_cluster`.

    Returns:
        The path of the snapshot.

    Raises:
        OSError: If the disk is full; it tells where.
        ValueError: If nothing says what the model reads, or the program takes other weights, is
            lacking, or is not the one that was compiled.
    """
    # Here, because nothing else online needs it.
    from safetensors.torch import save_file

    check_integers(0, position=position)
    check_keys(('user', 'item'), clusters=clusters, rows=rows, attributes=attributes)
    if program is None and model not in _READS:
        raise ValueError(
            f'A snapshot of {model!r} needs a program: pass program=Program.export(model, batch), '
            f'or take {" or ".join(_READS)}.'
        )
    if program is not None and set(program.facts['weights']) != set(weights):
        raise ValueError(f"'weights' must be those that the program of {model!r} takes.")
    if compiled is not None and (
        program is None or compiled.facts['program'] != program.fingerprint
    ):
        raise ValueError(f"'compiled' must be made of the program of {model!r} that is passed.")
    num_nodes = {node: len(of_node) for node, of_node in rows.items()}
    sizes = np.bincount(pairs[0], minlength=num_nodes['user'])
    arrays: dict[str, np.ndarray] = {
        'pair_start': np.append(0, sizes.cumsum()).astype('<i8'),
        'pair_item': pairs[1].astype('<i4'),
    }
    for node in ('user', 'item'):
        arrays[f'clusters_{node}'] = np.asarray(clusters[node]).astype('<i4')
        arrays[f'rows_{node}'] = rows[node]
        if hop_2:
            arrays[f'hop_2_{node}'] = hop_2[node].astype('<i8', copy=False)
        for name, value in attributes[node].items():
            arrays[f'attribute_{node}_{name}'] = value.astype('<i8')
    for (s, t), table in cells.items():
        arrays[f'cells_{s}_{t}'] = table.astype('<i8')
    root = osp.realpath(osp.expanduser(root))
    folder = _Folder(osp.join(root, 'snapshot'), root)
    with folder.lock(), folder.writing() as partial:
        for name, array in arrays.items():
            np.save(osp.join(partial, f'{name}.npy'), array, allow_pickle=False)
        for name, ids in id_maps.items():
            ids.save(osp.join(partial, f'ids_{name}.parquet'))
        tensors = {
            name: value.detach().cpu().contiguous().clone() for name, value in weights.items()
        }
        save_file(tensors, osp.join(partial, 'model.safetensors'))
        for name, code in (('program', program), ('compiled', compiled)):
            if code is not None:
                with open(osp.join(partial, f'{name}.pt2'), 'wb') as file:
                    file.write(code.content)
        written = sorted(os.listdir(partial))
        folder.write_manifest(
            partial,
            {
                'format': _FORMAT,
                'version': _VERSION,
                'mag': mag.__version__,
                'torch': torch.__version__,
                'model': model,
                'position': position,
                'log_checksum': checksum,
                'time': time,
                'num_recent': layout.num_recent,
                'num_clusters': layout.num_clusters,
                'num_nodes': num_nodes,
                'num_pairs': pairs.shape[1],
                'resolutions': {node: list(resolutions[node]) for node in ('user', 'item')},
                'hops': 2 if hop_2 else 1,
                'id_maps': list(id_maps),
                'attributes': {node: list(attributes[node]) for node in ('user', 'item')},
                'contexts': list(contexts),
                'batch': _READS[model] if program is None else program.facts['batch'],
                'program': None if program is None else program.facts,
                'compiled': None if compiled is None else compiled.facts,
                'shares_without_cluster': shares_without_cluster,
                'sizes': {name: osp.getsize(osp.join(partial, name)) for name in written},
            },
        )
    return folder.path


def _name_of(folder: str) -> str:
    with open(osp.join(folder, _Folder.manifest), 'rb') as file:
        return hashlib.blake2b(file.read(), digest_size=8).hexdigest()


def _mapped(folder: _Folder, name: str, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    file = f'{name}.npy'
    try:
        # What has no entries cannot be mapped.
        array = np.load(
            folder.file(file), mmap_mode=None if 0 in shape else 'r', allow_pickle=False
        )
    except (OSError, ValueError) as error:
        raise folder.damaged(file, 'it is no array') from error
    if array.dtype != np.dtype(dtype) or array.shape != shape:
        raise folder.damaged(
            file, f'it holds {array.dtype} of shape {list(array.shape)}, not {list(shape)}'
        )
    # Indexing a subclass of arrays takes longer.
    return cast(np.ndarray, array).view(np.ndarray)
