import os
import os.path as osp
from collections.abc import Callable, Mapping
from glob import escape, glob
from types import EllipsisType
from typing import Any, NamedTuple

from torch_geometric.data import HeteroData

from mag.checks import check_choice
from mag.datasets.click_dataset import ClickDataset


class Release(NamedTuple):
    r"""A release of a dataset.

    Args:
        archive (str): The name of what its publisher offers.
        folder (str): Where the archive has the files.
        files (tuple): Their names, or patterns, in the order of reading.
        md5 (str, optional): The sum of the archive.
    """

    archive: str
    folder: str
    files: tuple[str, ...]
    md5: str | None = None


class NamedRelease(ClickDataset):
    r"""Base class of click logs that are known by the name of a release, the first of
    :attr:`releases` if none is given.

    Args:
        root (str): Directory of :obj:`raw` and :obj:`processed`.
        name (str, optional): The name of the release.
        transform (callable, optional): See :class:`ClickDataset`, as for the following.
        pre_transform (callable, optional)
        force_reload (bool, optional)
        log (bool, optional)

    Raises:
        FileNotFoundError: If a file is missing; it says which.
        ValueError: If :obj:`name` is unknown.
    """

    #: What there is, by name.
    releases: Mapping[str, Release]

    #: Where somebody gets it.
    url: str

    def __init__(
        self,
        root: str | os.PathLike[str],
        name: str | EllipsisType = ...,
        transform: Callable[[HeteroData], HeteroData] | None = None,
        pre_transform: Callable[[HeteroData], HeteroData] | None = None,
        force_reload: bool = False,
        log: bool = True,
    ) -> None:
        self.name = next(iter(self.releases)) if isinstance(name, EllipsisType) else name
        check_choice(self.releases, name=self.name)
        super().__init__(root, transform, pre_transform, force_reload, log)

    @property
    def release(self) -> Release:
        r"""The release that is read."""
        return self.releases[self.name]

    @property
    def arguments(self) -> dict[str, Any]:
        return {'name': self.name}

    @property
    def source_files(self) -> list[str]:
        for folder in self.folders:
            for files in self.layouts:
                found = [sorted(glob(osp.join(escape(folder), file))) for file in files]
                if all(found):
                    return sum(found, [])
        return []

    @property
    def raw_file_names(self) -> list[str]:
        found = [osp.relpath(path, self.raw_dir) for path in self.source_files]
        return found or list(self.release.files)

    @property
    def folders(self) -> list[str]:
        r"""Where the files are looked for, all in one of these."""
        return [self.raw_dir, osp.join(self.raw_dir, self.release.folder)]

    @property
    def layouts(self) -> list[tuple[str, ...]]:
        r"""What files the release may have."""
        return [self.release.files]

    def download(self) -> None:
        present = [
            name
            for folder in self.folders
            if osp.isdir(folder)
            for name in sorted(os.listdir(folder))
            if name.endswith('.csv')
        ]
        raise FileNotFoundError(
            f'{type(self).__name__} {self.name!r} needs {", ".join(self.release.files)}, '
            f'together in one of {", ".join(map(repr, self.folders))}, but found '
            f'{", ".join(present) or "none of them"}. Get {self.release.archive} from {self.url} '
            f'and unpack it into {self.raw_dir!r}.'
        )
