import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from mag.checks import check_choice
from mag.datasets._schema_checks import (
    check_actions,
    check_columns,
    check_format,
    check_side,
    check_source,
    check_twice,
)
from mag.datasets._schema_file import read_schema_file
from mag.datasets._schema_roles import ACTION_ROLES, FORMAT, SEVERAL, SIDE_ROLES, SINGLE
from mag.datasets._sql import TIME_UNITS
from mag.datasets._table_source import Field, Format, is_path

# Names that a graph or a table on the way to it has for something else.
_TAKEN = (
    *SINGLE, 'id', 'node', 'rowid', 'log_position', 'index', 'behavior', 'feature', 'modality',
    'window', 'row', 'cutoff', 'x', 'recent', 'cluster', 'interest', 'split', 'batch', 'ptr',
)  # fmt: skip
_PREFIXES = ('x_', 'num_', 'has_', 'edge_', 'cluster_', 'macro_', '_')


@dataclass(frozen=True)
class LogSchema:
    r"""Where a log is and what its columns mean, for :class:`EventLog`.

    .. code-block:: python

        schema = LogSchema(
            'exports/2024-*.csv',
            {
                'user': 'customer', 'item': 'sku', 'time': 'shown_at', 'label': 'clicked',
                'conversion': 'bought', 'query': 'search', 'contexts': ['device'],
                'features': ['price'],
            },
            items={'path': 'items.csv', 'columns': {
                'id': 'sku', 'attributes': ['brand', 'tags'], 'texts': ['title'],
                'separators': {'tags': '|'},
            }},
        )
        data = EventLog('data/shop', schema)[0]

    The same can stand in a file, :meth:`load`.

    A role of several columns is a list of them, or a dictionary from the names that they get in the
    graph to the columns. Such a name is one of Python's, and differs from all others.

    ======================  =============================================================
    role                    what the column holds
    ======================  =============================================================
    :obj:`user`             the id of a user, any type
    :obj:`item`             the id of an item, any type
    :obj:`time`             when the item was shown
    :obj:`label`            1 if it was clicked, else 0; without it every row is a click
    :obj:`conversion`       1 if it was bought, or whatever counts; 0 else
    :obj:`behaviors`        columns, each 1 if that followed the click, else 0
    :obj:`click_time`       when it was clicked, not before :obj:`time`; may be empty
                            where there was no click
    :obj:`settled`          when all labels of the row are known, not before :obj:`time`; without
                            a :obj:`click_time` clicks count from then on
    :obj:`weight`           0, or a positive number
    :obj:`query`            what was searched for, a text whose words are terms, or a list of
                            terms; empty where a recommendation led to the row
    :obj:`domain`           :obj:`search` or 1, :obj:`recommendation` or 0; without it a row with a
                            query is of a search
    :obj:`contexts`         columns, categoricals of the exposure
    :obj:`features`         columns, numbers of the exposure
    :obj:`user_attributes`  columns, categoricals of the user; a user has those of the first row
    :obj:`item_attributes`  the same of the item; :obj:`'category': 'kind'` is short for
                            :obj:`'item_attributes': {'category': 'kind'}`
    :obj:`user_texts`       columns that describe the user in words, those of the first row
    :obj:`item_texts`       the same of the item
    :obj:`separators`       by name of an attribute with several values in one text, or
                            :obj:`query`, what stands between them
    ======================  =============================================================

    Args:
        path (str, list or table): Files, a pattern such as :obj:`'logs/*.parquet'`, a list of
            files, or a table in memory: of pandas, polars, PyArrow or DuckDB. CSV files may be
            gzipped.
        columns (dict): From roles to names of columns.
        time_unit (str, optional): The unit of times that are numbers: :obj:`'s'`, :obj:`'ms'`,
            :obj:`'us'` or :obj:`'ns'`. (default: :obj:`'s'`)
        separator (str, optional): What stands between the columns of a delimited file, such as
            :obj:`'::'`. By default it is found: a comma, tab, semicolon or bar.
            (default: :obj:`None`)
        names (tuple, optional): The columns of delimited files without a header.
            (default: :obj:`None`)
        encoding (str, optional): Of delimited files, :obj:`'utf-8'` or :obj:`'latin-1'`.
            (default: :obj:`'utf-8'`)
        users (dict, optional): A table of users: its :obj:`'path'`, its :obj:`'columns'`
            (:obj:`'id'`, :obj:`'attributes'`, :obj:`'texts'`, :obj:`'modalities'`,
            :obj:`'separators'`), and how it is written, as above. A modality is a column of numbers
            or of lists of numbers, or a file :obj:`.npy` with a row for each of the table.
            (default: :obj:`None`)
        items (dict, optional): The same of items. (default: :obj:`None`)
        actions (dict, optional): A long table of what followed: its :obj:`'path'`, its
            :obj:`'columns'` (:obj:`'user'`, :obj:`'item'`, :obj:`'time'`, :obj:`'action'`), and
            which actions are the :obj:`'label'`, the :obj:`'conversion'` and the
            :obj:`'behaviors'`. An action belongs to the last row of its user and item before it or
            at its time, if that is at most :obj:`'within'` seconds ago; until then it is not
            known what followed a row. (default: :obj:`None`)

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If a role is unknown or missing, two columns go by one name, or a name cannot be
            that of an attribute.
    """

    path: Any
    columns: Mapping[str, Any]
    time_unit: str = 's'
    separator: str | None = None
    names: Sequence[str] | None = None
    encoding: str = 'utf-8'
    users: Mapping[str, Any] | None = None
    items: Mapping[str, Any] | None = None
    actions: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_source('path', self.path)
        check_choice(TIME_UNITS, time_unit=self.time_unit)
        check_format('', self.own_format)
        check_columns(self.columns)
        for node in ('users', 'items'):
            check_side(node, getattr(self, node))
        check_actions(self.actions)
        self._check_names()
        check_twice("'columns'", self.log_fields)
        for node in self.side_tables:
            check_twice(f"the columns of '{node}s'", self.side_fields(node))
        check_twice("the columns of 'actions'", self.action_fields)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> 'LogSchema':
        r"""Reads a schema from a YAML or JSON file, which has the arguments as keys.

        .. code-block:: yaml

            path: exports/2024-*.csv
            columns: {user: customer, item: sku, time: shown_at, label: clicked}
            items:
              path: items.csv
              columns: {id: sku, attributes: [brand]}

        Paths in it are taken from the folder of the file.

        Raises:
            FileNotFoundError: If there is no file.
            ValueError: If it is no such file, or for what the schema refuses.
        """
        path = os.fspath(path)
        found = read_schema_file(path, [field.name for field in fields(cls)])
        try:
            return cls(**found)
        except (TypeError, ValueError) as error:
            raise ValueError(f'{path}: {error}') from error

    def __repr__(self) -> str:
        # A table is never printed.
        path = repr(self.path) if is_path(self.path) else f'<{type(self.path).__name__}>'
        return f'LogSchema({path}, {dict(self.columns)!r})'

    @property
    def log_fields(self) -> dict[str, Field]:
        r"""The columns of the log, by the names that they get."""
        separators = self.columns.get('separators', {})
        found = {}
        for role, kind in SINGLE.items():
            if role in self.columns:
                separator = separators.get(role, ' ') if kind == 'terms' else None
                is_required = role != 'click_time'
                found[role] = Field(self.columns[role], kind, role, separator, is_required)
        for role, (kind, title) in SEVERAL.items():
            for name, column in self.named(role).items():
                is_list = role.endswith('attributes') and name in separators
                title_of = 'category' if name == 'category' else title
                found[name] = Field(
                    column, 'names' if is_list else kind, title_of, separators.get(name)
                )
        return found

    def format(self, table: Mapping[str, Any] | None = None) -> Format:
        r"""How the files of a table are written, by default those of the log."""
        return _format_of(self.own_format if table is None else table)

    @property
    def side_tables(self) -> dict[str, Mapping[str, Any]]:
        r"""The tables of users and items, by node type."""
        return {
            node: table
            for node, table in (('user', self.users), ('item', self.items))
            if table is not None
        }

    def side_fields(self, node: str) -> dict[str, Field]:
        r"""The columns of the table of a node type, by the names that they get."""
        columns = self.side_tables[node]['columns']
        separators = columns.get('separators', {})
        found = {'id': Field(columns['id'], 'id', node)}
        for role, (kind, title) in SIDE_ROLES.items():
            for name, column in _named(columns.get(role, ())).items():
                if role == 'modalities' and column.endswith('.npy'):
                    continue
                is_list = role == 'attributes' and name in separators
                kind_of = 'names' if is_list else kind
                found[name] = Field(column, kind_of, title, separators.get(name))
        return found

    def side_arrays(self, node: str) -> dict[str, str]:
        r"""The files of modalities with a row for each of the table of a node type."""
        columns = self.side_tables[node]['columns']
        modalities = _named(columns.get('modalities', ()))
        return {name: file for name, file in modalities.items() if file.endswith('.npy')}

    def side_names(self, node: str, role: str) -> list[str]:
        r"""The names of the attributes, texts or modalities of the table of a node type."""
        table = self.side_tables.get(node)
        return [] if table is None else list(_named(table['columns'].get(role, ())))

    @property
    def action_fields(self) -> dict[str, Field]:
        r"""The columns of the table of actions."""
        columns = {} if self.actions is None else self.actions['columns']
        return {role: Field(columns[role], ACTION_ROLES[role], role) for role in columns}

    def named(self, role: str) -> dict[str, str]:
        r"""The columns of a role of several, by their names; :obj:`category` among the attributes
        of items."""
        found = _named(self.columns.get(role, ()))
        if role == 'item_attributes' and 'category' in self.columns:
            found = {'category': self.columns['category'], **found}
        return found

    @property
    def behaviors(self) -> dict[str, str]:
        r"""The behaviors: columns of the log, and actions."""
        actions = {} if self.actions is None else self.actions
        return self.named('behaviors') | _named(actions.get('behaviors', ()))

    @property
    def own_format(self) -> dict[str, Any]:
        r"""How the files of the log are written, as the arguments say it."""
        return {key: getattr(self, key) for key in FORMAT}

    def _check_names(self) -> None:
        found: dict[str, str] = {}
        actions = {} if self.actions is None else self.actions
        named = [(role, name) for role in SEVERAL for name in self.named(role)]
        named += [('actions', name) for name in _named(actions.get('behaviors', ()))]
        named += [
            (f'{node}s', name)
            for node in self.side_tables
            for role in SIDE_ROLES
            for name in self.side_names(node, role)
        ]
        for role, name in named:
            if not name.isidentifier() or name.lower() in _TAKEN or name.startswith(_PREFIXES):
                raise ValueError(
                    f"A name of '{role}' must be one that an attribute can have, such as "
                    f"'device', and not one of the graph's own, but got {name!r}: write "
                    f'{{name: column}} to give a column another.'
                )
            # DuckDB's names are blind to case.
            other = found.setdefault(name.lower(), role)
            if (other, name) != (role, name) or [n for _, n in named].count(name) > 1:
                raise ValueError(
                    f'All names must differ in more than upper and lower case, but got {name!r} '
                    f'for both {other!r} and {role!r}.'
                )
        for role, of_actions in (('label',) * 2, ('conversion',) * 2, ('click_time', 'label')):
            if role in self.columns and of_actions in actions:
                raise ValueError(
                    f"'actions' must not tell of {of_actions!r} where 'columns' have {role!r}, but "
                    f'got both.'
                )


def _named(columns: Any) -> dict[str, str]:
    return dict(columns) if isinstance(columns, Mapping) else {name: name for name in columns}


def _format_of(options: Mapping[str, Any]) -> Format:
    names = options.get('names')
    return Format(
        options.get('separator'),
        None if names is None else tuple(names),
        options.get('encoding', 'utf-8'),
    )
