"""Live migration and maintenance mode on real hosts: a client's TCP connection lives through both."""

import json
from collections.abc import Iterator

import pytest

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import soak, trials
from ftkvm.lab.client import CounterClient, GapProbe
from ftkvm.lab.guest.domain import Guest
from ftkvm.lab.host import Host
from ftkvm.lab.stage import Stage
from ftkvm.lab.system import wait_for

pytestmark = pytest.mark.lab

GAP_LIMIT_MS = 20_000
"""Not a promise: only a sign that something hung."""


@pytest.fixture(scope="module")
def guest(stage: Stage) -> Iterator[Guest]:
    made = soak.make_vm(stage, "mig1", "1G", print)
    yield made
    trials.destroy(stage, made.name)


def place(stage: Stage, guest: Guest) -> str:
    return str(stage.vm_status(guest.name)["host"])


def running_on(stage: Stage, guest: Guest) -> list[str]:
    """Hosts with a QEMU of the VM, asked of each libvirt."""
    listed = {name: Host(name).run(["virsh", "list", "--all", "--name"]).split() for name in stage.hosts}
    return [name for name, domains in listed.items() if guest.name in domains]


def goes_on(counter: CounterClient) -> None:
    """The counter's connection brings new numbers, and left none out."""
    beyond = counter.last + 20
    wait_for(f"the counter to pass {beyond}", lambda: counter.last > beyond, 30)
    assert counter.gaps == 0


def test_there_and_back(stage: Stage, guest: Guest) -> None:
    with CounterClient(guest.address) as counter, GapProbe(guest.address) as probe:
        home = place(stage, guest)
        away = next(name for name in stage.hosts if name != home)
        for target in (away, home):
            stage.ftkvm("vm", "migrate", guest.name, "--to", target)
            assert place(stage, guest) == target
            assert running_on(stage, guest) == [target]
            goes_on(counter)
        print(f"longest pause {probe.longest_pause_ms():.0f} ms")
        assert probe.longest_pause_ms() < GAP_LIMIT_MS


def test_to_the_host_it_runs_on_is_refused(stage: Stage, guest: Guest) -> None:
    with pytest.raises(FtkvmError, match="FTKVM-650"):
        stage.ftkvm("vm", "migrate", guest.name, "--to", place(stage, guest))


def test_maintenance_moves_everything_off(stage: Stage, guest: Guest) -> None:
    home = place(stage, guest)
    with CounterClient(guest.address) as counter:
        stage.ftkvm("host", "maintenance", "enter", home)
        try:
            assert place(stage, guest) != home
            goes_on(counter)
            shown = {row["name"]: row for row in json.loads(stage.ftkvm("host", "list", "--output", "json"))}
            assert [name for name, row in shown.items() if row["maintenance"]] == [home]
            with pytest.raises(FtkvmError, match="FTKVM-651"):
                stage.ftkvm("vm", "migrate", guest.name, "--to", home)
        finally:
            stage.ftkvm("host", "maintenance", "exit", home)
        stage.ftkvm("vm", "migrate", guest.name, "--to", home)
        assert place(stage, guest) == home


def test_a_dead_target_leaves_the_vm_where_it_is(stage: Stage, guest: Guest) -> None:
    home = place(stage, guest)
    away = next(name for name in stage.hosts if name != home)
    with CounterClient(guest.address) as counter:
        Host(away).run(["systemctl", "stop", "ftkvm-agent"])
        try:
            with pytest.raises(FtkvmError, match="FTKVM-651"):
                stage.ftkvm("vm", "migrate", guest.name, "--to", away)
        finally:
            Host(away).run(["systemctl", "start", "ftkvm-agent"])
        assert running_on(stage, guest) == [home]
        goes_on(counter)


def test_unregister_gives_it_back(stage: Stage, guest: Guest) -> None:
    home = place(stage, guest)
    with pytest.raises(FtkvmError, match="FTKVM-660"):
        stage.ftkvm("vm", "unregister", guest.name, "--host", home)
    stage.ftkvm("vm", "stop", guest.name, "--force")
    stage.ftkvm("vm", "unregister", guest.name, "--host", home)
    with pytest.raises(FtkvmError, match="FTKVM-101"):
        stage.ftkvm("status", guest.name)
    assert running_on(stage, guest) == [home]
    stage.ftkvm("vm", "register", guest.name, "--host", home)
    assert stage.vm_status(guest.name)["state"] == "off"
