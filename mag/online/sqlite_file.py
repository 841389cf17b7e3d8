r"""A file of SQLite that holds what one class writes."""

import sqlite3

from mag.files import locked

# Seconds that another process may take to write.
_PATIENCE = 5.0
#: Raised by one whenever files hold something else.
_VERSION = 1


def open_file(path: str, caller: str, application: int, tables: str) -> sqlite3.Connection:
    r"""Opens a file, and makes it if there is none, in which readers and the one who writes do not
    wait for each other.

    Args:
        path (str): The file.
        caller (str): The class that writes it.
        application (int): What tells the file from others of SQLite.
        tables (str): The SQL that makes what it holds.

    Raises:
        ValueError: If the file is another one, or of another version.
        sqlite3.OperationalError: If it cannot be opened, or another process holds it for more than
            five seconds.
    """
    # Two that make the file at once would get in each other's way.
    with locked(f'{path}.mag-lock'):
        # What one thread opens another may use, after it.
        database = sqlite3.connect(path, _PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            _prepare(database, application, tables)
        except sqlite3.OperationalError:
            database.close()
            raise
        except (sqlite3.DatabaseError, ValueError) as error:
            database.close()
            raise ValueError(
                f"'path' must be a file that {caller} made, or none, but {path!r} is another one."
            ) from error
        ((version,),) = database.execute('PRAGMA user_version')
        if version != _VERSION:
            database.close()
            raise ValueError(
                f'{path!r} was written in version {version} of the format of {caller}, but this '
                f'mag reads version {_VERSION}: make it anew.'
            )
    return database


def _prepare(database: sqlite3.Connection, application: int, tables: str) -> None:
    ((found,),) = database.execute('PRAGMA application_id')
    if found == application:
        return
    ((num_others,),) = database.execute('SELECT count(*) FROM sqlite_master')
    if found or num_others:
        raise ValueError('it has tables of others')
    database.execute('PRAGMA journal_mode = WAL')
    database.executescript(
        f'BEGIN; {tables} PRAGMA application_id = {application}; '
        f'PRAGMA user_version = {_VERSION}; COMMIT;'
    )
