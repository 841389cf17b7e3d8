r"""What the table of docs/your_log.md says of each role: the graph has it, and lacks it without."""

import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch_geometric.data import HeteroData

from mag.datasets import EventLog, LogSchema
from mag.datasets._schema_checks import _REQUIRED
from mag.datasets._schema_roles import ACTION_ROLES, SEVERAL, SIDE_ROLES, SINGLE
from mag.schema import CLICKS

TEXT = (Path(__file__).parents[1] / 'docs' / 'your_log.md').read_text(encoding='utf-8')
# The cells of each row: what the graph has, from which roles, who reads it, what is without it.
TABLE = [
    [cell.strip() for cell in line.strip('|').split(' | ')]
    for line in TEXT.splitlines()
    if line.startswith('| ') and not line.startswith(('| the graph has', '| ---'))
]

LOG = """u,i,t,click,at,known,w,bought,words,place,cart,device,price,age,kind,about,title
a,1,10,1,12,19,2,1,red shoes,search,1,phone,1.5,30,new|sale,tall,Lamp
b,2,20,0,,29,1,0,,recommendation,0,tablet,2.5,40,sale,small,Chair
a,2,30,1,33,39,1,0,tea,search,1,phone,3.5,30,sale,tall,Chair
b,1,40,0,,49,3,0,,recommendation,0,phone,1.5,40,new|sale,small,Lamp
"""
ACTIONS = 'u,i,t,what\na,1,12,click\na,1,13,put\na,2,34,click\na,2,35,buy\n'
COLUMNS: dict[str, Any] = {
    'user': 'u',
    'item': 'i',
    'time': 't',
    'label': 'click',
    'weight': 'w',
    'conversion': 'bought',
    'click_time': 'at',
    'settled': 'known',
    'query': 'words',
    'domain': 'place',
    'behaviors': ['cart'],
    'contexts': ['device'],
    'features': ['price'],
    'user_attributes': ['age'],
    'item_attributes': ['kind'],
    'user_texts': ['about'],
    'item_texts': ['title'],
    'separators': {'kind': '|'},
}
SIDES = {
    'users': ('id,age,about,look\na,30,tall,1 2\nb,40,small,3 4\n', 'age', 'about', 'look'),
    'items': ('id,kind,title,look\n1,new,Lamp,1 2\n2,sale,Chair,3 4\n', 'kind', 'title', 'look'),
}
FOLLOWED = {'label': 'click', 'conversion': 'buy', 'behaviors': {'cart': 'put'}}


class Way(NamedTuple):
    r"""One way to give a log something."""

    #: The role, and the table that it is a role of, none for the log.
    role: str
    table: str = ''

    @property
    def is_required(self) -> bool:
        return not self.table and self.role in _REQUIRED

    @property
    def node(self) -> str:
        r"""Whose it is, if it is of a node."""
        of = self.table or self.role
        return next(
            (node for node in ('user', 'item') if of.startswith((f'{node}_', f'{node}s'))), ''
        )

    @property
    def name(self) -> str:
        r"""What stands for <name> in the table."""
        if self.table in SIDES:
            return SIDES[self.table][1 + [*SIDE_ROLES].index(self.role)]
        given = COLUMNS[self.role]
        return '' if isinstance(given, str) else next(iter(given))

    @property
    def rows(self) -> list[list[str]]:
        r"""The rows of the table that name it."""
        if not self.table:
            # And not the role of that name that another table has.
            return [row for row in TABLE if re.search(f'`{self.role}`(?! of `)', row[1])]
        named = {self.role, self.table}
        return [
            row
            for row in TABLE
            if named <= set(re.findall(r'`(\w+)`', row[1])) or f'or `{self.table}`' in row[1]
        ]

    def schema(self, folder: Path, is_given: bool) -> LogSchema:
        given = [*_REQUIRED, 'label']
        if not is_given:
            given = [role for role in given if self.table or role != self.role]
        elif not self.table:
            given.append(self.role)
        if self.table == 'actions' and self.role == 'label':
            given.remove('label')
        # An attribute is there without a separator, and has one value then.
        if self.role == 'separators':
            given.append('item_attributes')
        columns = {role: COLUMNS[role] for role in dict.fromkeys(given)}
        tables: dict[str, Any] = {}
        if is_given and self.table == 'actions':
            roles = dict(zip(ACTION_ROLES, ('u', 'i', 't', 'what'), strict=True))
            path = write(folder / 'actions.csv', ACTIONS)
            tables['actions'] = {'path': path, 'columns': roles, 'within': 5}
            tables['actions'][self.role] = FOLLOWED[self.role]
        elif is_given and self.table:
            path = write(folder / f'{self.table}.csv', SIDES[self.table][0])
            tables[self.table] = {'path': path, 'columns': {'id': 'id', self.role: [self.name]}}
        return LogSchema(write(folder / 'log.csv', LOG), columns, **tables)


WAYS = [
    *map(Way, (*SINGLE, *SEVERAL, 'separators')),
    *(Way(role, 'actions') for role in FOLLOWED),
    *(
        Way(role, table)
        for table in SIDES
        for role in SIDE_ROLES
        if (role, table) != ('modalities', 'users')
    ),
]


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding='utf-8')
    return str(path)


def read(folder: Path, schema: LogSchema) -> EventLog:
    with warnings.catch_warnings():
        # A log of clicks alone is one here, and what follows rows that were not clicked is 0.
        warnings.simplefilter('ignore')
        return EventLog(folder / 'root', schema, log=False)


def has(dataset: EventLog, attribute: str, cell: str) -> bool:
    r"""Whether a dataset has what the first cell of a row says."""
    data: HeteroData = dataset[0]
    clicks = data[CLICKS]
    if 'apart from' in cell:
        of_click = clicks.edge_label_time[clicks.edge_label == 1]
        return not torch.equal(clicks.time, of_click)
    if cell.startswith('`edge_label`'):
        # Without labels all rows are clicks.
        return clicks.edge_index.size(1) == int(clicks.edge_label.sum()) < len(clicks.edge_label)
    store, _, name = attribute.rpartition('.')
    described = re.fullmatch(r"dataset\.describe\('(\w+)'\)", attribute)
    if described:
        return len(dataset.describe(described[1])) > 1
    return name in (data[store[6:10]] if store else clicks)


def attributes_of(way: Way, cell: str) -> list[str]:
    names = [name.replace('<name>', way.name) for name in re.findall(r'`([^`]+)`', cell)]
    return [name for name in names if not way.node or f"'{way.node}'" in name]


@pytest.mark.parametrize('way', WAYS, ids=lambda way: '-'.join(filter(None, way)))
def test_a_graph_has_what_its_roles_give_it_and_nothing_without(tmp_path: Path, way: Way) -> None:
    assert way.rows
    folders = tmp_path / 'with', tmp_path / 'without'
    for folder in folders:
        folder.mkdir()
    given = read(folders[0], way.schema(folders[0], True))
    if way.is_required:
        with pytest.raises(ValueError, match=f"'{way.role}'"):
            way.schema(folders[1], False)
    for cell, *_ in way.rows:
        attributes = attributes_of(way, cell)
        assert attributes
        for attribute in attributes:
            assert has(given, attribute, cell), attribute
            if not way.is_required:
                lacking = read(folders[1], way.schema(folders[1], False))
                assert not has(lacking, attribute, cell), attribute


def test_every_row_of_the_table_is_given_by_some_role() -> None:
    found = [row for way in WAYS for row in way.rows]
    assert len(TABLE) >= 13 and all(row in found for row in TABLE)
