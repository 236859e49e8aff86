"""The guide's rows: all of them, each with codes that exist and a test that exists and knows one of them."""

import ast
import re
from pathlib import Path

import pytest

from ftkvm.catalogue import CATALOGUE
from ftkvm.guide import A1, P34, ROWS, T31, Row, rows_of

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("table", "count"), [(A1, 47), (T31, 13), (P34, 16)])
def test_no_row_is_missing(table: str, count: int) -> None:
    assert [row.number for row in ROWS if row.table == table] == list(range(1, count + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.table} {row.number}")
def test_row(row: Row) -> None:
    if row.cannot:
        assert not row.codes and not row.tests
        return
    assert row.codes and set(row.codes) <= set(CATALOGUE)
    assert row.provoked
    texts = {test: text_of(test) for test in row.tests}
    for code in row.codes:
        assert any(code in text for text in texts.values()), f"no test of {row.tests} knows {code}"
    for test, text in texts.items():
        assert any(code in text for code in row.codes), f"{test} knows none of {row.codes}"


def text_of(test: str) -> str:
    """The source of a test with its decorators, or the domain of its case."""
    found = re.fullmatch(r"([\w/.]+)::(\w+)(?:\[([\w-]+)\])?", test)
    assert found is not None, test
    path, function, case = ROOT / found.group(1), found.group(2), found.group(3)
    tree = ast.parse(path.read_text())
    body = next((node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function), None)
    assert body is not None, test
    if case is not None:
        return (ROOT / "tests" / "checks" / "vm" / f"{case}.xml").read_text()
    first = min([body.lineno, *(each.lineno for each in body.decorator_list)])
    return "\n".join(path.read_text().splitlines()[first - 1 : body.end_lineno])


def test_rows_of_a_code() -> None:
    assert {(row.table, row.number) for row in rows_of("FTKVM-132")} == {(A1, 27), (P34, 10)}
