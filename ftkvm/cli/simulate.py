"""`ftkvm simulate`: the go-live protocol against histories that a seed invents."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager

import click

from ftkvm.sim.run import Result, run_seed

CHUNK = 25
Run = Callable[[Iterable[int]], Iterable[Result]]


@click.command("simulate")
@click.option("--seeds", default=200, show_default=True, type=click.IntRange(1), help="How many histories.")
@click.option("--first-seed", default=1, show_default=True, type=click.IntRange(0), help="The first one's seed.")
@click.option("--jobs", default=0, type=click.IntRange(0), help="Processes; 0: as many as CPUs.")
@click.option("--show", is_flag=True, help="Print the script of every seed, not only of failing ones.")
def simulate(seeds: int, first_seed: int, jobs: int, show: bool) -> None:
    """Run the production decisions of both agents of a pair through seeded failures.

    A seed always gives the same history. Exit status 1 if an invariant did not hold; the script of each failing seed is
    printed. Docs: docs/safety.md.
    """
    began = time.monotonic()
    failed = down = 0
    with _runner(jobs or os.cpu_count() or 1) as run:
        for result in run(range(first_seed, first_seed + seeds)):
            failed += bool(result.failure)
            down += result.down
            if result.failure or show:
                click.echo(result.story())
    click.echo(f"{time.monotonic() - began:.1f} s; {down} histories rightly ended with the VM down")
    click.echo(f"{seeds - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


@contextmanager
def _runner(jobs: int) -> Iterator[Run]:
    if jobs == 1:
        yield lambda seeds: map(run_seed, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield lambda seeds: pool.map(run_seed, seeds, chunksize=CHUNK)
