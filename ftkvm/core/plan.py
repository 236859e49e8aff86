"""Plans as data, and what to do next with one that was interrupted anywhere.

A step is a command, the observation that proves it done, and its undo. The journal is written before a step is run
(*begun*) and after its proof was seen (*done*). Between the two its outcome is unknown, whatever the command returned
and whether or not the agent that ran it still lives: then the proof is observed before anything else is decided.

One step of a plan is the commit point. Before it, trouble undoes every step that was begun, in reverse; after it, the
plan only goes forward. An undo has to be idempotent and to cope with a step that was half done or never ran: so it
needs no observation, and an interrupted undo is simply run again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Where(StrEnum):
    """On which side a step acts."""

    PRIMARY = "primary"
    SECONDARY = "secondary"
    DATASTORE = "datastore"


@dataclass(frozen=True)
class Step:
    """One step. `does`, `proves` and `undoes` are names that the engine binds to commands and observations.

    `undoes` None: nothing to undo (said deliberately). `text` is what the user is shown while it runs.
    """

    name: str
    where: Where
    text: str
    does: str
    proves: str
    undoes: str | None
    deadline_ms: int = 30_000


@dataclass(frozen=True)
class Plan:
    """Steps in order; `commit` names the one with which there is no way back. Raises ValueError if senseless."""

    kind: str
    steps: tuple[Step, ...]
    commit: str

    def __post_init__(self) -> None:
        names = [step.name for step in self.steps]
        if len(set(names)) != len(names) or self.commit not in names:
            raise ValueError(
                f"plan {self.kind}: step names must be unique and contain the commit point {self.commit!r}"
            )

    def step(self, name: str) -> Step:
        """The step of that name. Raises KeyError."""
        for step in self.steps:
            if step.name == name:
                return step
        raise KeyError(name)

    def position(self, name: str) -> int:
        """Where in the plan the step of that name stands."""
        return self.steps.index(self.step(name))


class Mark(StrEnum):
    """What the journal says of a step; none: it was never begun."""

    BEGUN = "begun"
    DONE = "done"
    UNDONE = "undone"


@dataclass(frozen=True)
class Journal:
    """What is written to the datastore while a plan runs. Immutable; each verb returns the journal to be written.

    `trouble`: why it is not simply going on (a failed step, a cancellation, an agent's restart); "" if none.
    """

    kind: str
    epoch: int
    marks: Mapping[str, Mark] = field(default_factory=dict)
    trouble: str = ""

    def begin(self, step: Step) -> "Journal":
        """To be on the datastore before the step's command is sent."""
        return self._mark(step, Mark.BEGUN)

    def finish(self, step: Step) -> "Journal":
        """To be written when the step's proof was seen."""
        return self._mark(step, Mark.DONE)

    def undone(self, step: Step) -> "Journal":
        """To be written when the step's undo has run without an error."""
        if step.name not in self.marks:
            raise ValueError(f"step {step.name} was never begun, so it cannot be undone")
        return self._mark(step, Mark.UNDONE)

    def fail(self, trouble: str) -> "Journal":
        """The plan does not simply go on. The first trouble is kept: the later ones follow from it."""
        return self if self.trouble else replace(self, trouble=trouble)

    def resumed(self) -> "Journal":
        """What an agent makes of a journal that it finds at its start."""
        return self.fail("interrupted")

    def _mark(self, step: Step, mark: Mark) -> "Journal":
        return replace(self, marks={**self.marks, step.name: mark})

    def to_json(self) -> dict[str, Any]:
        """The document for `ft/<uuid>/operation.json`."""
        marks = {name: str(mark) for name, mark in self.marks.items()}
        return {"kind": self.kind, "epoch": self.epoch, "marks": marks, "trouble": self.trouble}

    @classmethod
    def from_json(cls, doc: Mapping[str, Any]) -> "Journal":
        """Raises KeyError or ValueError on a document that is none."""
        marks = {str(name): Mark(mark) for name, mark in doc["marks"].items()}
        return cls(str(doc["kind"]), int(doc["epoch"]), marks, str(doc["trouble"]))


# ------------------------------------------------------------------------------------------------ moves


@dataclass(frozen=True)
class Run:
    """Write `journal.begin(step)`, send its command, observe its proof, write `journal.finish(step)`."""

    step: Step


@dataclass(frozen=True)
class Undo:
    """Send the step's undo, then write `journal.undone(step)`."""

    step: Step


@dataclass(frozen=True)
class NeedsObservation:
    """The step's outcome is unknown: observe `step.proves` and ask again."""

    step: Step


@dataclass(frozen=True)
class Finished:
    """Nothing is left to do. `done`: the plan was carried out; else all of it was undone."""

    done: bool


Move = Run | Undo | NeedsObservation | Finished


def next_move(plan: Plan, journal: Journal, observed: Mapping[str, bool]) -> Move:
    """What to do next. `observed`: proofs looked at just now; a missing one was not looked at or did not answer."""
    if any(mark is Mark.UNDONE for mark in journal.marks.values()):
        return _backward(plan, journal)  # an undo has begun, so the commit point was seen not to be reached
    if not journal.trouble:
        return _forward(plan, journal, observed)
    committed = is_committed(plan, journal, observed)
    if committed is None:
        return NeedsObservation(plan.step(plan.commit))
    return _forward(plan, journal, observed) if committed else _backward(plan, journal)


def is_committed(plan: Plan, journal: Journal, observed: Mapping[str, bool]) -> bool | None:
    """Whether there is no way back any more; None: the commit step was begun and its proof has not been looked at."""
    after = plan.steps[plan.position(plan.commit) + 1 :]
    mark = journal.marks.get(plan.commit)
    if mark is Mark.DONE or any(journal.marks.get(step.name) in (Mark.BEGUN, Mark.DONE) for step in after):
        return True
    return observed.get(plan.step(plan.commit).proves) if mark is Mark.BEGUN else False


def _forward(plan: Plan, journal: Journal, observed: Mapping[str, bool]) -> Move:
    for step, following in zip(plan.steps, (*plan.steps[1:], None), strict=True):
        mark = journal.marks.get(step.name)
        if mark is None:
            return Run(step)
        if mark is Mark.DONE or (following is not None and following.name in journal.marks):
            continue  # a step is begun only when the proof of the one before it was seen
        proof = observed.get(step.proves)
        if proof is None:
            return NeedsObservation(step)
        if not proof:
            return Run(step)
    return Finished(done=True)


def _backward(plan: Plan, journal: Journal) -> Move:
    for step in reversed(plan.steps):
        if step.undoes is not None and journal.marks.get(step.name) in (Mark.BEGUN, Mark.DONE):
            return Undo(step)
    return Finished(done=False)
