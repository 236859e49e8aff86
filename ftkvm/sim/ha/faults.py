"""What goes wrong, drawn from a seed; then everything is healed."""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from ftkvm.core.ha.model import HaSettings, IsolationResponse
from ftkvm.sim.ha.world import GATEWAY, Shape, World


@dataclass(frozen=True)
class Fault:
    """One line of a script: at ``at_ms``, ``what`` happens to ``whom`` (host or VM), for ``for_ms`` (0: it stays)."""

    at_ms: int
    what: str
    whom: str
    for_ms: int = 0

    def __str__(self) -> str:
        return f"{self.at_ms:>7} ms  {self.what:<16} {self.whom}" + (f"  for {self.for_ms} ms" if self.for_ms else "")


Act = Callable[[World, str], None]


def _cut(on: bool) -> Act:
    def act(world: World, host: str) -> None:
        for network in world.shape.networks:
            world.cut_off(host, network, on)

    return act


def _one_network(on: bool) -> Act:
    return lambda world, host: world.cut_off(host, world.shape.networks[-1], on)


def _one_way(on: bool) -> Act:
    def act(world: World, host: str) -> None:
        for network in world.shape.networks:
            (world.cut.add if on else world.cut.discard)((host, "*", network))

    return act


def _deaf(on: bool) -> Act:
    def act(world: World, host: str) -> None:
        for network in world.shape.networks:
            (world.cut.add if on else world.cut.discard)(("*", host, network))

    return act


def _mount(state: str) -> Act:
    return lambda world, host: world.storage.set_mount(host, state)


def _all_mounts(state: str) -> Act:
    def act(world: World, host: str) -> None:
        for name in world.hosts:
            world.storage.set_mount(name, state)

    return act


def _all_power(on: bool) -> Act:
    def act(world: World, host: str) -> None:
        for name in world.hosts:
            (world.start if on else world.crash)(name)

    return act


def _gateway(answers: bool) -> Act:
    def act(world: World, host: str) -> None:
        world.gateway_answers = answers

    return act


def _bad_starts(world: World, vm: str) -> None:
    world.bad_starts[vm] = 2


def _deaf_guest(world: World, vm: str) -> None:
    world.deaf_guests.add(vm)


def _nothing(world: World, whom: str) -> None:
    pass


def _broken_watchdog(world: World, host: str) -> None:
    world.hosts[host].watchdog.broken = True


def _all_agents(world: World, host: str) -> None:
    for name in world.hosts:
        world.kill_agent(name)


def _monitoring(on: bool) -> Act:
    return lambda world, host: world.set_settings(host_monitoring=on)


#: name: (weight, whom: host or vm, does, undoes)
FAULTS: dict[str, tuple[int, str, Act, Act]] = {
    "crash": (16, "host", World.crash, World.start),
    "freeze": (12, "host", World.freeze, World.thaw),
    "cut": (12, "host", _cut(True), _cut(False)),
    "cut-one-network": (4, "host", _one_network(True), _one_network(False)),
    "mute": (5, "host", _one_way(True), _one_way(False)),
    "deaf": (5, "host", _deaf(True), _deaf(False)),
    "hang-storage": (10, "host", _mount("hung"), _mount("ok")),
    "fail-storage": (6, "host", _mount("failed"), _mount("ok")),
    "slow-storage": (6, "host", _mount("slow"), _mount("ok")),
    "hang-all-storage": (4, "host", _all_mounts("hung"), _all_mounts("ok")),
    "power-cut": (3, "host", _all_power(False), _all_power(True)),
    "gateway-silent": (3, "host", _gateway(False), _gateway(True)),
    "kill-agent": (12, "host", World.kill_agent, _nothing),
    "kill-qemu": (4, "vm", World.kill_qemu, _nothing),
    "power-off-guest": (3, "vm", World.power_off_guest, _nothing),
    "bad-starts": (4, "vm", _bad_starts, _nothing),
    "deaf-guest": (3, "vm", _deaf_guest, _nothing),
    "maintenance": (3, "host", lambda w, h: w.set_maintenance(h, True), lambda w, h: w.set_maintenance(h, False)),
    "broken-watchdog": (0, "host", _broken_watchdog, _nothing),
    "boot": (0, "host", World.start, _nothing),
    "all-agents": (0, "host", _all_agents, _nothing),
    "monitoring-off": (2, "host", _monitoring(False), _monitoring(True)),
    "remove-dead": (0, "host", World.remove_dead, World.add),
}
FIRST_MS, LAST_MS = 20_000, 120_000
_LOSSES = ("crash", "crash", "freeze", "freeze", "cut", "hang-storage", "fail-storage")


