"""Runs seeds of the cluster world: things go wrong (safety), then all is well again (liveness)."""

from dataclasses import dataclass

from ftkvm.sim.ha.agent import Machine
from ftkvm.sim.ha.faults import Fault, apply, draw, draw_for_pairs, heal_all, pairs_of, responses, shape_of
from ftkvm.sim.ha.qemu import Violation
from ftkvm.sim.ha.world import Shape, World, step

HEALED_MS = 170_000
SETTLED_MS = 330_000


@dataclass(frozen=True)
class Result:
    """What one seed showed. ``failure`` is empty when all invariants held."""

    seed: int
    script: tuple[Fault, ...]
    failure: str
    restarts: int
    shape: str

    @property
    def down(self) -> bool:
        """Whether all rightly ended off (never here)."""
        return False

    def story(self) -> str:
        """For a person: the cluster, the script, and what broke."""
        return "\n".join([f"ha seed {self.seed}: {self.failure}", f"  {self.shape}", *(f"  {f}" for f in self.script)])


def run_seed(
    seed: int,
    machine: Machine = step,
    script: list[Fault] | None = None,
    shape: Shape | None = None,
    cas: bool = True,
    pairs: int | None = None,
) -> Result:
    """Run one seed; ``script`` and ``shape`` replace what the seed would draw; ``machine``, ``cas``: breaks.

    ``pairs``: so many of its VMs are protected, each with its secondary on the host after its own. A given ``shape``
    has none unless that is said.
    """
    drawn = shape is None
    shape = shape or shape_of(seed)
    if pairs is None:
        pairs = pairs_of(seed, shape) if drawn else 0
    faults = draw(seed, shape) + draw_for_pairs(seed, shape, pairs) if script is None else script
    world = World(seed, shape, machine)
    world.storage.files.cas = cas
    responses(seed, world)
    hosts = list(world.hosts.values())
    for uuid in list(world.storage.files.vms)[:pairs]:
        primary = world.qemus.of(uuid)[0].host
        world.pairs.make(uuid, hosts[(hosts.index(primary) + 1) % len(hosts)])
    apply(world, faults)
    failure = ""
    try:
        world.clock.run_until(HEALED_MS)
        heal_all(world)
        world.clock.run_until(SETTLED_MS)
        _check_settled(world)
    except Violation as violation:
        failure = f"{world.clock.now} ms: {violation}"
    return Result(seed, tuple(faults), failure, len(world.started), f"{shape}, {pairs} pairs")


def _check_settled(world: World) -> None:
    """Healed long enough: every VM that is wanted runs, and somebody coordinates."""
    if world.coordinator() is None:
        raise Violation(f"nobody coordinates: {world.storage.files.lease}")
    down = world.not_running()
    if down:
        who = world.coordinator()
        status = world.agents[who].status if who else None
        waiting = {each.uuid: each for each in status.waiting} if status else {}
        told = "; ".join(f"{vm} {world.storage.files.vms[vm].owner} {waiting.get(vm)}" for vm in down[:3])
        raise Violation(f"{len(down)} VMs are wanted and do not run: {told}")


def shorten(result: Result, machine: Machine = step) -> Result:
    """The same failure with as few faults as leave it a failure (one by one, then shorter times)."""
    best = result
    changed = True
    while changed:
        changed = False
        for index in range(len(best.script)):
            fewer = [fault for number, fault in enumerate(best.script) if number != index]
            tried = run_seed(best.seed, machine, fewer)
            if tried.failure:
                best, changed = tried, True
                break
    return best
