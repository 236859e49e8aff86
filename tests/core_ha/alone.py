"""One HA machine alone, with everybody else played by the test: who beats, who writes, what the datastore does."""

from collections.abc import Callable
from dataclasses import replace

from ftkvm.core.ha import machine
from ftkvm.core.ha import model as m

ROOM = m.HostCapacity(100_000, 100_000)
QUICK = (m.WriteHeartbeat, m.ReadHeartbeats, m.ReadVms, m.ClaimLease, m.ClaimRoles, m.Ping)


class Alone:
    """Host ``h1`` of ``hosts``; a turn each second, a second one when something has ended. Others do well."""

    def __init__(self, hosts: int = 3, me: str = "h1", **settings: object) -> None:
        names = tuple(f"h{number}" for number in range(1, hosts + 1))
        chosen = m.HaSettings(isolation_addresses=("gw",))
        self.cluster = m.Cluster(names, settings=replace(chosen, **settings))  # type: ignore[arg-type]
        self.me, self.now, self.watchdog_ms = me, 0, 5000
        self.quiet: dict[str, int] = {}  # host → since when it neither beats nor writes
        self.mute: dict[str, int] = {}  # host → since when it does not beat, but writes
        self.stuck: dict[str, int] = {}  # host → since when it does not write, but beats
        self.answer_pings: set[str] = set()
        self.gateway = True
        self.heartbeats: dict[str, m.Heartbeat] = {
            name: m.Heartbeat(name, f"boot-{name}", 1, m.HostMode.LIVE, 5000, 8000) for name in names
        }
        self.solo: dict[str, int] = {}
        self.room = dict.fromkeys(names, ROOM)
        self.lease: m.Lease | None = None
        self.roles: m.Roles | None = None
        self.corrupt: tuple[str, ...] = ()
        self.vms: dict[str, m.Vm] = {}
        self.local: list[m.LocalVm] = []
        self.datastore = m.Result.OK
        self.start_result: Callable[[m.StartVm], m.Ended | None] = lambda _start: None
        self.actions: list[tuple[int, m.Action]] = []
        self.events: list[tuple[int, m.Event]] = []
        self.ended: list[m.Ended] = []
        self.state: object = None
        self.status: m.Status | None = None
        self.vms_changed_ms: int | None = None
        self._seen: dict[str, int] = {}
        self._pings: dict[str, int] = {}

    # what happens

    def vm(self, name: str, host: str | None, **more: object) -> m.Vm:
        why = m.OwnerWhy.STARTED if host else m.OwnerWhy.RELEASED
        vm = m.Vm(name, name, True, m.Owner(1, host, f"boot-{host}", why), memory_mb=100)
        self.vms[name] = replace(vm, **more)  # type: ignore[arg-type]
        if host == self.me:
            self.local.append(m.LocalVm(name))
        return self.vms[name]

    def run(self, seconds: float, step_ms: int = 1000) -> None:
        for _ in range(round(seconds * 1000 / step_ms)):
            self.now += step_ms
            self._others()
            self.turn()
            if self.ended:
                self.turn()

    def until(self, wanted: Callable[[], object], seconds: int = 120) -> int:
        """Run until it is so; how many ms that took."""
        began = self.now
        while not wanted():
            assert self.now - began < seconds * 1000, "it never came to that"
            self.run(1)
        return self.now - began

    def jump(self, ms: int) -> None:
        """Time in which this host takes no turn."""
        self.now += ms

    def turn(self) -> None:
        ended, self.ended = tuple(self.ended), []
        beats = {
            host: m.Beats({"net": at}, self._pings.get(host), self.solo.get(host, 0), self.room[host])
            for host, at in self._seen.items()
        }
        seen = m.Seen(
            self.now, self.me, f"boot-{self.me}", self.cluster, beats, tuple(self.local), self.watchdog_ms, ended,
            self.room[self.me], self.vms_changed_ms,
        )  # fmt: skip
        turn = machine.start(seen) if self.state is None else machine.turn(self.state, seen)
        self.state, self.status = turn.state, turn.status
        self.events += [(self.now, event) for event in turn.events]
        for action in turn.actions:
            self.actions.append((self.now, action))
            self._act(action)

    def _others(self) -> None:
        for host in self.cluster.hosts:
            if host == self.me or host in self.quiet:
                continue
            if host not in self.mute:
                self._seen[host] = self.now
            if host not in self.stuck:
                self.heartbeats[host] = replace(self.heartbeats[host], counter=self.now)

    def _act(self, action: m.Action) -> None:
        if isinstance(action, m.PetWatchdog):
            return
        if isinstance(action, m.StartVm):
            ended = self.start_result(action)
            self.ended += [ended] if ended is not None else []
            return
        if not isinstance(action, QUICK):
            return
        if isinstance(action, m.Ping):
            answered = tuple(each for each in action.addresses if each in self.answer_pings)
            if not action.hosts:
                answered = action.addresses if self.gateway else ()
            self._pings |= {host: self.now for host in answered if action.hosts}
            self.ended.append(m.Ended(action, m.Result.OK, answered))
            return
        done = self.datastore
        self.ended.append(m.Ended(action, done, self._file(action) if done is m.Result.OK else None))

    def _file(self, action: m.Action) -> object:
        match action:
            case m.WriteHeartbeat(heartbeat):
                self.heartbeats[self.me] = heartbeat
            case m.ReadHeartbeats():
                return m.HeartbeatsRead(dict(self.heartbeats), self.lease, self.roles, self.corrupt)
            case m.ReadVms(local):
                return tuple(vm for vm in self.vms.values() if not local or vm.owner.host == self.me)
            case m.ClaimLease(lease):
                if self.lease is None or lease.term > self.lease.term:
                    self.lease = lease
                return self.lease
            case m.ClaimRoles(roles):
                self.roles = roles
                return roles
        return None

    # what came of it

    def of(self, kind: type[m.Action]) -> list[tuple[int, m.Action]]:  # type: ignore[valid-type]
        return [(at, action) for at, action in self.actions if isinstance(action, kind)]

    @property
    def starts(self) -> list[tuple[int, m.StartVm]]:
        return [(at, action) for at, action in self.actions if isinstance(action, m.StartVm)]

    @property
    def stops(self) -> list[tuple[int, m.StopVm]]:
        return [(at, action) for at, action in self.actions if isinstance(action, m.StopVm)]

    def told(self, kind: str) -> list[int]:
        """When events of a kind were told."""
        return [at for at, event in self.events if event.kind == kind]

    def view(self, host: str) -> m.HostState:
        assert self.status is not None
        return next(view.state for view in self.status.hosts if view.host == host)


def coordinator(hosts: int = 3, **settings: object) -> Alone:
    """A cluster that has settled, and ``h1`` coordinates."""
    one = Alone(hosts, **settings)
    one.run(10)
    assert one.status is not None and one.status.role is m.Role.COORDINATOR
    return one
