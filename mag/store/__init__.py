r"""The macro graph of a log that does not fit in memory: built in bounded memory, read from
disk."""

__all__: list[str] = []
