"""What one turn of the HA machine works on: what is seen, and the actions and events it comes to."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from ftkvm.core.ha.model import Action, Ended, Event, HaSettings, Seen

A = TypeVar("A")

PAUSE_MS = 3000
"""Longest gap between good reads, or between two turns, over which standing still is still counted."""


@dataclass
class Desk:
    """Lives for one turn only; nothing of it is kept."""

    seen: Seen
    actions: list[Action] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now: int = self.seen.now_ms
        self.settings: HaSettings = self.seen.cluster.settings

    def ask(self, action: Action) -> None:
        self.actions.append(action)

    def tell(self, kind: str, text: str, host: str = "", vm: str = "", **detail: object) -> None:
        self.events.append(Event(kind, text, host, vm, detail))

    def ends(self, kind: type[A]) -> Iterator[tuple[A, Ended]]:
        """The actions of a kind that ended since the last turn."""
        for ended in self.seen.ended:
            if isinstance(ended.action, kind):
                yield ended.action, ended

    def due(self, asked_ms: int | None, every_ms: int) -> bool:
        """Whether something done every so often is due; turns come a little early now and then."""
        return asked_ms is None or self.now - asked_ms >= every_ms - every_ms // 10
