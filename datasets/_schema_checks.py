r"""What a schema may say of a log and of the tables beside it."""

from collections.abc import Mapping, Sequence
from typing import Any

from mag.checks import check_choice, check_numbers
from mag.datasets._schema_roles import ACTION_ROLES, FORMAT, SEVERAL, SIDE_ROLES, SINGLE
from mag.datasets._table_source import Field, is_path, is_table

_REQUIRED = ('user', 'item', 'time')
_OPTIONAL = tuple(
    role
    for role in dict.fromkeys(('label', 'category', 'weight', *SINGLE, *SEVERAL, 'separators'))
    if role not in _REQUIRED
)
# A hundred years, in seconds.
_LONGEST = 3_155_760_000
_ENCODINGS = ('utf-8', 'latin-1')


def check_source(name: str, source: Any) -> None:
    r"""Raises unless there is something to read."""
    if not is_path(source) and not is_table(source):
        shown = repr(source) if isinstance(source, (int, float, list, tuple)) else type(source)
        raise TypeError(
            f"'{name}' must be a file, a pattern or a list of files, or a table of pandas, polars, "
            f'PyArrow or DuckDB, but got {shown}.'
        )


def check_format(place: str, options: Mapping[str, Any]) -> None:
    r"""Raises unless that is how delimited files are written."""
    separator, names = options.get('separator'), options.get('names')
    if separator is not None and (not isinstance(separator, str) or not 1 <= len(separator) <= 4):
        raise ValueError(
            f"{place}'separator' must be a text of 1 to 4 characters, but got {separator!r}."
        )
    if names is not None and (
        isinstance(names, str)
        or not isinstance(names, Sequence)
        or not all(isinstance(name, str) for name in names)
        or len({name.lower() for name in names}) < len(names)
    ):
        raise ValueError(
            f"{place}'names' must be a list of the columns of the files, each another, but got "
            f'{names!r}.'
        )
    check_choice(_ENCODINGS, encoding=options.get('encoding', 'utf-8'))


def check_columns(columns: Any) -> None:
    r"""Raises unless the columns of a log have roles, and all that it needs."""
    roles = ', '.join(map(repr, (*_REQUIRED, *_OPTIONAL)))
    if not isinstance(columns, Mapping):
        raise TypeError(
            f"'columns' must be a dictionary from {roles} to names of columns, but got {columns!r}."
        )
    if not {*_REQUIRED} <= {*columns} <= {*_REQUIRED, *_OPTIONAL}:
        raise ValueError(
            f"'columns' must have the keys {', '.join(map(repr, _REQUIRED))} and may have "
            f'{", ".join(map(repr, _OPTIONAL))}, but got {", ".join(map(repr, columns)) or "none"}.'
        )
    for role, column in columns.items():
        _check_role("'columns'", role, column, is_single=role in SINGLE or role == 'category')
    _check_separators("'columns'", columns)


def check_twice(place: str, fields: Mapping[str, Field]) -> None:
    r"""Raises if a column is named for two things."""
    # DuckDB's names are blind to case.
    role_of: dict[str, str] = {}
    for name, field in fields.items():
        other = role_of.setdefault(field.column.lower(), name)
        if other != name:
            raise ValueError(
                f'{place} must name columns that differ in more than upper and lower case, but got '
                f'{field.column!r} for both {other!r} and {name!r}.'
            )


def check_side(name: str, table: Any) -> None:
    r"""Raises unless that is a table of users or of items, if there is one."""
    if table is None:
        return
    _check_keys_of(repr(name), table, ('path', 'columns'), FORMAT)
    check_source(f'{name}: path', table['path'])
    check_format(f'{name}: ', table)
    columns = table['columns']
    place = f"the columns of '{name}'"
    _check_keys_of(place, columns, ('id',), (*SIDE_ROLES, 'separators'))
    for role, column in columns.items():
        _check_role(place, role, column, is_single=role == 'id')
    _check_separators(place, columns)


def check_actions(actions: Any) -> None:
    r"""Raises unless that is a table of what followed, if there is one."""
    if actions is None:
        return
    options = ('label', 'conversion', 'behaviors', 'within', *FORMAT)
    _check_keys_of("'actions'", actions, ('path', 'columns'), options)
    if actions.get('within') is None:
        raise ValueError(
            "'actions' must say by 'within' how many seconds after a row an action may still "
            'follow, but says nothing: else it would be known at once that a row has none, and '
            'later alone that it has one.'
        )
    check_numbers(f'(0, {_LONGEST}]', within=actions['within'])
    check_source('actions: path', actions['path'])
    check_format('actions: ', actions)
    _check_keys_of("the columns of 'actions'", actions['columns'], tuple(ACTION_ROLES), ())
    for role, column in actions['columns'].items():
        _check_role("the columns of 'actions'", role, column, is_single=True)
    for role in ('label', 'conversion', 'behaviors'):
        if role in actions:
            _check_role("'actions'", role, actions[role], is_single=role != 'behaviors')
    if not any(role in actions for role in ('label', 'conversion', 'behaviors')):
        raise ValueError(
            "'actions' must say which action is the 'label' or the 'conversion', or which are "
            "'behaviors', but says none."
        )


def _check_role(place: str, role: str, column: Any, is_single: bool) -> None:
    if role == 'separators':
        good = isinstance(column, Mapping) and all(
            isinstance(name, str) and isinstance(text, str) and text
            for name, text in column.items()
        )
        expected = 'a dictionary from names to what separates values, such as {"tags": "|"}'
    elif is_single:
        good, expected = isinstance(column, str), 'the name of a column'
    else:
        values = column.items() if isinstance(column, Mapping) else [column]
        good = isinstance(column, (Mapping, list, tuple)) and all(
            isinstance(name, str) for pair in values for name in pair
        )
        expected = 'a list of columns, or a dictionary from names to columns'
    if not good:
        raise TypeError(f'{place} must have {expected} for {role!r}, but got {column!r}.')


def _check_separators(place: str, columns: Mapping[str, Any]) -> None:
    r"""Raises if a separator is that of no column, which would be read as one value."""
    names = {
        name
        for role, value in columns.items()
        if role != 'separators'
        for name in ((role,) if isinstance(value, str) else value)
    }
    foreign = [name for name in columns.get('separators', {}) if name not in names]
    if foreign:
        raise ValueError(
            f"{place} must name what 'separators' are of, one of {sorted(names)}, but got "
            f'{foreign}.'
        )


def _check_keys_of(
    place: str, table: Any, required: Sequence[str], optional: Sequence[str]
) -> None:
    if not isinstance(table, Mapping):
        raise TypeError(f'{place} must be a dictionary, but got {type(table).__name__}.')
    if not {*required} <= {*table} <= {*required, *optional}:
        raise ValueError(
            f'{place} must have the keys {", ".join(map(repr, required))} and may have '
            f'{", ".join(map(repr, optional)) or "no others"}, but got '
            f'{", ".join(map(repr, table)) or "none"}.'
        )
