"""Changing the cluster's beat keys, so that a host that has left cannot forge beats.

The steps are ``ftkvm/keeper/keys.py``'s. safety: a step begins only when *every* member has said that it has the one
before on its disk, in its keeper and in its HA part. So at any moment whatever one host signs every other one accepts,
and no pair and no host is lost by it, whoever is silent or killed in between, this command too: what it goes by is on
the operator's disk before any host gets it, and run again it goes on from there. A host that is silent is waited for
and not passed over: it may only be cut off from here, and be in a pair.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from ftkvm.catalogue import FtkvmError
from ftkvm.home import BeatsDue, Home
from ftkvm.keeper.keys import BeatKeys
from ftkvm.ports import Json

_UNKNOWN = 5
"""Exit status of an error that leaves open whether it was done."""


class Asks(Protocol):
    """How one host's agent is asked (:class:`ftkvm.cli.client.AgentClient`)."""

    def ask(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 10.0) -> Json: ...


@dataclass(frozen=True)
class Changed:
    """How far it came. ``waits``: hosts that have not taken the step reached, and why."""

    number: int
    finished: bool
    waits: dict[str, str]

    def to_json(self) -> Json:
        return {"number": self.number, "finished": self.finished, "waits": self.waits}

    def silent(self) -> str:
        """Who is waited for, and why."""
        return "; ".join(f"{host}: {why}" for host, why in self.waits.items())

    def text(self) -> str:
        """For a human."""
        if not self.finished:
            return f"The beat key is not changed yet, {self.silent()}. `ftkvm cert rotate-beats` goes on."
        late = f" Not told yet (told when it is back): {self.silent()}." if self.waits else ""
        return f"The beats are signed with a new key; the old one counts no more.{late}"


@contextmanager
def leaving(home: Home, host: str) -> Iterator[None]:
    """Around the removal of a host: that the keys it knows are to be changed is noted before it is out."""
    noted = host in home.beats_due().due
    _note(home, host, due=True)
    try:
        yield
    except FtkvmError as error:
        if error.message.exit_status != _UNKNOWN:
            _note(home, host, due=noted)
        raise


def _note(home: Home, host: str, *, due: bool) -> None:
    with home.held(alone=True):
        there = home.beats_due()
        names = {*there.due, host} if due else {*there.due} - {host}
        home.save_beats_due(replace(there, due=sorted(names)))


def members(home: Home, told: Iterable[str]) -> list[str]:
    """Who must have the keys: all hosts known here, and those that the cluster itself names (``told``).

    One that has just left may still be named by an agent that has not read the newest configuration: it gets nothing.
    """
    there = home.beats_due()
    return sorted({*home.load().hosts, *(set(told) - {*there.due, *there.leaving})})


def change(home: Home, client: Asks, hosts: list[str], *, anew: bool = False) -> Changed:
    """Go on with a change under way, then change the keys if somebody has left, or if asked to (``anew``).

    The caller holds the keys alone since before it asked who the members are: no host may be added meanwhile. The
    revocation list goes first: a host that has not read that another one is out would give it the keys.
    """
    keys, changed = home.beat_keys(), False
    waits = _tell(client, hosts, "/v1/security/revoked", {"list": home.revocation_list().decode()})
    while True:
        waits = waits or _give(client, hosts, keys)
        wanted = bool(home.beats_due().due) or (anew and not changed)
        if waits or (keys.settled and not wanted):
            return Changed(keys.number, keys.settled and not wanted, waits)
        changed = changed or not keys.settled
        keys = _next(home, keys)


def _next(home: Home, keys: BeatKeys) -> BeatKeys:
    """The next step, on the disk. Who has left is struck off last: cut off before, the keys are changed once more."""
    coming = keys.offered(secrets.token_bytes(32)) if keys.settled else keys.advanced()
    home.save_beat_keys(coming)
    there = home.beats_due()
    if keys.settled:
        home.save_beats_due(BeatsDue([], there.due))
    elif coming.settled:
        home.save_beats_due(replace(there, leaving=[]))
    return coming


def _give(client: Asks, hosts: list[str], keys: BeatKeys) -> dict[str, str]:
    """Have all hosts use these; returns those that have not said that they do, and why."""

    def missing(said: Json) -> str:
        used = said.get("number") == keys.number and said.get("keeper") is True
        return "" if used else f"it has not taken number {keys.number}"

    return _tell(client, hosts, "/v1/security/beat-keys", {"keys": keys.text()}, missing)


def _tell(
    client: Asks, hosts: list[str], path: str, body: Json, missing: Callable[[Json], str] = lambda _said: ""
) -> dict[str, str]:  # fmt: skip
    waits: dict[str, str] = {}
    if not all(body.values()):  # no list was ever made
        return waits
    for host in hosts:
        try:
            why = missing(client.ask(host, "POST", path, body))
        except FtkvmError as error:
            why = error.text
        if why:
            waits[host] = why
    return waits
