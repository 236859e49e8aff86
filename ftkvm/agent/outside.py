"""What somebody has changed of a protected VM past ftkvm, with virsh (FT-16): not refused, but found and told.

QEMU itself refuses most of it while COLO runs (a device on the primary, a migration, a save). What it lets through is
looked for every two seconds, in libvirt's XML, by each copy's own host; the secondary's tells the primary's.

safety: protection is ended where the copy is not the recorded one any more (*changes*), and kept where it is (*notes*).

- The image under a disk is another one (a snapshot, a copied or moved disk). Both copies still have every write; but
  the pair record names the image that a cold start would go on from, and that one misses what was written since. A
  record is never changed. So the epoch ends, with the primary as its winner since nothing is wrong with what its guest
  sees, and the next protect records the images as they are.
- A device was added to or taken from one copy. The checkpoints carry the state of the other's devices only; after a
  failover the guest would find a machine that it does not know. The same end: the next secondary is made after the
  primary as it is.
  QEMU may end COLO by itself when a secondary's device comes or goes. The changed copy then leaves the epoch to the
  primary (``core.trouble``), and takes it only from one that is lost.
- A block job runs: what it copies is the same whichever copy looks. Its end may change the image: then the first rule.
- A definition in libvirt: the copies run on. Started with it after a crash, a stale copy would run beside the VM.
"""

import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..catalogue import FtkvmError
from ..core.pair import QemuState
from ..core.reasons import Reason
from ..engine import graph
from ..engine.machine import difference, machine_of
from ..engine.shape import parse_shape
from ..ports import Json
from .records import CopyPlace

if TYPE_CHECKING:  # libvirt's binding exists on hosts only
    from .pair_worker import PairWorker

TELL_TIMEOUT_S = 2.0
OLD_AFTER_S = 10.0
"""What the secondary's host said last counts for so long; it says it again every two seconds."""


@dataclass(frozen=True)
class Found:
    """What one host has found of its copy in ``epoch``."""

    epoch: int
    changes: tuple[FtkvmError, ...] = ()
    notes: tuple[FtkvmError, ...] = ()
    at: float = field(default_factory=time.monotonic)

    @property
    def texts(self) -> tuple[str, ...]:
        """All of it, with its codes."""
        return tuple(str(each) for each in (*self.changes, *self.notes))

    def to_json(self) -> Json:
        return {"epoch": self.epoch, "changes": [each.to_json() for each in self.changes],
                "notes": [each.to_json() for each in self.notes]}  # fmt: skip

    @classmethod
    def from_json(cls, document: Json) -> "Found":
        changes, notes = (tuple(FtkvmError.from_json(each) for each in document[key]) for key in ("changes", "notes"))
        return cls(int(document["epoch"]), changes, notes)


@dataclass
class Outside:
    """What is known of both copies; kept by the worker of each."""

    own: Found | None = None
    peers: Found | None = None

    def of(self, epoch: int, now: float) -> Found:
        """Both hosts' findings about this epoch. An image or a device that was changed stays so until its end."""
        mine = [each for each in (self.own, self.peers) if each is not None and each.epoch == epoch]
        changes = tuple(error for each in mine for error in each.changes)
        notes = tuple(error for each in mine if now - each.at < OLD_AFTER_S for error in each.notes)
        return Found(epoch, changes, notes)


def warnings(outside: Outside, epoch: int, last_failover: Json | None) -> list[str]:
    """What `ftkvm status` says of it: of this epoch, and of the one before, which ended of it or for it."""
    now = time.monotonic()
    found = outside.of(epoch, now)
    told = [f"{each}. {each.remedy}" for each in (*found.changes, *found.notes)]
    last = last_failover or {}
    ended_for_it = last.get("reason") == Reason.CHANGED_OUTSIDE and last.get("epoch") == epoch - 1
    ended = [str(each) for each in outside.of(epoch - 1, now).changes] or (
        [str(last["detail"])] if ended_for_it else []
    )
    return [*told, *(f"the pair was ended and made anew: {each}" for each in ended)]


def tell_primary(worker: "PairWorker", found: Found) -> None:
    """A secondary's host tells the primary's what it has found; again with each look, so nothing hangs on one call."""
    spec = worker.spec
    if not found.texts or spec is None or spec.role != "secondary" or spec.peer is None:
        return
    host, path, call = spec.peer.host, f"/v1/peer/pairs/{worker.uuid}/changed", worker.ctx.peers.call
    worker.ctx.workers.submit(lambda: call(host, "POST", path, found.to_json(), TELL_TIMEOUT_S), f"tell {host}")


def look(worker: "PairWorker") -> Found | None:
    """Compare this host's copy with what was recorded of it. None: it is no copy of an open epoch, or is being changed.

    :raises FtkvmError: libvirt does not answer
    :raises MonitorGone, MonitorTimeout: QEMU does not
    """
    before = _place(worker)
    if before is None:
        return None
    xml = worker.vm.domains.xml(worker.uuid)
    info = worker.ctx.libvirt.domain(worker.uuid)
    jobs = [name for name in graph.jobs(worker.vm.monitor()) if not name.startswith("ft-")]
    if _place(worker) != before:  # an operation of ours began meanwhile, or the epoch ended
        return None
    epoch, place = before
    return compare(worker.name, place, xml, jobs, epoch=epoch, persistent=info is not None and info.persistent)


def _place(worker: "PairWorker") -> tuple[int, CopyPlace] | None:
    """Epoch and recorded place of this host's copy, while the pair is whole and nothing of ours works on it."""
    pair, spec, seen = worker.poller.snapshot().pair, worker.spec, worker.observation
    if pair is None or spec is None or seen is None or worker.operation_lock.locked() or spec.epoch != pair.epoch:
        return None
    wanted = {"primary": QemuState.PRIMARY, "secondary": QemuState.SECONDARY_LOADED}.get(spec.role)
    if seen.qemu is not wanted or seen.record is None or seen.record.epoch != pair.epoch:
        return None
    return pair.epoch, pair.primary if spec.role == "primary" else pair.secondary


def compare(vm: str, place: CopyPlace, xml: str, jobs: Collection[str], *, epoch: int, persistent: bool) -> Found:
    """What of a copy is not as recorded; ``xml``: its live one, ``jobs``: block jobs that are not ours."""
    sources = {disk.target: disk.source for disk in parse_shape(xml).disks}
    changes: list[FtkvmError] = []
    for target, image in place.disks.items():
        if target in sources and sources[target] != image:
            parameters: dict[str, Any] = {"disk": target, "image": sources[target], "recorded": image}
            changes.append(FtkvmError("FTKVM-150", vm=vm, host=place.host, **parameters))
    differs = difference(place.machine, machine_of(xml)) if place.machine else ""
    if differs:
        changes.append(FtkvmError("FTKVM-151", vm=vm, host=place.host, difference=differs))
    notes = [FtkvmError("FTKVM-152", vm=vm, host=place.host, job=job) for job in jobs]
    if persistent:
        notes.append(FtkvmError("FTKVM-153", vm=vm, host=place.host))
    return Found(epoch, tuple(changes), tuple(notes))
