r"""Snapshots as of now, which servers are told to use."""

import os
import os.path as osp
import shutil
import uuid
from collections.abc import Sequence
from glob import escape, glob

from mag.checks import check_integers
from mag.online import Snapshot
from mag.pipeline.pipeline import Pipeline
from mag.pipeline.serving import PIPELINE, write_served

# A link to the snapshot that is served.
_LATEST = 'latest'
_DELETED = '.deleted'


def refresh(
    pipeline: Pipeline, root: str | os.PathLike[str], log: str, admin: Sequence[str], keep: int
) -> str:
    r"""Writes a snapshot as of the end of a log, has servers answer by it, points the link
    :obj:`latest` to it, and deletes those that are older.

    Args:
        pipeline (Pipeline): One that was fitted. It knows the events of the log afterwards.
        root (str): The folder of snapshots, from which the servers load them.
        log (str): The log, see :func:`open_log`.
        admin (Sequence[str]): Host and port of the :obj:`Admin` of each server. Where one does not
            swap, nothing is deleted.
        keep (int): How many snapshots stay, with this one.

    Returns:
        The path of the snapshot.

    Raises:
        ConnectionError: If a server cannot be reached.
        OSError: If the log cannot be read, or the disk is full.
        RuntimeError: If a server cannot serve the snapshot.
        TimeoutError: If one gives no answer.
        ValueError: If there can be no snapshot, see :meth:`Pipeline.snapshot`.
    """
    from mag.online import swap

    check_integers(1, keep=keep)
    path = write_served(pipeline, root, log)
    name = osp.basename(path)
    for address in admin:
        swap(address, name)
    root = osp.dirname(path)
    temporary = osp.join(root, f'{_LATEST}.{uuid.uuid4().hex[:8]}')
    os.symlink(name, temporary)
    os.replace(temporary, osp.join(root, _LATEST))
    delete_older(path, keep)
    return path


def delete_older(served: str, keep: int) -> None:
    r"""Deletes the snapshots beside one that are older, but the newest ones of them.

    Args:
        served (str): The path of the one that stays.
        keep (int): How many stay, with this one.
    """
    root = osp.dirname(served)
    last, older = Snapshot.open(served).position, []
    for beside in glob(osp.join(escape(root), f'*{PIPELINE}')):
        path = beside.removesuffix(PIPELINE)
        try:
            position = Snapshot.open(path).position
        except (OSError, ValueError):
            continue
        if position <= last and path != served:
            older.append((position, osp.getmtime(path), path))
    for _, _, path in sorted(older)[: max(len(older) - keep + 1, 0)]:
        # At once: who loads it now finds all of it or nothing.
        os.rename(path, path + _DELETED)
    # Those of a run that was killed, too: a pipeline is written after its snapshot.
    for path in glob(osp.join(escape(root), f'*{_DELETED}')):
        shutil.rmtree(path, ignore_errors=True)
    for path in glob(osp.join(escape(root), f'*{PIPELINE}')):
        if not osp.isdir(path.removesuffix(PIPELINE)):
            shutil.rmtree(path, ignore_errors=True)
