"""/opt/ftkvm: what a stranger put there is told from ours, and left; ours is never lost half-way."""

from dataclasses import replace
from pathlib import Path

import pytest

from hostprep import package
from hostprep.journal import take_back
from hostprep.place import remove_program, strangers
from hostprep.plan import Wish, journal_step, plan
from hostprep.step import Step
from tests.unit.test_hostprep import Local, _state, good, wish

DIGEST = "0" * 64


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "opt/ftkvm"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def put(directory: Path, manifest: str = DIGEST) -> None:
    directory.mkdir(parents=True)
    (directory / "tool").write_text(manifest)
    if manifest:
        (directory / ".manifest").write_text(f"{manifest}\n")


def found(program: Path, journal: Path) -> list[str]:
    told = Local().run(strangers(str(program), str(journal)))
    assert (told.status, told.stderr) == (0, "")
    return [Path(line).name for line in told.stdout.split()]


@pytest.mark.parametrize("known", [True, False])
def test_nothing_and_ours_are_no_strangers(program: Path, journal: Path, known: bool) -> None:
    if known:
        journal.mkdir()
    assert found(program, journal) == []
    for name in ("ftkvm", "ftkvm.new", "ftkvm.before"):
        put(program.with_name(name))
    assert found(program, journal) == []


@pytest.mark.parametrize("manifest", ["", "1.2.3", f"{DIGEST}0"])
def test_a_stranger_is_told_whether_there_is_a_journal_or_not(program: Path, journal: Path, manifest: str) -> None:
    put(program, manifest)
    assert found(program, journal) == ["ftkvm"]
    journal.mkdir()
    assert found(program, journal) == ["ftkvm"]


def test_a_file_and_a_link_are_strangers(program: Path, journal: Path) -> None:
    """A link to ours, too: the operator made it, and it would be replaced."""
    put(program.with_name("elsewhere"))
    program.symlink_to("elsewhere")
    program.with_name("ftkvm.new").symlink_to("nowhere")
    program.with_name("ftkvm.before").write_text("theirs")
    assert found(program, journal) == ["ftkvm", "ftkvm.new", "ftkvm.before"]


def test_what_is_half_made_beside_ours_is_ours_since_there_is_a_journal(program: Path, journal: Path) -> None:
    for name in ("ftkvm.new", "ftkvm.before"):
        put(program.with_name(name), "")
    assert found(program, journal) == ["ftkvm.new", "ftkvm.before"]
    journal.mkdir()
    assert found(program, journal) == []


def test_taking_back_leaves_a_strangers_and_says_so(program: Path, journal: Path) -> None:
    Local().run(journal_step(str(journal)).command)
    put(program, "")
    put(program.with_name("ftkvm.new"), "")
    before = _state(program)
    for dry_run in (True, False):
        done = take_back(Local(), str(journal), program=str(program), units=(), dry_run=dry_run)
        assert done.removed == []
        assert _state(program) == before
    assert not program.with_name("ftkvm.new").exists()
    assert not journal.exists()


def test_removing_ours_leaves_nothing_that_looks_like_a_strangers(program: Path, journal: Path) -> None:
    """Cut off before the last command: it is out of its place already."""
    put(program)
    journal.mkdir()
    Local().run(remove_program(str(program)).rpartition(";")[0])
    assert not program.exists()
    assert found(program, journal) == []
    Local().run(remove_program(str(program)))
    assert list(program.parent.iterdir()) == []


def package_step(program: Path, made: Wish) -> Step:
    """The plan's own step, in a directory of the test's."""
    (step,) = (step for step in plan(good(), made) if step.name == "package")
    here = str(program)
    texts = {part: getattr(step, part).replace("/opt/ftkvm", here) for part in ("command", "proof", "undo")}
    return replace(step, **texts)


@pytest.mark.parametrize("reached", ["not unpacked", "moved away", "done"])
def test_the_program_of_before_is_there_again_however_far_the_new_one_came(program: Path, reached: str) -> None:
    step = package_step(program, replace(wish(), package=package.build()))
    put(program)
    before = _state(program.parent)
    if reached == "not unpacked":
        assert Local().run(step.command, b"no tar").status != 0
    elif reached == "moved away":
        program.rename(program.with_name("ftkvm.before"))
    else:
        assert Local().run(step.command, step.stdin).status == 0
        assert Local().run(step.proof).status == 0
    assert Local().run(step.undo).status == 0
    assert _state(program.parent) == before
