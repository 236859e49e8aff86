"""The kinds of fault a protected VM must live through: each strikes, and returns how to mend what it broke."""

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import faults, lab
from ftkvm.lab.host import Host

if TYPE_CHECKING:
    from ftkvm.lab.trials import Round

FREEZE_S = 10.0
HANG_S = 6.0
CUT_S = 4.0
"""All in the hosts' time."""

Mend = Callable[[], None]
Strike = Callable[["Round", dict[str, Any]], Mend]


class Mending:
    """Mends once, at the time the fault asks for or else at the end, whatever happened in between."""

    def __init__(self, mend: Mend) -> None:
        self._mend: Mend | None = mend

    def now(self) -> None:
        mend, self._mend = self._mend, None
        if mend is not None:
            mend()

    def __enter__(self) -> "Mending":
        return self

    def __exit__(self, *_: object) -> None:
        self.now()


def _crash(name: str) -> Mend:
    faults.crash(name)
    return lambda: faults.start(name)


def crash_primary(_round: "Round", pair: dict[str, Any]) -> Mend:
    """Power loss of the host the VM runs on."""
    return _crash(pair["host"])


def crash_secondary(_round: "Round", pair: dict[str, Any]) -> Mend:
    """Power loss of the host of the second copy."""
    return _crash(pair["secondary_host"])


def _nothing() -> None:
    return None


def kill_primary(this: "Round", pair: dict[str, Any]) -> Mend:
    """SIGKILL to the QEMU that answers."""
    faults.kill(pair["host"], f"qemu:{this.vm}")
    return _nothing


def kill_secondary(this: "Round", pair: dict[str, Any]) -> Mend:
    """SIGKILL to the QEMU that follows."""
    faults.kill(pair["secondary_host"], f"qemu:{this.vm}")
    return _nothing


def _freeze(this: "Round", name: str) -> Mend:
    faults.freeze(name, watchdog_too=True)  # else it ends the host before the thaw, which is another fault
    began = time.monotonic()

    def thaw() -> None:
        this.stage.sleep(FREEZE_S, began)
        faults.thaw(name)

    return thaw


def freeze_primary(this: "Round", pair: dict[str, Any]) -> Mend:
    """The primary's host stands still for 10 s: a zombie that wakes up when its VM has long gone on."""
    return _freeze(this, pair["host"])


def freeze_secondary(this: "Round", pair: dict[str, Any]) -> Mend:
    return _freeze(this, pair["secondary_host"])


def cut_ft(this: "Round", pair: dict[str, Any]) -> Mend:
    """The cable of one side, drawn by lot, out of the FT network; both live."""
    return _cut(this, this.chance.choice([pair["host"], pair["secondary_host"]]), ("ft",))


def cut_ft_and_management(this: "Round", pair: dict[str, Any]) -> Mend:
    """The same side out of both networks: nobody can tell it anything."""
    return _cut(this, this.chance.choice([pair["host"], pair["secondary_host"]]), ("ft", "management"))


def cut_ft_secondary_wins(this: "Round", pair: dict[str, Any]) -> Mend:
    """The primary out of the FT network while its datastore hangs: it lives and talks on, and cannot win."""
    primary = pair["host"]
    mend_storage = _storage(this, primary, "hang")
    heal = _cut(this, primary, ("ft",))

    def mend() -> None:
        heal()
        mend_storage()

    return mend


def mute_secondary(this: "Round", pair: dict[str, Any]) -> Mend:
    """The second copy's guest says nothing any more, as one that hangs after every checkpoint; all else goes on.

    A filter-buffer in its QEMU keeps each frame for an hour. (`set_link` would not do: the next checkpoint puts the
    link back. Its frames dropped on the way stall the checkpoints, which is another trouble.)
    """
    keep = {"qom-type": "filter-buffer", "id": "mute", "netdev": "hostnet0", "queue": "rx", "interval": 3_600_000_000}
    command = json.dumps({"execute": "object-add", "arguments": keep})
    answer = this.stage.host(pair["secondary_host"]).run(["virsh", "qemu-monitor-command", this.vm, command])
    if "error" in json.loads(answer):
        raise FtkvmError("FTKVM-709", command=command, detail=answer)
    return _nothing


