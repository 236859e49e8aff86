"""Three hosts, one VM, one client, and the checker that looks at every frame and at every go-live."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ftkvm.core import pair as core
from ftkvm.core.facts import QemuState
from ftkvm.core.reasons import NOBODY_GOES_LIVE, Reason
from ftkvm.sim.agent import Agent, Decide
from ftkvm.sim.clock import Clock
from ftkvm.sim.guest import CLIENT_MS, RETRY_MS, UNCOVERED, Copy, Guest
from ftkvm.sim.host import Host, management_reaches
from ftkvm.sim.keeper import Keeper
from ftkvm.sim.protect import spec_of
from ftkvm.sim.storage import Storage

HOSTS = ("h1", "h2", "h3")
GATE_MS = 1500  # a proof of the peer counts 500 ms, the gate's element lives 1 s more, on the host's own clock


class Violation(Exception):
    """An invariant does not hold; the text says which and when."""


@dataclass(frozen=True)
class Breaks:
    """Deliberate breaks of what the production code gets right: the checker has to find each (tests/test_sim.py)."""

    decide: Decide | None = None
    trust_old_answers: bool = False  # a late answer about one epoch is taken for the next one's
    no_hold: bool = False  # frames that COLO does not compare pass at once …
    no_gate: bool = False  # … and nothing stops those of a zombie


@dataclass
class Checker:
    """What has left, and what must hold. `live`: the copy that owns the VM now."""

    live: Copy
    acknowledged: int = 0
    bound: int | None = None  # what the live copy had when it went live: others' answers must lie below
    clocks: dict[str, int] = field(default_factory=dict)  # each host's clock at that moment
    shutdowns: dict[int, int] = field(default_factory=dict)  # epoch -> when the primary's guest powered itself off
    disturbed_at: int = 0  # the last fault of any kind


class World:
    """The simulation of one seed. Public methods are faults and what agents reach."""

    def __init__(self, seed: int, breaks: Breaks | None = None) -> None:
        breaks = breaks or Breaks()
        self.clock = Clock(seed)
        self.breaks = breaks
        self.decide: Decide = breaks.decide or core.decide
        self.trust_old_answers = breaks.trust_old_answers
        self.settings = core.FtSettings()
        self.hosts = {name: Host(name, self.clock) for name in HOSTS}
        self.storage = Storage(self.clock, self.hosts)
        self.guest = Guest(self.clock, self.storage.mounts, self._out)
        self.guest.hold = not breaks.no_hold
        self.keepers = {name: Keeper(host, self.storage.mounts) for name, host in self.hosts.items()}
        for keeper in self.keepers.values():
            keeper.peers = self.keepers
        self._start_protected()
        self.agents = {name: Agent(host, self.keepers[name], self) for name, host in self.hosts.items()}
        self.client_sent = 0
        self.clock.after(0, 10, self._client)
        self.clock.after(0, 100, self._noise)
        self.log: list[str] = []

    def _start_protected(self) -> None:
        """Epoch 1 begins protected on h1 and h2."""
        primary = Copy(self.hosts["h1"], 1, QemuState.PLAIN, self._out, boot=1)
        secondary = Copy(self.hosts["h2"], 1, QemuState.SECONDARY_LOADING, self._out, boot=1)
        self.guest.copies += [primary, secondary]
        record = core.PairRecord(1, "h1", "h2")
        self.storage.files.records[1] = record
        for name in ("h1", "h2"):
            self.keepers[name].set_pair(spec_of(record, name))
        self.guest.wake = self._wake
        self.guest.start_colo(primary, "h2", 1)
        self.check = Checker(live=primary)

    def _wake(self, copy: Copy) -> None:
        """A QMP event reaches the agent, if one listens."""
        if copy.alive and self.agents[copy.host.name].alive:
            self.agents[copy.host.name].step()

    # ---------------------------------------------------------------------------------- what agents reach

    def tell(self, sender: Host, receiver: str, message: Callable[[Agent], None]) -> None:
        """The management network: needs both agents alive."""
        other = self.hosts[receiver]
        if management_reaches(sender, other):
            other.after(1, 25, lambda: message(self.agents[receiver]) if self.agents[receiver].alive else None)

    def candidates(self, me: str) -> list[str]:
        """Hosts that answer, whose datastore answers, and on which no copy is left."""
        mine = self.hosts[me]
        return [
            name
            for name, host in self.hosts.items()
            if name != me
            and management_reaches(mine, host)
            and host.running
            and self.agents[name].alive
            and self.guest.on(host) is None
            and self.keepers[name].datastore() is core.DatastoreState.OK
        ]

    # ------------------------------------------------------------------------------------------ the checker

    def _fail(self, text: str) -> None:
        raise Violation(f"at {self.clock.now} ms: {text}")

    def _out(self, copy: Copy, count: int) -> None:
        """A frame leaves QEMU: answer `count`, noise that a checkpoint covers (0), or noise that none does (-1)."""
        if not self.keepers[copy.host.name].gate_open() and not self.breaks.no_gate:
            return
        check = self.check
        if copy is not check.live:
            self._zombie_frame(copy, count)
        if count > self.client_sent:
            self._fail(f"answer {count} to a request that was never sent")
        check.acknowledged = max(check.acknowledged, count)

    def _zombie_frame(self, copy: Copy, count: int) -> None:
        """What a loser may still let out: frames that the winner's state contains, until its gate has shut."""
        check, name = self.check, copy.host.name
        if check.bound is None or count > check.bound:
            self._fail(f"answer {count} left {name}, whose copy is not live; the live one began at {check.bound}")
        if count == UNCOVERED:
            self._fail(f"an uncompared frame left {name}, whose copy is not live")
        if copy.host.kernel_now() - check.clocks[name] > GATE_MS:
            self._fail(f"a frame left {name} through a gate that should have shut")

    def went_live(self, copy: Copy, epoch: int, how: str) -> None:
        """The one moment that matters."""
        winner = self.storage.files.winners.get(epoch)
        here = f"{copy.host.name} ({how}, epoch {epoch})"
        if winner is None or winner.host != copy.host.name or winner.reason in NOBODY_GOES_LIVE:
            self._fail(f"{here} went live; the winner file says {winner}")
        if how == "promoted" and self._shutdown_was_clear(epoch):
            self._fail(f"{here} was promoted after the guest had powered itself off")
        if copy.guest_off and how == "promoted":
            self._fail(f"{here} was promoted although its guest is off")
        if copy.count < self.check.acknowledged:
            self._fail(f"{here} has {copy.count}; {self.check.acknowledged} were acknowledged")
        if copy.lost_writes or copy.own_disk_error:
            self._fail(f"{here} went live with a disk that misses acknowledged writes")
        self.check.live, self.check.bound = copy, copy.count
        self.check.clocks = {name: host.kernel_now() for name, host in self.hosts.items()}

    def _shutdown_was_clear(self, epoch: int) -> bool:
        """The power-off happened with everything healthy, and long enough ago to be heard of."""
        at = self.check.shutdowns.get(epoch)
        return at is not None and self.check.disturbed_at < at - 3000

    # ------------------------------------------------------------------------------------- client and noise

    def _client(self) -> None:
        """Sends the next request when the last one was answered, else the same again, to every copy that hears it."""
        answered = self.check.acknowledged >= self.client_sent
        if answered:
            self.client_sent += 1
        count = self.client_sent
        for copy in list(self.guest.copies):
            if copy.running:
                copy.host.after(0, 2, lambda copy=copy: self.guest.request(copy, count))  # type: ignore[misc]
        self.clock.after(CLIENT_MS if answered else RETRY_MS, RETRY_MS if not answered else 2 * CLIENT_MS, self._client)

    def _noise(self) -> None:
        self.guest.make_noise()
        self.clock.after(100, 300, self._noise)

    # ----------------------------------------------------------------------------------------------- faults

    def restart_agent(self, name: str) -> None:
        host = self.hosts[name]
        if host.up and not self.agents[name].alive:
            self.agents[name] = Agent(host, self.keepers[name], self)

    def kill_agent(self, name: str) -> None:
        self.agents[name].alive = False

    def crash(self, name: str) -> None:
        """Power loss. The hosts' other ends are told nothing."""
        copy = self.guest.on(self.hosts[name])
        self.kill_agent(name)
        self.keepers[name].kill()
        self.hosts[name].crash()
        if copy is not None:
            copy.death = "fault"

    def start(self, name: str) -> None:
        """A fresh boot: no QEMU, no memory of anything."""
        host = self.hosts[name]
        if not host.up:
            host.up = True
            self.keepers[name].reboot()
            self.agents[name] = Agent(host, self.keepers[name], self)

    def kill_qemu(self, name: str) -> None:
        copy = self.guest.on(self.hosts[name])
        if copy is not None:
            self.guest.kill(copy, "fault")

    def power_off_guest(self) -> None:
        """`poweroff` in the guest: the primary's copy halts; its secondary may notice a moment earlier."""
        copy = self.check.live
        if not copy.running or copy.guest_off or copy.state not in (QemuState.PRIMARY, QemuState.PLAIN):
            return
        copy.guest_off = True
        if copy.epoch is not None and copy.state is QemuState.PRIMARY:
            self.check.shutdowns[copy.epoch] = self.clock.now
        colo, agent = self.guest.colo, self.agents[copy.host.name]
        copy.host.after(1, 5, lambda: agent.shut_down() if agent.alive and copy.alive else None)
        if colo is not None and colo.primary is copy and colo.talks:
            other = colo.secondary
            if self.clock.rng.random() < 0.5:
                other.host.after(0, 10, lambda: colo.notice(other))
            other.host.after(5, 25, lambda: self._secondary_off(other))

    def _secondary_off(self, copy: Copy) -> None:
        agent = self.agents[copy.host.name]
        if copy.alive and copy is not self.check.live:
            copy.guest_off = True
            if agent.alive:
                agent.shut_down()

    # ------------------------------------------------------------------------------------------ at the end

    def legitimately_down(self) -> bool:
        """No copy is left, and no decision of ours is to blame: faults killed what could have gone on."""
        files = self.storage.files
        record = files.latest()
        if self.check.live.guest_off or self._ended_by_shutdown():
            return True
        if record is None:
            return False
        winner = files.winners.get(record.epoch)
        of_epoch = [copy for copy in self.guest.copies if copy.epoch == record.epoch]
        live = self.check.live
        if winner is not None and winner.host == live.host.name and live.death == "fault":
            return True  # it ran alone (a protect had been undone), and was hit
        if winner is not None:
            return any(copy.host.name == winner.host and copy.death == "fault" for copy in of_epoch)
        if self.check.live.death.startswith("own:" + Reason.OWN_COPY_BAD):
            return True
        return self.check.live.death == "fault"

    def _ended_by_shutdown(self) -> bool:
        return any(winner.reason is Reason.GUEST_SHUTDOWN for winner in self.storage.files.winners.values())
