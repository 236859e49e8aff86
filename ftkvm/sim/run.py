"""Runs seeds: a phase in which things go wrong (safety), then one in which all is well again (liveness)."""

from dataclasses import dataclass

from ftkvm.core.facts import QemuState
from ftkvm.sim.script import Fault, apply, draw, heal_all
from ftkvm.sim.world import Breaks, Violation, World

HEALED_MS = 12_000
SETTLED_MS = 25_000  # 13 s after the heal: time-outs of 6 s at most, twice


@dataclass(frozen=True)
class Result:
    """What one seed showed. `failure` is empty when all invariants held."""

    seed: int
    script: tuple[Fault, ...]
    failure: str
    epochs: int
    answered: int
    down: bool

    def story(self) -> str:
        """For a human: the script and what broke."""
        return "\n".join([f"seed {self.seed}: {self.failure}", *(f"  {fault}" for fault in self.script)])


def run_seed(seed: int, breaks: Breaks | None = None, script: list[Fault] | None = None) -> Result:
    """Run one seed; `script` replaces the faults that the seed would draw."""
    faults = draw(seed) if script is None else script
    world = World(seed, breaks)
    apply(world, faults)
    failure, down = "", False
    try:
        world.clock.run_until(HEALED_MS)
        heal_all(world)
        world.clock.run_until(SETTLED_MS)
        down = _check_settled(world)
    except Violation as violation:
        failure = str(violation)
    files = world.storage.files
    return Result(seed, tuple(faults), failure, max(files.records), world.check.acknowledged, down)


def _check_settled(world: World) -> bool:
    """Healed long enough: one live copy that answers and is protected again, or a VM that is down for a good reason."""
    alive = [copy for copy in world.guest.copies if copy.alive]
    if world.check.live.guest_off or not world.check.live.alive:
        if not world.legitimately_down():
            raise Violation(f"the VM is down and need not be: {_describe(world)}")
        if any(copy.state is QemuState.PLAIN and not copy.guest_off for copy in alive):
            raise Violation(f"the VM is down, yet a copy runs: {_describe(world)}")
        return True
    before = world.check.acknowledged
    world.clock.run_until(SETTLED_MS + 1500)
    if world.check.acknowledged <= before:
        raise Violation(f"the client gets no answers: {_describe(world)}")
    if [copy.state for copy in world.guest.copies if copy.alive and copy is not world.check.live] != [
        QemuState.SECONDARY_LOADED
    ]:
        raise Violation(f"not protected again: {_describe(world)}")
    return False


def _describe(world: World) -> str:
    copies = [f"{c.host.name}/{c.epoch}/{c.state}{'/' + c.death if c.death else ''}" for c in world.guest.copies]
    reasons = [f"{n}:{a.last.reason if a.last else '-'}" for n, a in world.agents.items()]
    files = world.storage.files
    return f"copies {copies}, agents {reasons}, winners {files.winners}, latest {files.latest()}, {files.operation}"
