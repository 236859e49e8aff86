"""What the machine remembers from turn to turn. Times are milliseconds of this host's monotonic clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ftkvm.core.ha.model import HostView, Lease, Roles, Vm, Waiting
from ftkvm.core.ha.restart import Try
from ftkvm.core.ha.windows import Windows


@dataclass(frozen=True)
class State:
    """``*_asked_ms``: when an action that has not ended was asked for; None: none is under way."""

    started_ms: int
    last_turn_ms: int
    # our heartbeat
    good_write_ms: int  # when the last write that succeeded was asked for
    counter: int = 0
    wrote_ms: int | None = None
    write_asked_ms: int | None = None
    written: bool = False  # at least one write of this life succeeded
    # the others
    windows: Windows = field(default_factory=lambda: Windows({}))
    read_asked_ms: int | None = None
    has_read: bool = False
    lease: Lease | None = None
    roles: Roles | None = None
    corrupt: tuple[str, ...] = ()
    views: Mapping[str, HostView] = field(default_factory=dict)
    heard_ms: int = 0  # when the last beat of anybody came
    ping_hosts_ms: int | None = None
    # isolation
    isolated_ms: int | None = None
    ping_asked_ms: int | None = None
    gateway_silent: bool = False
    # our own VMs
    own_vms: tuple[Vm, ...] = ()
    own_vms_ms: int | None = None
    own_asked_ms: int = 0
    local_read_ms: int | None = None
    missing: Mapping[str, int] = field(default_factory=dict)  # VM that is ours and has no QEMU → since when
    stopping: Mapping[str, str] = field(default_factory=dict)  # VM → why it is being stopped
    storage_lost: bool = False
    # election
    lease_asked_ms: int | None = None
    gave_up_term: int = 0
    # coordinator
    roles_asked_ms: int | None = None
    vms: tuple[Vm, ...] = ()
    vms_ms: int | None = None  # when the reading that gave `vms` was asked for
    vms_arrived_ms: int = 0
    vms_asked_ms: int | None = None
    stale: bool = True  # something happened since: read again before anything is concluded
    tries: Mapping[str, Try] = field(default_factory=dict)
    waiting: tuple[Waiting, ...] = ()
    fenced: Mapping[str, str] = field(default_factory=dict)  # host → boot id that was switched off
    fencing: Mapping[str, int] = field(default_factory=dict)  # host → since when, or when it failed last
    fence_failed: Mapping[str, int] = field(default_factory=dict)
    gone_before: frozenset[str] = frozenset()
