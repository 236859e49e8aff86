"""`ftkvm cluster upgrade-plan` beside its steps: what is kept of a plan that was begun, and what people are told."""

import json
from pathlib import Path

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.upgrade import Course, CourseFile
from ftkvm.core.upgrade import FtVm, plan
from ftkvm.home import Home


def course() -> Course:
    steps = plan(["h1", "h2", "h3"], [FtVm("vm1", "h2", "h3", 5.0)], 1)
    return Course(list(steps), {"vm1": 619.0}, 4, {"vm1": 12.25})


def test_a_plan_on_its_way_is_kept_and_forgotten(tmp_path: Path) -> None:
    kept = CourseFile(Home(tmp_path))
    assert kept.read() is None
    kept.write(course())
    assert kept.read() == Course(course().steps, {"vm1": 619.0}, 4, {"vm1": 12.2})
    kept.forget()
    assert kept.read() is None
    kept.forget()


@pytest.mark.parametrize("text", ["", "{}", "[]", json.dumps({**course().to_json(), "steps": [{"do": "burn"}]})])
def test_one_that_cannot_be_understood_is_named(tmp_path: Path, text: str) -> None:
    kept = CourseFile(Home(tmp_path))
    kept.path.write_text(text)
    with pytest.raises(FtkvmError) as caught:
        kept.read()
    assert caught.value.code == "FTKVM-604"
    assert kept.path.read_text() == text
