import os
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    r"""Writes a checkpoint beside its destination and renames it, so that a kill leaves the old
    checkpoint or the new one. (Lightning writes to the system's temporary folder and moves the
    file, which is a copy, not a rename, if that folder is on another file system.)"""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        temporary = f'{path}.tmp'
        torch.save(checkpoint, temporary)
        os.replace(temporary, path)
