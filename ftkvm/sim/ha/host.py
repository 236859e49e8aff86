"""A simulated host: power, a clock of its own, freezes, a watchdog."""

from dataclasses import dataclass, field

from ftkvm.sim.clock import Clock, Event


@dataclass
class Watchdog:
    """A device beside the computer: it counts in true time, whatever its host does. ``broken``: it never fires."""

    timeout_ms: int = 5_000
    present: bool = True
    broken: bool = False
    armed_until: int | None = None


@dataclass
class Host:
    """Hardware and kernel. ``drift``: its clock's rate. Frozen: no process runs, the clock goes on."""

    name: str
    clock: Clock
    drift: float = 1.0
    watchdog: Watchdog = field(default_factory=Watchdog)
    memory_mb: int = 16_384
    cpu_mhz: int = 20_000
    up: bool = True
    frozen: bool = False
    boot: int = 1
    booted_at: int = 0
    _late: list[Event] = field(default_factory=list)

    @property
    def boot_id(self) -> str:
        return f"{self.name}#{self.boot}"

    @property
    def runs(self) -> bool:
        """Its processes run."""
        return self.up and not self.frozen

    def now(self) -> int:
        """Milliseconds of its monotonic clock since its boot."""
        return int((self.clock.now - self.booted_at) * self.drift)

    def after(self, low_ms: int, high_ms: int, event: Event) -> None:
        """Something a process here does later; a freeze delays it, a power loss forgets it."""
        boot = self.boot

        def due() -> None:
            if self.boot != boot or not self.up:
                return
            if self.frozen:
                self._late.append(due)
            else:
                event()

        self.clock.after(low_ms, high_ms, due)

    def thaw(self) -> None:
        self.frozen = False
        late, self._late = self._late, []
        for event in late:
            self.clock.after(0, 20, event)

    def power_off(self) -> None:
        self.up = self.frozen = False
        self._late = []
        self.watchdog.armed_until = None

    def power_on(self) -> None:
        self.up, self.boot, self.booted_at = True, self.boot + 1, self.clock.now
