"""The VMs of this host as the HA machine sees them, without libvirt and without the datastore: both may hang."""

import json
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Protocol

from ftkvm.adapters.qemus import Qemu, Qemus
from ftkvm.core.ha.model import LocalVm

_WORDS = {"start": "starting", "migrate": "migrating", "stop": "stopping"}
_ROLES = ("primary", "secondary", "solo")


class Running(Protocol):
    """What is needed of an operation under way (agent.operations.Operation)."""

    @property
    def kind(self) -> str: ...
    @property
    def uuid(self) -> str: ...


class LocalVms:
    """``running``: the operations under way; ``pair_role``: what the PairManager knows of a copy, else None;
    ``protected``: UUIDs of the VMs with FT on, as last read."""

    def __init__(
        self,
        qemus: Qemus,
        run: Path,
        running: Callable[[], Iterable[Running]],
        pair_role: Callable[[str], str | None],
        protected: Callable[[], Collection[str]],
    ) -> None:
        self._qemus = qemus
        self._run = run
        self._running = running
        self._pair_role = pair_role
        self._protected = protected

    def look(self) -> tuple[LocalVm, ...]:
        """Every QEMU here, and every VM with an operation under way that may bring one or take it away.

        safety: nothing is left out. Who hears from us that no ordinary VM runs here may start ours elsewhere.
        """
        found = {}
        for operation in self._running():  # first: what it starts may appear among the processes meanwhile
            if operation.kind in _WORDS:
                found[operation.uuid] = LocalVm(operation.uuid, "solo", _WORDS[operation.kind])
        for uuid, qemu in self._qemus.look().items():
            paused = self._qemus.paused(qemu)
            found[uuid] = LocalVm(uuid, self._role(qemu, paused), "paused" if paused else "running")
        return tuple(found[uuid] for uuid in sorted(found))

    def _role(self, qemu: Qemu, paused: bool) -> str:
        if paused and (self._run / "incoming" / f"{qemu.uuid}.json").exists():  # a live migration's other end
            return "incoming"
        known = self._pair_role(qemu.uuid)
        if known is not None:
            return known
        try:
            role = json.loads((self._run / "pairs" / f"{qemu.uuid}.json").read_text()).get("role")
        except (OSError, ValueError, AttributeError):
            role = None
        if role in _ROLES:
            return str(role)
        return "secondary" if paused and qemu.uuid in self._protected() else "solo"
