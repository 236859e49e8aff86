"""The catalogue, held against the source: every code that is raised exists, and gets the parameters it shows."""

import ast
import re
import string
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftkvm.catalogue import CATALOGUE, FtkvmError

ROOT = Path(__file__).parents[2]


def _raised() -> Iterator[tuple[str, str, set[str], bool]]:
    """(where, code, names of parameters, whether there are more) of every FtkvmError made with a literal code."""
    for path in [*(ROOT / "ftkvm").rglob("*.py"), *(ROOT / "hostprep").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args or _called(node) in ("_m", "Finding"):
                continue
            first = node.args[0]
            if isinstance(first, ast.Constant) and re.fullmatch(r"FTKVM-\d+", str(first.value)):
                names = {keyword.arg for keyword in node.keywords if keyword.arg}
                more = any(keyword.arg is None for keyword in node.keywords)
                yield f"{path.relative_to(ROOT)}:{node.lineno}", str(first.value), names, more


def _called(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def test_every_code_raised_exists() -> None:
    assert {(where, code) for where, code, _names, _more in _raised() if code not in CATALOGUE} == set()


def test_every_placeholder_is_given() -> None:
    missing = []
    for where, code, names, more in _raised():
        if code in CATALOGUE and not more and not where.startswith("ftkvm/catalogue.py"):
            entry = CATALOGUE[code]
            shown = {
                field for text in (entry.text, entry.cause, entry.remedy)
                for _, field, _, _ in string.Formatter().parse(text) if field
            }  # fmt: skip
            if shown - names:
                missing.append((where, code, shown - names))
    assert missing == []


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_entries_are_complete(code: str) -> None:
    entry = CATALOGUE[code]
    assert entry.code == code
    assert entry.text
    assert entry.cause
    assert entry.remedy
    assert 1 <= entry.exit_status <= 6


def test_an_error_survives_the_wire() -> None:
    error = FtkvmError("FTKVM-403", vm="vm1", host="host2")
    again = FtkvmError.from_json(error.to_json())
    assert (again.code, again.text, again.remedy) == (error.code, error.text, error.remedy)


def test_a_code_from_the_future_keeps_its_text() -> None:
    again = FtkvmError.from_json({"code": "FTKVM-999x", "text": "new", "cause": "c", "remedy": "r", "params": {}})
    assert (again.text, again.cause, again.remedy) == ("new", "c", "r")


# ------------------------------------------------------------------------------------- codes and their meanings

NOT_RAISED = {"FTKVM-904": "made by FtkvmError.from_json for a code that is newer than this program"}
RETIRED = frozenset({"FTKVM-220", "FTKVM-503"})
"""Codes that nothing says any more: they stay in docs/codes.txt, and are never given to another message."""
EXCEPTIONS_WITHOUT_CODE = {"Exception", "RuntimeError", "SystemExit", "ClickException", "UsageError", "Abort"}


def _sources(*parts: str) -> list[Path]:
    return [path for part in parts for path in (ROOT / part).rglob("*.py") if path.name != "catalogue.py"]


def test_every_code_is_used() -> None:
    said = {code for path in _sources("ftkvm", "hostprep") if path.name != "guide.py"
            for code in re.findall(r"FTKVM-\d{3}", path.read_text())}  # fmt: skip
    assert set(CATALOGUE) - said - set(NOT_RAISED) == set()
    assert not RETIRED & (said | set(CATALOGUE))


def test_no_code_is_given_twice() -> None:
    text = (ROOT / "ftkvm" / "catalogue.py").read_text()
    given = re.findall(r'_m\(\s*"(FTKVM-\d{3})"', text)
    assert len(given) == len(CATALOGUE)
    assert sorted(given) == sorted(set(given))


def test_no_code_changes_its_meaning() -> None:
    """docs/codes.txt notes what each code says. A text that only reads better is corrected there by hand."""
    noted = dict(line.split("\t", 1) for line in (ROOT / "docs" / "codes.txt").read_text().splitlines())
    assert set(noted) >= RETIRED
    meant = {code: meaning for code, meaning in noted.items() if code not in RETIRED}
    now = {code: " ".join(entry.text.split()) for code, entry in CATALOGUE.items()}
    assert now == meant, "a new code: run python3 docs/gen.py; a code that says something else needs a code of its own"


def test_what_a_user_sees_has_a_code() -> None:
    """No command, agent or preparation raises something that would be shown without a code, or prints an error."""
    found = []
    for path in _sources("ftkvm/cli", "ftkvm/agent", "ftkvm/api", "hostprep"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                called = node.exc.func
                name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
                if name in EXCEPTIONS_WITHOUT_CODE:
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert [each for each in found if not each.startswith("ftkvm/agent/local_vm.py")] == []  # caught in that file
    assert len(found) <= 2