def shape_of(seed: int) -> Shape:
    """A cluster for a seed: mostly small, now and then as large as they get."""
    rng = Random(seed ^ 0xC1)
    hosts = rng.choice((2, 3, 3, 3, 4, 5, 6, 7, 8, 12) if rng.random() < 0.95 else (16, 24, 32))
    networks = ("management", "migration") if rng.random() < 0.3 else ("management",)
    names = [f"h{number}" for number in range(1, hosts + 1)]
    watchdogs: bool | tuple[str, ...] = True
    if rng.random() < 0.3:
        watchdogs = tuple(name for name in names if rng.random() < 0.5)
    fences = tuple(name for name in names if rng.random() < 0.5) if rng.random() < 0.4 else ()
    settings = HaSettings(isolation_addresses=(GATEWAY,) if rng.random() < 0.9 else ())
    return Shape(
        hosts, hosts * rng.randint(1, 4), networks, watchdogs, fences, rng.choice((0, 0, 1e-5, 2e-4)), settings
    )


def pairs_of(seed: int, shape: Shape) -> int:
    """How many of a cluster's VMs are FT pairs: in every second history up to half of them."""
    rng = Random(seed ^ 0x9A12)
    return rng.randint(1, max(1, shape.vms // 2)) if rng.random() < 0.5 else 0


def draw_for_pairs(seed: int, shape: Shape, pairs: int) -> list[Fault]:
    """In most histories with pairs: one loses a copy, and within 0.7 s the host of the other is lost."""
    rng = Random(seed ^ 0x2C09)
    if not pairs or rng.random() < 0.2:
        return []
    at, number = rng.randint(FIRST_MS, LAST_MS - 40_000), rng.randint(1, pairs)
    standby = f"h{(number + 1) % shape.hosts + 1}"  # VMs are spread over the hosts in turn, copies go to the next one
    first = rng.choice((Fault(at, "kill-qemu", f"vm{number}"), Fault(at, "crash", f"h{number % shape.hosts + 1}")))
    lasts_ms = rng.choice((0, 3_000, 30_000, 75_000, 100_000))
    return [first, Fault(at + rng.randint(0, 700), rng.choice(_LOSSES), standby, lasts_ms)]


def draw(seed: int, shape: Shape) -> list[Fault]:
    """One to eight faults, many of them close together: that is where histories cross."""
    rng = Random(seed ^ 0x5EED)
    names, weights = list(FAULTS), [each[0] for each in FAULTS.values()]
    faults, at = [], rng.randint(FIRST_MS, FIRST_MS + 5_000)
    for _ in range(rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8))):
        what = rng.choices(names, weights)[0]
        whom = (
            f"h{rng.randint(1, min(shape.hosts, 5))}" if FAULTS[what][1] == "host" else f"vm{rng.randint(1, shape.vms)}"
        )
        for_ms = rng.choice((0, rng.randint(500, 8_000), rng.randint(5_000, 20_000), rng.randint(15_000, 60_000)))
        faults.append(Fault(at, what, whom, for_ms))
        at = min(
            LAST_MS, at + rng.choice((0, rng.randint(0, 1_000), rng.randint(0, 9_000), rng.randint(8_000, 40_000)))
        )
    return faults


def responses(seed: int, world: World) -> None:
    """Isolation responses by lot: the default is to shut down."""
    rng = Random(seed ^ 0x150)
    for uuid, vm in world.storage.files.vms.items():
        chosen = rng.choice((IsolationResponse.SHUTDOWN, IsolationResponse.POWER_OFF, IsolationResponse.LEAVE_ON))
        world.storage.files.vms[uuid] = type(vm)(**{**vars(vm), "isolation_response": chosen})


def apply(world: World, faults: list[Fault]) -> None:
    """Put the script on the clock."""
    for fault in faults:
        _weight, _kind, act, undo = FAULTS[fault.what]
        world.clock.at(fault.at_ms, lambda act=act, fault=fault: act(world, fault.whom))  # type: ignore[misc]
        if fault.for_ms:
            heal_at = fault.at_ms + fault.for_ms
            world.clock.at(heal_at, lambda undo=undo, fault=fault: undo(world, fault.whom))  # type: ignore[misc]


def heal_all(world: World) -> None:
    """Everything works again; a host that nobody could prove dead is switched off and on, as an operator would."""
    world.cut.clear()
    world.gateway_answers = True
    world.deaf_guests.clear()
    world.bad_starts.clear()
    world.set_settings(host_monitoring=True)
    for name in world.hosts:
        world.storage.set_mount(name, "ok")
        world.set_maintenance(name, False)
        world.thaw(name)
        world.start(name)
        if not world.agents[name].alive:
            world.kill_agent(name)
            world._restart_agent(name)
