"""The shared datastore as each host sees it: slow, hanging, failing, with replies that never come.

What an operation does happens on the server; its reply is another matter. So every outcome that a host has not read is
unknown to it, and an operation of a host that died can still take effect.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from ftkvm.core.facts import PairRecord, Winner
from ftkvm.sim.clock import Clock
from ftkvm.sim.host import Host

T = TypeVar("T")


@dataclass(frozen=True)
class OperationDoc:
    """`operation.json`: who runs which operation for which epoch."""

    kind: str
    owner: str
    epoch: int
    target: str


@dataclass
class Files:
    """What is on the datastore."""

    records: dict[int, PairRecord] = field(default_factory=dict)
    winners: dict[int, Winner] = field(default_factory=dict)
    operation: OperationDoc | None = None

    def latest(self) -> PairRecord | None:
        return self.records[max(self.records)] if self.records else None

    def win(self, epoch: int, winner: Winner) -> Winner:
        """create_once: the first link() counts; what is there is returned."""
        return self.winners.setdefault(epoch, winner)


class Storage:
    """Carries operations of hosts to `files`."""

    def __init__(self, clock: Clock, hosts: dict[str, Host]) -> None:
        self.clock = clock
        self.hosts = hosts
        self.files = Files()
        self.mounts = dict.fromkeys(hosts, "ok")
        self._waiting: dict[str, list[tuple[int, bool, Callable[[], None]]]] = {name: [] for name in hosts}

    def ask(self, host: Host, work: Callable[[Files], T], reply: Callable[[T], None]) -> None:
        """Run `work` on the files some time, and `reply` on the host some time after; either may never happen."""
        boot = host.boot
        slow = self.clock.rng.random() < 0.03

        def answered(result: T) -> None:
            if self.mounts[host.name] == "hung":
                self._wait(host, boot, False, lambda: answered(result))
            elif self.mounts[host.name] == "ok" and host.boot == boot:
                host.after(0, 2000 if slow else 4, lambda: reply(result))

        def arrived() -> None:
            state = self.mounts[host.name]
            if state == "hung":
                on_server = self.clock.rng.random() < 0.5
                self._wait(host, boot, on_server, arrived)
            elif state == "ok":
                result = work(self.files)
                self.clock.after(0, 4, lambda: answered(result))

        if self.clock.rng.random() < 0.5:
            self.clock.after(0, 800 if slow else 4, arrived)  # already on its way: a crash does not stop it
        else:
            host.after(0, 4, arrived)

    def _wait(self, host: Host, boot: int, on_server: bool, event: Callable[[], None]) -> None:
        self._waiting[host.name].append((boot, on_server, event))

    def set_mount(self, name: str, state: str) -> None:
        """`ok`, `hung` or `failed`. What hung goes on when it works again, also of a host that has died since."""
        self.mounts[name] = state
        if state == "hung":
            return
        waiting, self._waiting[name] = self._waiting[name], []
        for boot, on_server, event in waiting:
            if state == "ok" and (on_server or self.hosts[name].boot == boot):
                self.clock.after(0, 300, event)
