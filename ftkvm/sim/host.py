"""A host that can lose power, freeze and come back, and the networks between hosts."""

from ftkvm.sim.clock import Clock, Event


class Host:
    """Power, freezing and boots of one host.

    `frozen`: no process runs; what was to run waits for the thaw. `kernel_frozen`: its kernel does not answer pings
    either and its clocks stand (a virtual machine that was stopped).
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.up = True
        self.frozen = False
        self.kernel_frozen = False
        self.boot = 1
        self.ft_cut = False
        self.management_cut = False
        self.slept_ms = 0  # how long its kernel's clock has stood in all
        self._kernel_frozen_at = 0
        self._waiting: list[tuple[int, Event]] = []

    @property
    def boot_id(self) -> str:
        return f"{self.name}-boot{self.boot}"

    @property
    def running(self) -> bool:
        """Its processes run now."""
        return self.up and not self.frozen

    def kernel_now(self) -> int:
        """The host's own monotonic clock."""
        asleep = self.clock.now - self._kernel_frozen_at if self.kernel_frozen else 0
        return self.clock.now - self.slept_ms - asleep

    def after(self, low_ms: int, high_ms: int, event: Event) -> None:
        """Something a process of this host does later; it dies with the boot and waits while the host is frozen."""
        boot = self.boot

        def fire() -> None:
            if not self.up or self.boot != boot:
                return
            if self.frozen:
                self._waiting.append((boot, event))
            else:
                event()

        self.clock.after(low_ms, high_ms, fire)

    def crash(self) -> None:
        """Power loss: silent."""
        self.thaw_clock()
        self.up = self.frozen = False
        self.boot += 1
        self._waiting.clear()

    def freeze(self, kernel: bool) -> None:
        self.frozen = True
        if kernel and not self.kernel_frozen:
            self.kernel_frozen, self._kernel_frozen_at = True, self.clock.now

    def thaw_clock(self) -> None:
        if self.kernel_frozen:
            self.slept_ms += self.clock.now - self._kernel_frozen_at
        self.kernel_frozen = False

    def thaw(self) -> None:
        """What waited runs now, in an order that the seed decides."""
        self.thaw_clock()
        self.frozen = False
        waiting, self._waiting = self._waiting, []
        self.clock.rng.shuffle(waiting)
        for boot, event in waiting:
            if self.boot == boot:
                self.after(0, 3, event)


def ft_reaches(one: Host, other: Host) -> bool:
    """The FT network carries frames between the two (whether anybody listens is another question)."""
    return one.up and other.up and not one.ft_cut and not other.ft_cut


def management_reaches(one: Host, other: Host) -> bool:
    return one.up and other.up and not one.management_cut and not other.management_cut
