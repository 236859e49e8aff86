"""One VM: its copies (QEMU processes), COLO between two of them, and a client that counts.

The guest is a counter. Request k makes it k, is written to disk, and is answered k. What the client has been told must
never be lost: `acknowledged` is the greatest k that left any copy. Frames that COLO does not compare are *noise*.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from ftkvm.core.facts import QemuState
from ftkvm.sim.clock import Clock
from ftkvm.sim.host import Host, ft_reaches

CLIENT_MS = 25
RETRY_MS = 200
UNCOVERED = -1


@dataclass(eq=False)
class Copy:
    """One QEMU process. `count` is what its guest has executed; `lost_writes`: its disk misses an answered one."""

    host: Host
    epoch: int | None
    state: QemuState
    out: Callable[["Copy", int], None]  # a frame leaves QEMU: answer k, 0: covered noise, or UNCOVERED
    count: int = 0
    boot: int = 0
    death: str = ""  # "" while it lives, else "fault" or why its agent killed it
    exited: bool = False  # COLO was there and has ended
    exited_at: int = 0  # on its host's clock
    stopped: bool = False  # by a checkpoint, or by a disk write that waits
    pending: list[int] = field(default_factory=list)  # answers not yet compared or covered
    noise: int = 0  # uncompared frames held
    last_checkpoint: int = 0  # on its host's clock
    missed_write: bool = False  # the next complete checkpoint makes it permanent
    lost_writes: bool = False
    diverged: bool = False
    replication_error: bool = False  # QUORUM_REPORT_BAD, on a primary
    own_disk_error: bool = False
    guest_off: bool = False
    hold_alive: bool = True

    @property
    def alive(self) -> bool:
        return not self.death and self.host.up and self.host.boot == self.boot

    @property
    def running(self) -> bool:
        return self.alive and self.host.running

    def release_all(self) -> None:
        """What the last checkpoint covers leaves; without a hold proxy nothing does."""
        if not self.hold_alive:
            return
        pending, self.pending = self.pending, []
        noise, self.noise = self.noise, 0
        for count in pending:
            self.out(self, count)
        if noise:
            self.out(self, 0)

    def is_in_colo(self) -> bool:
        return self.state in (QemuState.PRIMARY, QemuState.SECONDARY_LOADED)


class Colo:
    """The mirror between a primary and a secondary copy. Dies with either; nobody notices a silent peer."""

    def __init__(
        self, clock: Clock, primary: Copy, secondary: Copy, interval_ms: int, wake: Callable[[Copy], None]
    ) -> None:
        self.clock = clock
        self.wake = wake  # an event for the agent
        self.primary = primary
        self.secondary = secondary
        self.interval_ms = interval_ms
        self.stalled = False  # a fault: nothing moves although everybody is healthy
        self.ended = False  # one side has left it by command
        self.checkpoint_running = False
        self.generation = 0

    @property
    def up(self) -> bool:
        """Both ends are in COLO, whether or not they can talk now."""
        both_alive = self.primary.alive and self.secondary.alive
        return both_alive and not self.ended and not self.primary.exited and not self.secondary.exited

    @property
    def talks(self) -> bool:
        """Both ends run and the network between them carries."""
        return (
            self.up
            and self.primary.running
            and self.secondary.running
            and ft_reaches(self.primary.host, self.secondary.host)
            and not self.stalled
        )

    def begin(self) -> None:
        """The first checkpoint is complete."""
        primary, secondary = self.primary, self.secondary
        primary.state, secondary.state = QemuState.PRIMARY, QemuState.SECONDARY_LOADED
        primary.exited = secondary.exited = False
        secondary.count = primary.count
        primary.last_checkpoint = primary.host.kernel_now()
        secondary.last_checkpoint = secondary.host.kernel_now()
        self._plan_checkpoint(self.interval_ms)

    def _plan_checkpoint(self, delay_ms: int) -> None:
        self.generation += 1
        generation = self.generation
        self.clock.after(delay_ms, delay_ms + 20, lambda: self._checkpoint(generation))

    def _checkpoint(self, generation: int) -> None:
        if generation != self.generation or not self.up:
            return
        if not self.talks:
            self.clock.after(10, 30, lambda: self._checkpoint(generation))
            return
        self.checkpoint_running = True
        self.primary.stopped = self.secondary.stopped = True
        self.clock.after(3, 40, lambda: self._complete(generation))

    def _complete(self, generation: int) -> None:
        """All of it has reached the secondary, or it has not: a half one is never loaded."""
        if generation != self.generation or not self.up:
            return
        if not self.talks:
            self.clock.after(10, 30, lambda: self._complete(generation))
            return
        primary, secondary = self.primary, self.secondary
        secondary.count = primary.count
        secondary.diverged = False
        secondary.lost_writes = secondary.lost_writes or secondary.missed_write
        secondary.stopped = False
        secondary.last_checkpoint = secondary.host.kernel_now()
        self.checkpoint_running = False
        primary.host.after(0, 3, lambda: self._resume(generation))

    def _resume(self, generation: int) -> None:
        """The primary hears that the checkpoint is complete: what it covers may leave."""
        if generation != self.generation or not self.up:
            return
        self.primary.stopped = False
        self.primary.last_checkpoint = self.primary.host.kernel_now()
        self._plan_checkpoint(self.interval_ms)
        self.primary.release_all()

    def mismatch(self) -> None:
        """colo-compare found a difference: checkpoint now."""
        if self.up and not self.checkpoint_running:
            self._plan_checkpoint(0)

    def side_left(self, copy: Copy) -> None:
        """One side's process ended while its host lives, or left COLO by command: the kernel closes its sockets."""
        self.ended = True
        other = self.secondary if copy is self.primary else self.primary
        if ft_reaches(copy.host, other.host):
            other.host.after(1, 15, lambda: self.notice(other))

    def notice(self, copy: Copy) -> None:
        """COLO_EXIT(error) on one side."""
        if copy.alive and not copy.exited and copy.is_in_colo():
            copy.exited = True
            copy.stopped = copy is self.secondary  # a primary runs on after it, a secondary waits
            copy.noise = 0  # the hold proxy drops what it holds
            copy.exited_at = copy.host.kernel_now()
            copy.host.after(0, 3, lambda: self.wake(copy))


