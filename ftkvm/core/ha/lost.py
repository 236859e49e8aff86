"""Which VMs are wanted and run nowhere, and what proves it. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ftkvm.core.ha import liveness as living
from ftkvm.core.ha.desk import Desk
from ftkvm.core.ha.liveness import Liveness
from ftkvm.core.ha.model import FtEpoch, OwnerWhy, Priority, Vm
from ftkvm.core.ha.windows import Windows

_Gone = Callable[[str, str], str | None]
FREE_AFTER_MS = 30_000
"""A VM that is wanted and was stopped cleanly is on its way up by somebody's hand; after that it is ours."""
PAIR_DECIDES_MS = 60_000
"""So long a pair's secondary is given to go live by itself when its primary is gone."""


@dataclass(frozen=True)
class Lost:
    """``proof``: why it can be started, empty while it cannot; then ``why_not`` says why. ``hosts``: who may run it.

    ``after_ms``: it will be proven by the mere passing of time.
    """

    vm: Vm
    proof: str
    why_not: str
    hosts: tuple[str, ...] = ()
    since_ms: int = 0
    after_ms: int | None = None


def is_wanted(vm: Vm) -> bool:
    """Whether HA is to see that it runs."""
    return vm.power and vm.priority is not Priority.DISABLED


def known_since(before: Mapping[str, tuple[int, int]], vms: tuple[Vm, ...], now: int) -> dict[str, tuple[int, int]]:
    """The number of each VM's newest owner file, and since when that is known."""
    fresh = {vm.uuid: (vm.owner.number, now) for vm in vms}
    return {uuid: before[uuid] if before.get(uuid, (-1, 0))[0] == each[0] else each for uuid, each in fresh.items()}


def lost(
    vms: tuple[Vm, ...], desk: Desk, windows: Windows, liveness: Liveness, over: frozenset[tuple[str, str]],
    since: Mapping[str, int], known: Mapping[str, tuple[int, int]],
) -> tuple[Lost, ...]:  # fmt: skip
    """All wanted VMs that somebody must look after. ``since``: since when they were, of those that were before.

    ``known``: the number of each one's owner file, and since when that is known here.
    """
    verdicts: dict[tuple[str, str], str | None] = {}

    def gone(host: str, boot_id: str) -> str | None:
        if not boot_id:
            return None
        key = (host, boot_id)
        if key not in verdicts:
            verdicts[key] = living.gone(liveness, desk, windows, host, boot_id, over)
        return verdicts[key]

    def ended(vm: Vm) -> str | None:
        """An ordinary VM's owner may also say itself that it has ended it."""
        owner, since_ms = vm.owner, known[vm.uuid][1]
        if owner.host is None:
            return None
        proof = gone(owner.host, owner.boot_id)
        return proof or living.stopped_by_itself(liveness, desk, windows, owner.host, owner.boot_id, since_ms)

    troubled = {host for host, view in liveness.views.items() if living.broken(view.state)}
    found = []
    for vm in vms:
        if not is_wanted(vm):
            continue
        first = since.get(vm.uuid, desk.now)
        one = (
            _pair(vm, vm.open_epoch, desk, gone, troubled, first)
            if vm.open_epoch is not None
            else _ordinary(vm, desk, ended, troubled, first)
        )
        if one is not None:
            found.append(one)
    return tuple(found)


def _ordinary(vm: Vm, desk: Desk, ended: Callable[[Vm], str | None], troubled: set[str], first: int) -> Lost | None:
    owner = vm.owner
    if owner.host is None:
        return _released(vm, desk, first)
    proof = ended(vm)
    if proof is None:
        return _unproven(vm, (owner.host,), desk, troubled, first)
    return _proven(vm, proof, (owner.host,), desk, first)


def _released(vm: Vm, desk: Desk, first: int) -> Lost:
    if vm.owner.why in (OwnerWhy.RELEASED, OwnerWhy.EVACUATED):
        return Lost(vm, f"its owner file says it was {vm.owner.why}", "", since_ms=first)
    return _free(vm, desk, first)


def _free(vm: Vm, desk: Desk, first: int) -> Lost:
    if desk.now - first >= FREE_AFTER_MS:
        return Lost(vm, "it is wanted and nobody runs it", "", since_ms=first)
    return Lost(vm, "", "it is wanted and nobody runs it; perhaps somebody is starting it", (), first,
                first + FREE_AFTER_MS)  # fmt: skip


def _pair(vm: Vm, ft: FtEpoch, desk: Desk, gone: _Gone, troubled: set[str], first: int) -> Lost | None:
    """A VM whose newest epoch says who may run it: the pair looks after itself, as long as a copy can go live.

    safety: each host is asked about by the boot that had the copy, as the record or the winner's file names it: a host
    that was booted again since, or had been before, proves nothing else. An undecided epoch is won for its primary's
    images before they are started. That needs the primary's copy to be gone for certain; the secondary's copy needs no
    proof, for it finds the winner file and ends itself; and if it has won meanwhile, the start is refused
    (``ColdStart.end_epoch``).

    safety: a winner's own word ("no ordinary VM is left here") proves nothing while the epoch speaks: a datastore that
    hangs may have taken its winner file and not told it, and it goes on when it is told. When it knows, it takes the
    next owner file, and is asked as the owner.
    """
    if ft.owner is None:
        why_not = "its pair was recorded by an older version of ftkvm, without boot ids: start it by hand"
        return Lost(vm, "", why_not, (), first) if {ft.primary, ft.secondary} & troubled else None
    if ft.nobody:
        return _free(vm, desk, first)
    if ft.winner is not None:
        proof = gone(ft.winner, ft.winner_boot_id)
        if proof is None:
            return _unproven(vm, (ft.winner,), desk, troubled, first)
        return _proven(vm, proof, (ft.winner,), desk, first)
    hosts = (ft.primary, ft.secondary)
    proof = gone(ft.primary, ft.primary_boot_id)
    if proof is None:
        return _unproven(vm, hosts, desk, troubled, first)
    other = gone(ft.secondary, ft.secondary_boot_id)
    if other is not None or desk.now - first >= PAIR_DECIDES_MS:
        if other is None:
            told = f"its primary's copy is gone, and its secondary has not gone live for {PAIR_DECIDES_MS // 1000} s"
            return _proven(vm, f"{told}: {proof}", hosts, desk, first)
        return _proven(vm, f"both copies are gone: {proof}; {other}", hosts, desk, first)
    return Lost(vm, "", f"its secondary on {ft.secondary} may go live", hosts, first, first + PAIR_DECIDES_MS)


def _proven(vm: Vm, proof: str, hosts: tuple[str, ...], desk: Desk, first: int) -> Lost:
    if not desk.settings.host_monitoring:
        return Lost(vm, "", "host monitoring is off", (), first)
    return Lost(vm, proof, "", hosts, first)


def _unproven(vm: Vm, hosts: tuple[str, ...], desk: Desk, troubled: set[str], first: int) -> Lost | None:
    """Nothing to do, or a host that is broken without proof that its VMs have ended."""
    bad = [host for host in hosts if host in troubled]
    if not bad:
        return None
    return Lost(vm, "", f"{', '.join(bad)} may still run it: no watchdog or fence proves otherwise", hosts, first)
