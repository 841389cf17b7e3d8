r"""What is closed at the end of a :obj:`with` block."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

_T = TypeVar('_T', bound='Closing')


class Closing(ABC):
    r"""Base class of what holds something open: a :obj:`with` block ends with :meth:`close`."""

    @abstractmethod
    def close(self) -> None:
        r"""Gives back what is held open."""

    def __enter__(self: _T) -> _T:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
