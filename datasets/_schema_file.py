r"""Files that say what a log is."""

import json
import os.path as osp
from collections.abc import Sequence
from typing import Any

import yaml


def read_schema_file(path: str, keys: Sequence[str]) -> dict[str, Any]:
    r"""Reads the arguments of a schema from a YAML or JSON file, with paths from its folder.

    Args:
        path (str): The file.
        keys (list): All arguments, those that it must have first: :obj:`'path'` and
            :obj:`'columns'`.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is no such file, or has other keys.
    """
    with open(osp.expanduser(path), encoding='utf-8') as file:
        try:
            found = json.load(file) if path.endswith('.json') else yaml.safe_load(file)
        except (yaml.YAMLError, ValueError) as error:
            mark = getattr(error, 'problem_mark', None)
            line = mark.line + 1 if mark is not None else getattr(error, 'lineno', None)
            reason = ' '.join(str(getattr(error, 'problem', None) or error).split())
            place = path if line is None else f'{path}, line {line}'
            kind = 'JSON' if path.endswith('.json') else 'YAML'
            raise ValueError(f'{place}: it must be {kind}, but {reason}.') from error
    if not isinstance(found, dict) or not {'path', 'columns'} <= {*found} <= {*keys}:
        given = ', '.join(map(repr, found)) if isinstance(found, dict) else repr(found)[:200]
        raise ValueError(
            f"{path} must have the keys 'path' and 'columns' and may have "
            f'{", ".join(map(repr, keys[2:]))}, but got {given or "none"}.'
        )
    return _moved(found, osp.dirname(osp.abspath(osp.expanduser(path))))


def _moved(found: dict[str, Any], folder: str) -> dict[str, Any]:
    r"""The arguments with paths from a folder."""

    def move(path: Any) -> Any:
        if isinstance(path, str):
            return osp.join(folder, osp.expanduser(path))
        return [move(one) for one in path] if isinstance(path, list) else path

    moved: dict[str, Any] = found | {'path': move(found['path'])}
    for key in ('users', 'items', 'actions'):
        table = moved.get(key)
        if isinstance(table, dict) and 'path' in table:
            table = table | {'path': move(table['path'])}
            columns: Any = table.get('columns')
            modalities = columns.get('modalities') if isinstance(columns, dict) else None
            if isinstance(modalities, dict):
                modalities = {
                    name: move(file) if isinstance(file, str) and file.endswith('.npy') else file
                    for name, file in modalities.items()
                }
                table['columns'] = {**columns, 'modalities': modalities}
            moved[key] = table
    return moved