class Guest:
    """What the copies do with the client's requests."""

    def __init__(self, clock: Clock, mounts: dict[str, str], out: Callable[[Copy, int], None]) -> None:
        self.clock = clock
        self.mounts = mounts
        self.out = out
        self.wake: Callable[[Copy], None] = lambda copy: None
        self.copies: list[Copy] = []
        self.colo: Colo | None = None
        self.hold = True  # False: uncompared frames pass at once (a deliberate break)

    def on(self, host: Host) -> Copy | None:
        """The process on a host."""
        return next((copy for copy in self.copies if copy.host is host and copy.alive), None)

    def start_colo(self, primary: Copy, target: str, epoch: int) -> bool:
        """The first copy of the state, all of it; False when the secondary is not there to take it."""
        secondary = next((c for c in self.copies if c.host.name == target and c.alive and c.epoch == epoch), None)
        if secondary is None or secondary.state is not QemuState.SECONDARY_LOADING:
            return False
        colo = Colo(self.clock, primary, secondary, self.clock.rng.choice((100, 200, 500)), self.wake)
        if not colo.talks or primary.guest_off or "ok" != self.mounts[target] != self.mounts[primary.host.name]:
            return False
        primary.epoch = epoch
        primary.pending, primary.noise = [], 0
        self.colo = colo
        colo.begin()
        return True

    def kill(self, copy: Copy, why: str) -> None:
        """The process is gone; its host lives."""
        if copy.alive:
            self.leave_colo(copy)
            copy.death = why

    def leave_colo(self, copy: Copy) -> None:
        """This side of the mirror closes; the other is told by its kernel if the network carries it."""
        if self.colo is not None and copy in (self.colo.primary, self.colo.secondary) and not self.colo.ended:
            self.colo.side_left(copy)

    def request(self, copy: Copy, count: int) -> None:
        """A request of the client reaches a copy."""
        if not copy.running or copy.guest_off or copy.stopped:
            return
        if copy.state is QemuState.PLAIN:
            if count == copy.count + 1 and self.mounts[copy.host.name] == "ok":
                copy.count = count
            if count <= copy.count:
                copy.out(copy, count)
        elif copy.state is QemuState.PRIMARY:
            if count == copy.count + 1 and self._written(copy):
                copy.count = count
            if count <= copy.count:
                copy.pending.append(count)
                self._mirror(copy, count)

    def _written(self, copy: Copy) -> bool:
        """The quorum: done when one child has it. False: the guest waits for its disk."""
        own = self.mounts[copy.host.name]
        if own == "hung":
            return False
        if copy.exited or self.colo is None or not self.colo.up:
            copy.replication_error = True
            return own == "ok"
        other = self.colo.secondary
        theirs = self.mounts[other.host.name]
        if not self.colo.talks or theirs == "hung":
            return False
        if theirs == "failed":
            other.missed_write = copy.replication_error = True
        if own == "failed":
            copy.own_disk_error = True
        return own == "ok" or theirs == "ok"

    def _mirror(self, copy: Copy, count: int) -> None:
        colo = self.colo
        if colo is not None and copy is colo.primary and colo.talks:
            colo.secondary.host.after(1, 4, lambda: self._execute(colo, count))

    def _execute(self, colo: Colo, count: int) -> None:
        """The secondary executes a request and sends its answer to colo-compare."""
        copy = colo.secondary
        if not copy.running or copy.exited or copy.stopped or not colo.talks:
            return
        if self.clock.rng.random() < 0.02:
            copy.diverged = True
        copy.count = max(copy.count, count)
        same = not copy.diverged
        colo.primary.host.after(1, 4, lambda: self._compared(colo, count, same))

    def _compared(self, colo: Colo, count: int, same: bool) -> None:
        copy = colo.primary
        if not copy.running or copy.exited or not copy.hold_alive or copy.state is not QemuState.PRIMARY:
            return
        if not same:
            colo.mismatch()
        elif count in copy.pending:
            copy.pending.remove(count)
            copy.out(copy, count)

    def make_noise(self) -> None:
        """ARP and the like, which nobody compares."""
        for copy in self.copies:
            if copy.running and not copy.guest_off and copy.state is QemuState.PLAIN:
                copy.out(copy, UNCOVERED)
            elif copy.running and not copy.guest_off and copy.state is QemuState.PRIMARY and not copy.stopped:
                if self.hold:
                    copy.noise += 1
                else:
                    copy.out(copy, UNCOVERED)
