"""Runs a plan on a host, proves each step, and undoes what it had begun when one fails."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence

from ftkvm.catalogue import FtkvmError
from hostprep.plan import Step
from hostprep.runner import Runner

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]


def apply(session: Runner, steps: Sequence[Step], progress: Progress, checks: Mapping[str, Callable[[], None]]) -> None:
    """Run the steps in order; each is believed only when its proof, and the check of its name, succeed.

    :raises FtkvmError: FTKVM-209, a step failed; it and the ones before it were undone, last first
    """
    begun: list[Step] = []
    try:
        for number, step in enumerate(steps, 1):
            progress(number, len(steps), step.text)
            begun.append(step)
            _run(session, step)
            if step.name in checks:
                checks[step.name]()
    except (FtkvmError, KeyboardInterrupt):
        _undo(session, begun, progress)
        raise


def _run(session: Runner, step: Step) -> None:
    done = session.run(step.command, step.stdin, step.timeout_s)
    if done.status == 0:
        proof = session.run(step.proof, timeout_s=step.timeout_s)
        if proof.status == 0:
            return
        done = proof
    _raise_known(done.stderr)
    # the last words are the most telling
    words = (done.stderr.strip() or done.stdout.strip())[-400:] or f"exit status {done.status}"
    raise FtkvmError("FTKVM-209", host=session.host, step=step.name, detail=words)


def _raise_known(text: str) -> None:
    """Our own programs on the host report as one line of JSON."""
    for line in text.splitlines():
        if line.startswith('{"error"'):
            raise FtkvmError.from_json(json.loads(line)["error"])


def _undo(session: Runner, begun: Sequence[Step], progress: Progress) -> None:
    for number, step in enumerate(reversed(begun), 1):
        progress(number, len(begun), f"undo: {step.text}")
        try:
            done = session.run(step.undo, timeout_s=step.timeout_s)
        except FtkvmError as error:
            log.warning("undo of %s on %s: %s", step.name, session.host, error)
            return
        if done.status:
            log.warning("undo of %s on %s: %s", step.name, session.host, done.stderr.strip())
