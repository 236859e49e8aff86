"""`ftkvm simulate`: the FT pair and the HA cluster against histories that a seed invents, or that a scenario tells."""

import difflib
import gc
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import click

from ftkvm.sim.ha.run import Result as HaResult
from ftkvm.sim.ha.run import run_seed as run_ha_seed
from ftkvm.sim.ha.run import shorten
from ftkvm.sim.ha.scenario import load, play
from ftkvm.sim.run import Result, run_seed

CHUNK = 25
HA_CHUNK = 2
GARBAGE_EVERY = 200_000
"""Objects made before Python looks for cycles: a history makes millions, few of them in cycles (14 % of its time)."""
Run = Callable[[Callable[[int], Result | HaResult], int, Iterable[int]], Iterable[Result | HaResult]]


@click.command("simulate")
@click.argument("scenarios", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(1), help="How many histories per world.")
@click.option("--first-seed", default=1, show_default=True, type=click.IntRange(0), help="The first one's seed.")
@click.option("--seed", type=click.IntRange(0), help="One history only, that of this seed.")
@click.option("--world", default="both", show_default=True, type=click.Choice(["ha", "pair", "both"]))
@click.option("--jobs", default=0, type=click.IntRange(0), help="Processes; 0: as many as CPUs.")
@click.option("--show", is_flag=True, help="Print the script of every seed, the log of every scenario.")
@click.option("--accept", is_flag=True, help="Write what comes of the scenarios to their expected.log.")
def simulate(
    scenarios: tuple[Path, ...], seeds: int, first_seed: int, seed: int | None, world: str, jobs: int, show: bool,
    accept: bool,
) -> None:  # fmt: skip
    """Run the production decisions through failures: those of SCENARIOS (directories), else those that seeds invent.

    A seed always gives the same history. Exit status 1 if an invariant did not hold or a log was not as expected; the
    script of each failing seed is printed, shortened. Docs: docs/safety.md, docs/ha.md.
    """
    if scenarios:
        failed = sum(not _scenario(path, show, accept) for path in scenarios)
        click.echo(f"{len(scenarios) - failed} passed, {failed} failed")
        sys.exit(1 if failed else 0)
    chosen = [seed] if seed is not None else range(first_seed, first_seed + seeds)
    began = time.monotonic()
    count = failed = down = 0
    with _runner(1 if len(chosen) == 1 else jobs or os.cpu_count() or 1) as run:
        for result in _all(run, world, chosen):
            count += 1
            failed += bool(result.failure)
            down += result.down
            if result.failure and isinstance(result, HaResult):
                result = shorten(result)
            if result.failure or show:
                click.echo(result.story())
    click.echo(f"{time.monotonic() - began:.1f} s; {down} histories rightly ended with the VM down")
    click.echo(f"{count - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


def _scenario(path: Path, show: bool, accept: bool) -> bool:
    scenario = load(path)
    log = play(scenario)
    if accept:
        (path / "expected.log").write_text("\n".join(log) + "\n")
        return True
    if show:
        click.echo("\n".join([f"== {scenario.name}", *log]))
    for line in difflib.unified_diff(scenario.expected, log, f"{path}/expected.log", "what came", lineterm="", n=2):
        click.echo(line)
    return list(scenario.expected) == log


def _all(run: Run, world: str, seeds: Iterable[int]) -> Iterator[Result | HaResult]:
    if world in ("pair", "both"):
        yield from run(run_seed, CHUNK, seeds)
    if world in ("ha", "both"):
        yield from run(run_ha_seed, HA_CHUNK, seeds)


@contextmanager
def _runner(jobs: int) -> Iterator[Run]:
    if jobs == 1:
        yield lambda one, _chunk, seeds: map(one, seeds)
        return
    with ProcessPoolExecutor(jobs, initializer=gc.set_threshold, initargs=(GARBAGE_EVERY,)) as pool:
        yield lambda one, chunk, seeds: pool.map(one, seeds, chunksize=chunk)
