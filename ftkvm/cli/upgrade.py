"""``ftkvm cluster upgrade-plan``: the rolling upgrade of all hosts, told beforehand, done, and measured (HA-24)."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import click

from ftkvm.adapters.local_file import remove_durably
from ftkvm.adapters.pki import write_private
from ftkvm.catalogue import FtkvmError
from ftkvm.cli.client import AgentClient
from ftkvm.cli.hosts import host_trouble
from ftkvm.cli.output import Reporter, output_option
from ftkvm.cli.ssh import SshAccess, ssh_options
from ftkvm.core import upgrade
from ftkvm.core.upgrade import Do, FtVm, Times, UpgradeStep
from ftkvm.home import Home
from ftkvm.ports import Json

BACK_WITHIN_S = 120
_SAMPLE_S = 0.5
_UNKNOWN_PROTECT_S = 5.0
"""For a VM whose last protecting was not measured by an agent that still lives."""

_NAMED = 3
"""So many lacks of room are told of one plan."""

Upgrade = Callable[[str], None]
"""Upgrades one host, which runs no VM, and returns when it is done."""


@dataclass
class Course:
    """A plan on its way, as it is kept in ``upgrade.json``. ``measured``: seconds each VM was seen unprotected."""

    steps: list[UpgradeStep]
    predicted: dict[str, float]
    done: int = 0
    measured: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> Json:
        return {
            "steps": [step.to_json() for step in self.steps], "done": self.done, "predicted_s": self.predicted,
            "measured_s": {name: round(seconds, 1) for name, seconds in self.measured.items()},
        }  # fmt: skip

    @classmethod
    def from_json(cls, doc: Json) -> "Course":
        steps = [UpgradeStep.from_json(each) for each in doc["steps"]]
        return cls(steps, dict(doc["predicted_s"]), int(doc["done"]), dict(doc["measured_s"]))


class CourseFile:
    """Where the operator's seat keeps the plan that is under way."""

    def __init__(self, home: Home) -> None:
        self.path = home.directory / "upgrade.json"

    def read(self) -> Course | None:
        """:raises FtkvmError: FTKVM-611, it cannot be understood"""
        try:
            return Course.from_json(json.loads(self.path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FtkvmError("FTKVM-611", path=self.path, detail=str(error) or type(error).__name__) from error

    def write(self, course: Course) -> None:
        write_private(self.path, (json.dumps(course.to_json(), indent=1) + "\n").encode())

    def forget(self) -> None:
        remove_durably(self.path)


@click.command(name="upgrade-plan")
@click.option(
    "--execute", is_flag=True, help="Do it, after you have agreed; run again, it goes on where it was cut off."
)
@click.option("--by-hand", is_flag=True, help="Wait at each host until you have upgraded it; otherwise it is given the "
              "agent of this version, as by `ftkvm host add`.")  # fmt: skip
@click.option("--upgrade-minutes", default=10.0, show_default=True, type=click.FloatRange(0),
              help="What the upgrade of one host is reckoned with.")  # fmt: skip
@click.option("--yes", is_flag=True, help="Do not ask before the first step.")
@click.option("--forget", is_flag=True, help="Forget a plan that was begun; hosts and VMs stay as they are.")
@ssh_options
@output_option
def upgrade_plan(
    execute: bool, by_hand: bool, upgrade_minutes: float, yes: bool, forget: bool, ssh: SshAccess, output: str
) -> None:
    """Show how all hosts are upgraded one after the other, and how long each VM with FT on will be unprotected.

    With --execute it is done, and the unprotected time is measured. Both copies of a VM run on the same version
    throughout (guide page 37).
    """
    reporter, client = Reporter(output), AgentClient()
    kept = CourseFile(client.home)
    course = kept.read()
    if forget:
        kept.forget()
        reporter.result({"forgotten": course is not None}, "There was no plan." if course is None else "Forgotten.")
        return
    if course is None:
        course = make_course(client, Times(60 * upgrade_minutes))
    elif not execute:
        raise FtkvmError("FTKVM-662", done=course.done, steps=len(course.steps), path=kept.path)
    if not execute:
        _show(course, reporter)
        return
    if not yes:
        if not reporter.json:
            _show(course, reporter)
        click.confirm("Go on?", abort=True, err=True)

    def put_agent(host: str) -> None:
        from hostprep.prepare import prepare  # paramiko takes a while to import

        with reporter.progress(f"host {host}") as show:
            prepare(client.home, ssh.target(host), show)

    def ask(host: str) -> None:
        click.confirm(f"Host {host} runs no VM. Is it upgraded, and up again?", abort=True, err=True)

    Executor(client, reporter, kept, course, ask if by_hand else put_agent).run()
    _show(course, reporter)


def make_course(client: AgentClient, times: Times) -> Course:
    """A plan for the cluster as it is.

    :raises FtkvmError: FTKVM-661 why none can begin, FTKVM-666 there is not the room for it
    """
    hosts = {str(row["name"]): row for row in client.call("GET", "/v1/hosts")["hosts"]}
    vms = [vm for vm in client.call("GET", "/v1/status")["vms"] if vm["ft"] and not vm["ft_disabled"] and vm["host"]]
    reasons = [f"host {name} is not well ({host_trouble(row)})" for name, row in hosts.items() if host_trouble(row)]
    reasons += [f"VM {vm['name']} is not protected" for vm in vms if _pair(vm).get("state") != "protected"]
    if len(hosts) < upgrade.FEWEST:
        reasons.append("the VMs of its only host can go nowhere")
    if reasons:
        raise FtkvmError("FTKVM-661", reasons="; ".join(reasons))
    protected = [
        FtVm(str(vm["name"]), str(vm["host"]), str(_pair(vm)["secondary_host"]),
             float((_pair(vm).get("protect") or {}).get("protect_s") or _UNKNOWN_PROTECT_S)) for vm in vms
    ]  # fmt: skip
    copies = Counter(host for vm in protected for host in (vm.primary, vm.secondary))
    empty = [name for name, row in hosts.items() if row.get("maintenance") and not row.get("vms")]
    coordinator = client.call("GET", "/v1/cluster/status", timeout_s=15.0)["coordinator"]
    order = upgrade.order(list(hosts), copies, coordinator, empty)
    steps, short = upgrade.plan(order, protected, upgrade.MOST_TOGETHER), list[Json]()
    for together in range(upgrade.MOST_TOGETHER, 0, -1):
        steps = upgrade.plan(order, protected, together)
        short = _without_room(client, steps)
        if not short:
            return Course(list(steps), upgrade.unprotected_s(steps, protected, times))
    raise FtkvmError("FTKVM-666", steps=len({row["number"] for row in short}), of=len(steps), reasons=_named(short))


def _without_room(client: AgentClient, steps: Sequence[UpgradeStep]) -> list[Json]:
    """The steps that have no room, with the sums. Agents of an older version do not tell: their steps refuse then."""
    asked = {"steps": [{"do": step.do.value, "subject": step.subject, "host": step.host} for step in steps]}
    try:
        return list(client.call("POST", "/v1/cluster/upgrade-room", asked)["short"])
    except FtkvmError as error:
        if error.code != "FTKVM-901":
            raise
        click.echo("upgrade: the agents are of an older version; whether all has room is not looked at", err=True)
        return []


def _named(short: Sequence[Json], before: int = 0) -> str:
    """The first of them; ``before``: so many steps of the plan come before those that were asked of."""
    more = f"; and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
    return "; ".join(f"step {before + row['number']} ({row['text']})" for row in short[:_NAMED]) + more


def _pair(vm: Json) -> dict[str, Any]:
    return dict(vm.get("pair") or {})


class Executor:
    """Does the steps that are left. Each asks first whether it is done: one that was cut off has an unknown outcome."""

    def __init__(
        self, client: AgentClient, reporter: Reporter, kept: CourseFile, course: Course, host: Upgrade
    ) -> None:
        self._client, self._reporter, self._kept, self._course, self._host = client, reporter, kept, course, host

    def run(self) -> None:
        """:raises FtkvmError: FTKVM-663 a step failed, FTKVM-667 one has no room; the rest is kept"""
        course, steps = self._course, len(self._course.steps)
        self._kept.write(course)
        with Watch(self._client.home, course.predicted, course.measured):
            for number in range(course.done + 1, steps + 1):
                step = course.steps[number - 1]
                click.echo(f"upgrade: {number}/{steps} {step.text}", err=True)
                self._require_room(number)
                try:
                    self._do(step)
                except FtkvmError as error:
                    raise FtkvmError(
                        "FTKVM-663",
                        number=number,
                        steps=steps,
                        text=step.text,
                        detail=str(error),
                        off=self._off(number),
                    ) from error
                finally:
                    self._kept.write(course)
                course.done = number
                self._kept.write(course)
        self._kept.forget()

    def _require_room(self, number: int) -> None:
        """Nothing is begun that has no room, up to where every VM has FT again.

        :raises FtkvmError: FTKVM-667 with the sums
        """
        first = number - 1
        if self._course.steps[first].do in (Do.UPGRADE, Do.EXIT):  # they need none, and the host may be down
            return
        ahead = self._course.steps[first : upgrade.stretch(self._course.steps, first)]
        short = _without_room(self._client, ahead)
        if short:
            sums = _named(short, first)
            raise FtkvmError("FTKVM-667", number=number, text=ahead[0].text, reasons=sums, off=self._off(number))

    def _off(self, number: int) -> str:
        """Which VMs the steps so far have left without FT."""
        off = dict.fromkeys(step.subject for step in self._course.steps[: number - 1] if step.do is Do.DISABLE)
        for step in self._course.steps[: number - 1]:
            if step.do is Do.ENABLE:
                off.pop(step.subject, None)
        return f"{', '.join(off)} without FT" if off else "every VM with FT on has it"

    def _do(self, step: UpgradeStep) -> None:
        match step.do:
            case Do.ENTER:
                self._operation(f"/v1/hosts/{quote(step.subject)}/maintenance", {"on": True})
            case Do.UPGRADE:
                self._host(step.subject)
                self._wait_well(step.subject)
            case Do.EXIT:
                if self._row(step.subject).get("maintenance"):
                    self._client.call("POST", f"/v1/hosts/{quote(step.subject)}/maintenance", {"on": False}, 30.0)
            case Do.DISABLE:
                if not self._vm(step.subject)["ft_disabled"]:
                    self._operation(f"/v1/vms/{quote(step.subject)}/ft/disable", {})
            case Do.MIGRATE:
                vm = self._vm(step.subject)
                if vm["host"] and vm["host"] != step.host:  # one that was switched off meanwhile needs no move
                    self._operation(f"/v1/vms/{quote(step.subject)}/migrate", {"to": step.host})
            case Do.ENABLE:
                vm = self._vm(step.subject)
                if vm["ft_disabled"] or _pair(vm).get("state") != "protected":
                    self._operation(f"/v1/vms/{quote(step.subject)}/ft/enable", {"secondary": step.host})

    def _operation(self, path: str, body: Json) -> None:
        self._client.wait(self._client.call("POST", path, body, 40.0), self._reporter)

    def _vm(self, name: str) -> Json:
        return dict(self._client.call("GET", f"/v1/status?vm={quote(name)}")["vms"][0])

    def _row(self, host: str) -> Json:
        rows = self._client.call("GET", "/v1/hosts")["hosts"]
        return next((dict(row) for row in rows if row["name"] == host), {"answers": False})

    def _wait_well(self, host: str) -> None:
        deadline = time.monotonic() + BACK_WITHIN_S
        while trouble := host_trouble(self._row(host)):
            if time.monotonic() > deadline:
                raise FtkvmError("FTKVM-664", host=host, timeout_s=BACK_WITHIN_S, detail=trouble)
            time.sleep(1.0)


class Watch:
    """Counts, beside the work, how long each VM is seen unprotected; one that nobody tells of goes on as it was."""

    def __init__(self, home: Home, names: Iterable[str], measured: dict[str, float]) -> None:
        self._client, self._measured = AgentClient(home), measured
        self._exposed = dict.fromkeys(names, False)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="protection", daemon=True)

    def __enter__(self) -> None:
        self._measured.update({name: self._measured.get(name, 0.0) for name in self._exposed})
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(30)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._ending.wait(_SAMPLE_S):
            try:
                vms = self._client.call("GET", "/v1/status", timeout_s=5.0)["vms"]
            except FtkvmError:
                vms = []
            now = time.monotonic()
            for vm in vms:
                if vm["name"] in self._exposed and vm.get("pair"):
                    off = bool(vm["ft_disabled"]) or vm["pair"].get("state") != "protected"
                    self._exposed[vm["name"]] = off
            for name, off in self._exposed.items():
                self._measured[name] += (now - last) * off
            last = now


def _show(course: Course, reporter: Reporter) -> None:
    if reporter.json:
        reporter.document(course.to_json())
        return
    rows = [(number, "done" if number <= course.done else "", step.text) for number, step in enumerate(course.steps, 1)]
    reporter.table(("STEP", "", "WHAT"), rows, "nothing to do")
    exposed = [(name, f"{seconds:.0f} s", f"{course.measured[name]:.1f} s" if name in course.measured else None)
               for name, seconds in course.predicted.items()]  # fmt: skip
    reporter.table(("VM WITH FT ON", "UNPROTECTED FOR ABOUT", "MEASURED"), exposed, "No VM has FT on.")
