r"""Every promise names tests that are there."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / 'docs' / 'promises.md').read_text(encoding='utf-8')


def names_of_tests(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        and node.name.startswith(('test_', 'Test'))
    }


def test_every_promise_is_held_by_tests_that_exist() -> None:
    rows = [line for line in TEXT.splitlines() if line.startswith('| ')]
    rows = [row for row in rows if not row.startswith(('| promise', '| ---'))]
    assert len(rows) >= 10
    for row in rows:
        held_by = row.strip('|').split(' | ')[-1]
        # A file, a test of it, or a test of the file named before.
        path = None
        for name in re.findall(r'`([^`]+)`', held_by):
            file, _, test = name.partition('::') if '/' in name else ('', '', name)
            path = ROOT / file if file else path
            assert path is not None and path.exists(), row
            assert not test or test in names_of_tests(path), f'{path} has no {test}'
        assert path is not None, row


def test_links_lead_somewhere() -> None:
    targets = re.findall(r'\]\(([^)]+)\)', TEXT)
    assert targets
    for target in targets:
        assert (ROOT / 'docs' / target).exists(), target
