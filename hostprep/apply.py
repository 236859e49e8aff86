"""Runs a plan on a host, proves each step, and undoes what it had begun when one fails."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence

from ftkvm.catalogue import FtkvmError
from hostprep.runner import Runner
from hostprep.step import NOT_DONE, Step

log = logging.getLogger(__name__)
Progress = Callable[[int, int, str], None]
UNKNOWN = "FTKVM-360"
_QUESTION_S = 20.0
"""More than the step's own time, which the question may have to wait for."""


def apply(session: Runner, steps: Sequence[Step], progress: Progress, checks: Mapping[str, Callable[[], None]]) -> None:
    """Run the steps in order; each is believed only when its proof, and the check of its name, succeed.

    :raises FtkvmError: FTKVM-209, a step failed; it and the ones before it were undone, last first. FTKVM-360, nobody
        knows whether it was done; nothing was undone
    """
    begun: list[Step] = []
    try:
        for number, step in enumerate(steps, 1):
            progress(number, len(steps), step.text)
            begun.append(step)
            try:
                _run(session, step)
            except (FtkvmError, KeyboardInterrupt) as error:
                if not step.question or not _was_done(session, step, error):
                    raise
            if step.name in checks:
                checks[step.name]()
    except (FtkvmError, KeyboardInterrupt) as error:
        if not (isinstance(error, FtkvmError) and error.code == UNKNOWN):
            _undo(session, begun, progress)
        raise


def _was_done(session: Runner, step: Step, error: BaseException) -> bool:
    """Ask the host whether a step that was cut off, or failed, was done all the same.

    :raises FtkvmError: FTKVM-360, nobody knows
    """
    try:
        answer = session.run(step.question, step.stdin, step.timeout_s + _QUESTION_S)
        words = answer.stderr.strip()[-400:] or f"exit status {answer.status}"
    except (FtkvmError, KeyboardInterrupt) as silence:
        raise FtkvmError(UNKNOWN, host=session.host, step=step.name, detail=_words(silence)) from error
    if answer.status not in (0, NOT_DONE):
        raise FtkvmError(UNKNOWN, host=session.host, step=step.name, detail=words) from error
    if answer.status == 0:
        log.info("%s on %s was done, although: %s", step.name, session.host, _words(error))
    return answer.status == 0


def _words(error: BaseException) -> str:
    return error.text if isinstance(error, FtkvmError) else "interrupted"


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
