"""When a secondary is worth anything: not while its guest boots under emulation, and not always after a reset.

COLO never notices that only the secondary's guest crashed: each checkpoint makes it whole again, and it crashes again.
"""

import math
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..adapters.guest_figures import life, starved_ms
from ..catalogue import FtkvmError

if TYPE_CHECKING:
    from .pair_worker import PairWorker

SETTLES_S = 1.5
"""The two copies of a guest that reboots reach their reset this much apart at most."""

BOOTS_S = 15.0
"""Under emulation: how long after its start or reset a guest is taken to load code, and gets no second copy."""

STARVED_MOST_S = 60.0
"""Of a guest that gets no processor, the 15 s are reckoned without the time it waited for one; at most so long."""

WAIT_MOST_S = 120.0
"""So long an operation waits for that: every reset of the guest begins it anew."""

LOOK_S = 1.0


def worthless_after_reset(worker: "PairWorker", peer: str) -> bool:
    """For a worker thread: True when this copy should be made anew.

    With KVM only when the primary's guest was not reset as well. Under emulation always: a reboot loads code anew, and
    a checkpoint that brings code does not drop QEMU's old translations of those pages (TCG: ``info jit`` counts no
    flush), so the copy may execute what is no longer there.

    :raises FtkvmError: the primary's agent does not answer: nothing is known
    """
    if not worker.vm.monitor().execute("query-kvm")["enabled"]:
        return True
    time.sleep(SETTLES_S)
    answer = worker.ctx.peers.call(peer, "GET", f"/v1/peer/pairs/{worker.uuid}", timeout_s=2.0)
    age_ms = answer.get("reset_age_ms")
    return age_ms is None or int(age_ms) > 3000 * SETTLES_S


def booted_in_s(worker: "PairWorker") -> float:
    """Under emulation only: how long the guest is still taken to boot; 0: a second copy may be made.

    One made now would follow the boot and keep translations of its stages. Seen: made 3 s after the reset it crashes
    after every checkpoint for as long as it lives, and after a failover for good. HMP ``one-insn-per-tb on`` cures it
    while it is on; ``off`` finds the old translations again.

    A reboot that the guest made before this agent had a monitor in its QEMU is not known.
    """
    pid = worker.vm.pid()
    born = None if pid is None or came_running(pid) else life(worker.name)
    started_age_ms = None if born is None else int(time.monotonic() * 1000) - born.born_ms
    starved = starved_ms(pid or 0)
    left_s = boot_left_s(worker.reset_age_ms(), started_age_ms, starved, max(0, starved - worker.starved_at_reset_ms))
    if left_s == 0 or ET.fromstring(worker.vm.domains.xml(worker.uuid)).get("type") == "kvm":
        return 0.0
    return left_s


def boot_left_s(
    reset_age_ms: int | None, started_age_ms: int | None, starved_ms: int = 0, starved_since_reset_ms: int = 0
) -> float:
    """What is left of BOOTS_S since the later of a guest's start and its reset; None: not known, or long ago.

    :param starved_ms: how long, since its start, its busiest thread was ready and had no processor
    """
    since = ((reset_age_ms, starved_since_reset_ms), (started_age_ms, starved_ms))
    lefts = [
        min(BOOTS_S - (age_ms - starved) / 1000, STARVED_MOST_S - age_ms / 1000)
        for age_ms, starved in since
        if age_ms is not None
    ]
    return max(0.0, *lefts, 0.0)


def came_running(pid: int, proc: Path = Path("/proc")) -> bool:
    """Whether a QEMU was started to take in a guest that ran elsewhere, migrated or protected: it is young, not the
    guest."""
    try:
        return b"-incoming" in (proc / str(pid) / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def boots(vm: str, left_s: float) -> FtkvmError:
    """FTKVM-154, for people: why there is no second copy yet."""
    return FtkvmError("FTKVM-154", vm=vm, seconds=math.ceil(left_s))


def await_booted(
    vm: str, left_s: Callable[[], float], tell: Callable[[str], None], look_s: float = LOOK_S,
    most_s: float = WAIT_MOST_S,
) -> None:  # fmt: skip
    """Wait until an emulated guest has booted, as far as :func:`booted_in_s` (``left_s``) tells.

    :raises FtkvmError: FTKVM-155 it was reset again and again; and what ``left_s`` raises
    """
    deadline = time.monotonic() + most_s
    while (left := left_s()) > 0:
        if time.monotonic() > deadline:
            raise FtkvmError("FTKVM-155", vm=vm, seconds=most_s)
        tell(boots(vm, left).text)
        time.sleep(min(left, look_s))
