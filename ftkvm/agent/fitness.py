"""Whether a secondary is still worth anything after its guest was reset.

COLO never notices that only the secondary's guest crashed: each checkpoint makes it whole again, and it crashes again.
"""

import time
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .pair_worker import PairWorker

SETTLES_S = 1.5
"""The two copies of a guest that reboots reach their reset this much apart at most."""

BOOTS_S = 15.0
"""Under emulation: how long after its start or reset a guest is taken to load code, and gets no second copy."""


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


def still_boots(worker: "PairWorker") -> bool:
    """Under emulation only: a second copy made now would follow the guest's boot and keep translations of its stages.

    Seen: made 3 s after the reset it crashes after every checkpoint for as long as it lives, and after a failover for
    good. HMP ``one-insn-per-tb on`` cures it while it is on; ``off`` finds the old translations again.
    """
    age_ms = worker.reset_age_ms()
    if age_ms is None or age_ms > 1000 * BOOTS_S:
        return False
    return ET.fromstring(worker.vm.domains.xml(worker.uuid)).get("type") != "kvm"
