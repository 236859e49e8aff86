"""What goes wrong, drawn from the seed; then everything is healed."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ftkvm.sim.world import HOSTS, World


@dataclass(frozen=True)
class Fault:
    """One line of a script: at `at_ms`, `what` happens to `host`, for `for_ms` (0: until the end)."""

    at_ms: int
    what: str
    host: str
    for_ms: int

    def __str__(self) -> str:
        return f"{self.at_ms:>6} ms  {self.what:<16} {self.host}" + (f"  for {self.for_ms} ms" if self.for_ms else "")


Act = Callable[[World, str], None]


def _mount(state: str) -> Act:
    return lambda world, host: world.storage.set_mount(host, state)


def _all_mounts(state: str) -> Act:
    def act(world: World, host: str) -> None:
        for name in HOSTS:
            world.storage.set_mount(name, state)

    return act


def _cut(attribute: str, cut: bool) -> Act:
    return lambda world, host: setattr(world.hosts[host], attribute, cut)


def _freeze(kernel: bool) -> Act:
    def act(world: World, host: str) -> None:
        if world.hosts[host].up:
            world.hosts[host].freeze(kernel)

    return act


def _thaw(world: World, host: str) -> None:
    world.hosts[host].thaw()


def _kill_keeper(world: World, host: str) -> None:
    world.keepers[host].kill()


def _start_keeper(world: World, host: str) -> None:
    if world.hosts[host].up and not world.keepers[host].alive:
        world.keepers[host].start()


def _stall(stalled: bool) -> Act:
    def act(world: World, host: str) -> None:
        if world.guest.colo is not None:
            world.guest.colo.stalled = stalled

    return act


def _kill_hold(world: World, host: str) -> None:
    copy = world.guest.on(world.hosts[host])
    if copy is not None and copy.is_in_colo():
        copy.hold_alive = False


def _nothing(world: World, host: str) -> None:
    pass


#: name: (weight, does, undoes)
FAULTS: dict[str, tuple[int, Act, Act]] = {
    "crash": (14, World.crash, World.start),
    "freeze": (9, _freeze(False), _thaw),
    "freeze-kernel": (9, _freeze(True), _thaw),
    "cut-ft": (12, _cut("ft_cut", True), _cut("ft_cut", False)),
    "cut-management": (4, _cut("management_cut", True), _cut("management_cut", False)),
    "hang-storage": (9, _mount("hung"), _mount("ok")),
    "fail-storage": (6, _mount("failed"), _mount("ok")),
    "hang-all-storage": (6, _all_mounts("hung"), _all_mounts("ok")),
    "kill-qemu": (9, World.kill_qemu, _nothing),
    "kill-agent": (14, World.kill_agent, World.restart_agent),
    "kill-keeper": (6, _kill_keeper, _start_keeper),
    "kill-hold": (3, _kill_hold, _nothing),
    "stall-colo": (4, _stall(True), _stall(False)),
    "power-off-guest": (3, lambda world, host: world.power_off_guest(), _nothing),
}
FIRST_MS, LAST_MS = 1500, 9000


def draw(seed: int) -> list[Fault]:
    """One to six faults, many of them close together: that is where histories cross."""
    rng = Random(seed ^ 0x5EED)
    names, weights = list(FAULTS), [weight for weight, _, _ in FAULTS.values()]
    faults = []
    at = rng.randint(FIRST_MS, FIRST_MS + 2000)
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6))):
        what = rng.choices(names, weights)[0]
        host = rng.choice(("h1", "h1", "h2", "h2", "h3"))
        for_ms = rng.choice((0, rng.randint(20, 400), rng.randint(400, 2500), rng.randint(2000, 8000)))
        faults.append(Fault(at, what, host, for_ms))
        at = min(LAST_MS, at + rng.choice((0, rng.randint(0, 30), rng.randint(0, 400), rng.randint(300, 3000))))
    return faults


def apply(world: World, faults: list[Fault]) -> None:
    """Put the script on the clock."""
    for fault in faults:
        _, act, undo = FAULTS[fault.what]

        def strike(fault: Fault = fault, act: Act = act) -> None:
            if fault.what != "power-off-guest":
                world.check.disturbed_at = world.clock.now
            act(world, fault.host)

        def heal(fault: Fault = fault, undo: Act = undo) -> None:
            world.check.disturbed_at = world.clock.now
            undo(world, fault.host)

        world.clock.at(fault.at_ms, strike)
        if fault.for_ms:
            world.clock.at(fault.at_ms + fault.for_ms, heal)


def heal_all(world: World) -> None:
    """Everything works again; hosts that are down boot."""
    for name in HOSTS:
        world.storage.set_mount(name, "ok")
        world.hosts[name].ft_cut = world.hosts[name].management_cut = False
        if world.hosts[name].frozen:
            world.hosts[name].thaw()
        world.start(name)
        _start_keeper(world, name)
        world.restart_agent(name)
    _stall(False)(world, "")
