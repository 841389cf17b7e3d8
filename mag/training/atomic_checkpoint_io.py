from typing import Any

from lightning.fabric.plugins import TorchCheckpointIO

from mag.files import read_tensors, write_tensors


class AtomicCheckpointIO(TorchCheckpointIO):
    r"""Checkpoints that are there whole or not at all, and that are read as they were written or
    refused, without running what is in them. (Lightning writes to the system's temporary folder and moves
    the file, which is a copy, not a rename, if that folder is on another file system, and reads it
    with :obj:`weights_only=False`.)

    Args:
        config (dict): The settings of the run, which each checkpoint holds as :obj:`"config"`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        write_tensors({**checkpoint, 'config': self.config}, path)

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return read_tensors(path)
