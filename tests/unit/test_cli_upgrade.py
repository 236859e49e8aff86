"""`ftkvm cluster upgrade-plan` beside its steps: what is kept of a plan that was begun, and what people are told."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.cli.output import Reporter
from ftkvm.cli.upgrade import Course, CourseFile, Executor, make_course
from ftkvm.core.upgrade import Do, FtVm, Times, UpgradeStep, plan
from ftkvm.home import ClusterFile, Home
from ftkvm.ports import Json


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
    assert caught.value.code == "FTKVM-611"
    assert kept.path.read_text() == text


@dataclass
class Cluster:
    """What an agent answers of a cluster with one protected VM. ``short``: which of the steps have no room."""

    hosts: Sequence[str]
    home: Home
    short: Callable[[list[UpgradeStep]], list[int]] = lambda steps: []
    done: list[str] = field(default_factory=list)
    old: bool = False

    def call(self, method: str, path: str, body: Json | None = None, timeout_s: float = 0) -> Json:
        if path == "/v1/hosts":
            return {"hosts": [{"name": name, "answers": True, "error": None, "datastore": "ok", "vms": 1}
                              for name in self.hosts]}  # fmt: skip
        if path.startswith("/v1/status"):
            pair = {"state": "protected", "secondary_host": self.hosts[1]}
            return {"vms": [{"name": "vm1", "ft": True, "ft_disabled": False, "host": self.hosts[0], "pair": pair}]}
        if path == "/v1/cluster/status":
            return {"coordinator": self.hosts[-1]}
        if path == "/v1/cluster/upgrade-room":
            if self.old:
                raise FtkvmError("FTKVM-901", detail="404 Not Found")
            steps = [UpgradeStep(Do(each["do"]), each["subject"], each["host"]) for each in cast(Any, body)["steps"]]
            return {
                "short": [{"number": n, "vm": "vm1", "text": f"{steps[n - 1].text}: sum"} for n in self.short(steps)]
            }
        self.done.append(path)
        return {"id": "x"}

    def wait(self, operation: Json, reporter: Reporter) -> Json:
        return operation


def enters(steps: list[UpgradeStep], *hosts: str) -> list[int]:
    return [number for number, step in enumerate(steps, 1) if step.do is Do.ENTER and step.subject in hosts]


def test_a_plan_without_room_does_not_begin(tmp_path: Path) -> None:
    cluster = Cluster(("h1", "h2"), Home(tmp_path), lambda steps: enters(steps, "h2"))
    with pytest.raises(FtkvmError) as caught:
        make_course(cast(Any, cluster), Times(600))
    assert str(caught.value) == ("FTKVM-666: no upgrade of the hosts can begin: 1 of its 10 steps have no room: "
                                 "step 7 (host h2: maintenance, its VMs move away: sum)")  # fmt: skip
    cluster.short = lambda steps: []
    assert len(make_course(cast(Any, cluster), Times(600)).steps) == 10  # two hosts are enough


def test_four_hosts_are_emptied_one_by_one_if_there_is_not_the_room_for_two(tmp_path: Path) -> None:
    def short(steps: list[UpgradeStep]) -> list[int]:
        return [2] if [step.do for step in steps[:2]] == [Do.ENTER, Do.ENTER] else []

    cluster = Cluster(("h1", "h2", "h3", "h4"), Home(tmp_path), short)
    assert [step.do for step in make_course(cast(Any, cluster), Times(600)).steps[:3]] == [
        Do.ENTER,
        Do.UPGRADE,
        Do.EXIT,
    ]
    cluster.short = lambda steps: []
    assert [step.do for step in make_course(cast(Any, cluster), Times(600)).steps[:2]] == [Do.ENTER, Do.ENTER]


def test_agents_that_do_not_know_of_room_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_course(cast(Any, Cluster(("h1", "h2"), Home(tmp_path), old=True)), Times(600)).steps
    assert "is not looked at" in capsys.readouterr().err


def test_a_step_whose_stretch_has_no_room_is_not_begun(tmp_path: Path) -> None:
    """Three hosts: the VM would stay without FT until h2 is upgraded, so it is not even disabled. Steps 1 to 3 are."""
    cluster = Cluster(("h1", "h2", "h3"), Home(tmp_path))
    nobody = {"h1": {"management": "127.0.0.1", "ft": "127.0.0.1", "migration": "127.0.0.1", "api_port": 1}}
    cluster.home.create(ClusterFile("c", "", "/srv", "127.0.0.0/8", "127.0.0.0/8", "127.0.0.0/8", ["br"], nobody))
    kept, upgraded = CourseFile(cluster.home), list[str]()
    course = make_course(cast(Any, cluster), Times(600))
    texts = [step.text for step in course.steps]
    at = next(index for index, step in enumerate(course.steps) if step.do is Do.ENTER and index)
    cluster.short = lambda steps: enters(steps, course.steps[at].subject) if steps[0].do is Do.DISABLE else []
    with pytest.raises(FtkvmError) as caught:
        Executor(cast(Any, cluster), Reporter("json"), kept, course, upgraded.append).run()
    assert caught.value.code == "FTKVM-667"
    assert f"step 4 of the upgrade is not begun ({texts[3]})" in caught.value.text
    assert f"step {at + 1} ({texts[at]}: sum)" in caught.value.text
    assert upgraded == [course.steps[0].subject]
    assert not [path for path in cluster.done if path.endswith("/ft/disable")]
    again = kept.read()
    assert again is not None and again.done == 3
