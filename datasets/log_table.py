from dataclasses import dataclass

from mag.checks import check_booleans, check_choice
from mag.datasets._sql import TIME_UNITS


@dataclass(frozen=True)
class LogTable:
    r"""What the table :obj:`log` holds that :meth:`ClickDataset.read` has filled, beside the users,
    items, times and labels of all logs.

    Args:
        time_unit (str, optional): The unit of times that are numbers: :obj:`'s'`, :obj:`'ms'`,
            :obj:`'us'` or :obj:`'ns'`. (default: :obj:`'s'`)
        merge_duplicates (bool, optional): Whether rows with the same user, item, time and, where
            there is one, query are one row. (default: :obj:`False`)
        behaviors (tuple, optional): Columns, 0 or 1, that tell what followed the click; written as
            0 where there was no click.
        conversion (str, optional): Column, 0 or 1, that tells whether the click converted; written
            as 0 where there was no click.
        contexts (tuple, optional): Columns that are categoricals of an exposure.
        features (tuple, optional): Columns that are numbers of an exposure, none missing.
        query (str, optional): Column, the list of the terms of the search that led to the exposure,
            NULL where a recommendation did. What is missing, empty or called unknown is no term,
            and a search without terms has the term 'unknown'; of a longer search the first 10 terms
            are kept.
        descriptions (tuple, optional): Columns of the tables of attributes that describe a node in
            words; they are kept beside the ids and are no features.

    Raises:
        TypeError: If columns are no tuple of names.
        ValueError: If :obj:`time_unit` is unknown, or a column is no name that an attribute can
            have.
    """

    time_unit: str = 's'
    merge_duplicates: bool = False
    behaviors: tuple[str, ...] = ()
    conversion: str | None = None
    contexts: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    query: str | None = None
    descriptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice(TIME_UNITS, time_unit=self.time_unit)
        check_booleans(merge_duplicates=self.merge_duplicates)
        for field in ('behaviors', 'contexts', 'features', 'descriptions'):
            names = getattr(self, field)
            if not isinstance(names, tuple):
                raise TypeError(f"'{field}' must be a tuple of columns, but got {names!r}.")
        for name in (*self.columns, *self.descriptions):
            if not isinstance(name, str) or not name.isidentifier():
                raise ValueError(f"A column must have a name such as 'device', but got {name!r}.")

    @property
    def mapped(self) -> tuple[str, ...]:
        r"""The columns whose values become codes."""
        return self.contexts if self.query is None else (*self.contexts, self.query)

    @property
    def flags(self) -> tuple[str, ...]:
        r"""The columns of zeros and ones."""
        return self.behaviors if self.conversion is None else (*self.behaviors, self.conversion)

    @property
    def columns(self) -> tuple[str, ...]:
        r"""All columns of the log that are named here."""
        return (*self.flags, *self.features, *self.mapped)