def _cut(this: "Round", name: str, networks: tuple[str, ...]) -> Mend:
    for network in networks:
        faults.cut(name, network)
    began = time.monotonic()

    def heal() -> None:
        this.stage.sleep(CUT_S, began)
        for network in networks:
            faults.heal(name, network)

    return heal


def _storage(this: "Round", name: str, how: str) -> Mend:
    faults.storage(name, how)
    began = time.monotonic()

    def mend() -> None:
        this.stage.sleep(HANG_S, began)
        if lab.storage_state(this.stage.host(name)) != "ok":
            faults.storage(name, "ok")

    return mend


def hang_storage_primary(this: "Round", pair: dict[str, Any]) -> Mend:
    """Every access to the datastore blocks on the primary's host."""
    return _storage(this, pair["host"], "hang")


def hang_storage_secondary(this: "Round", pair: dict[str, Any]) -> Mend:
    return _storage(this, pair["secondary_host"], "hang")


def lose_storage_primary(this: "Round", pair: dict[str, Any]) -> Mend:
    """Every access to the datastore is an error on the primary's host."""
    return _storage(this, pair["host"], "fail")


def lose_storage_secondary(this: "Round", pair: dict[str, Any]) -> Mend:
    return _storage(this, pair["secondary_host"], "fail")


def agent_killed_then_crash(this: "Round", pair: dict[str, Any]) -> Mend:
    """The agents of one or both hosts of the pair die, and 50 ms later the primary's host does."""
    sides = [pair["host"], pair["secondary_host"]]
    for name in this.chance.choice([sides, sides[:1], sides[1:]]):
        with contextlib.suppress(FtkvmError):
            faults.kill(name, "ftkvm-agent")
    time.sleep(0.05)
    return _crash(pair["host"])


def libvirtd_hung_then_kill(this: "Round", pair: dict[str, Any]) -> Mend:
    """libvirtd stands still on both hosts of the pair, then the QEMU that answers is killed: FT must not need it."""
    found = [pid for side in ("host", "secondary_host") for pid in Host(pair[side]).unit_pids("libvirtd.service")]
    # QEMU is in the unit's control group as well here
    pids = [pid for pid in found if Path(f"/proc/{pid}/comm").read_text().strip() == "libvirtd"]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1.0)
    faults.kill(pair["host"], f"qemu:{this.vm}")

    def mend() -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    return mend


FAULTS: dict[str, Strike] = {
    strike.__name__.replace("_", "-"): strike
    for strike in (
        crash_primary,
        crash_secondary,
        kill_primary,
        kill_secondary,
        freeze_primary,
        freeze_secondary,
        cut_ft,
        cut_ft_and_management,
        cut_ft_secondary_wins,
        mute_secondary,
        hang_storage_primary,
        hang_storage_secondary,
        lose_storage_primary,
        lose_storage_secondary,
        agent_killed_then_crash,
        libvirtd_hung_then_kill,
    )
}

NEEDS_MENDING = frozenset({"cut-ft", "cut-ft-and-management", "cut-ft-secondary-wins", "libvirtd-hung-then-kill"})
"""Mended before the VM is waited for: with the winner itself cut off there is nobody to be its secondary."""


def draw(count: int, seed: int, kinds: list[str] | None = None) -> list[str]:
    """``count`` kinds of fault in random order; every kind comes once before any comes again."""
    chosen = random.Random(seed)
    bag: list[str] = []
    drawn: list[str] = []
    while len(drawn) < count:
        if not bag:
            bag = list(kinds or FAULTS)
            chosen.shuffle(bag)
        drawn.append(bag.pop())
    return drawn
