"""What every part of an agent is given: its host's configuration, the ports, and helpers for work that may hang."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ftkvm.agent.cluster import ClusterReader
from ftkvm.agent.workers import Workers
from ftkvm.config import HostConfig
from ftkvm.ports import Datastore, Peers

if TYPE_CHECKING:  # libvirt's binding exists on hosts only
    from ftkvm.adapters.libvirt import Libvirt


@dataclass(frozen=True)
class AgentContext:
    """The agent's surroundings; one object, made once at start, shared by all its parts.

    ``datastore`` blocks while the storage hangs: ``ctx.workers.run(lambda: ctx.datastore.read_json(p), 2.0, "read p")``
    bounds it. ``libvirt`` and ``peers`` are bounded by themselves.
    """

    config: HostConfig
    boot_id: str
    datastore: Datastore
    peers: Peers
    libvirt: "Libvirt"
    workers: Workers
    cluster: ClusterReader
    extras: dict[str, object] = field(default_factory=dict)
    """Parts that register themselves for others: ``pairs``, ``ha``, ``vm_monitor``, ``security``."""

    @property
    def host(self) -> str:
        """This host's name."""
        return self.config.name
