"""What the HA machine of one host sees, does and tells. Plain data; times are milliseconds of its own monotonic clock.

One machine per host, the same on all of them (HA-01): every host beats and guards its own VMs, the primary hosts watch
each other and everybody, one of them is the coordinator. The machine never waits: it asks for actions, and their ends
come back as :class:`Ended` in a later :class:`Seen`. An action whose end never comes is of unknown outcome.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

# ---------------------------------------------------------------------------------------------- on the datastore


class HostMode(StrEnum):
    """What a host says of itself in its heartbeat."""

    LIVE = "live"
    ISOLATED = "isolated"
    MAINTENANCE = "maintenance"


@dataclass(frozen=True)
class Heartbeat:
    """``hosts/<host>/ha.json``: written every heartbeat interval by the agent's HA loop, and by nothing else.

    ``watchdog_ms``: 0, or the time after which an armed watchdog ends this host when its agent stops petting it.
    ``stop_after_ms``: so long after the start of its last good write the host stops its VMs, and pets no more.
    """

    host: str
    boot_id: str
    counter: int
    mode: HostMode = HostMode.LIVE
    watchdog_ms: int = 0
    stop_after_ms: int = 0


@dataclass(frozen=True)
class Lease:
    """``leases/coordinator/<term>.json``, created once per term; ``host`` None: the holder gave it up.

    A term is alive as long as its holder's heartbeat counter moves under the same boot id.
    """

    term: int
    host: str | None
    boot_id: str


@dataclass(frozen=True)
class Roles:
    """``roles/<number>.json``, created once per number: the primary hosts, at most five."""

    number: int
    primaries: tuple[str, ...]


class OwnerWhy(StrEnum):
    """Why an owner file names who it names."""

    STARTED = "started"
    RESTARTED = "restarted"  # by HA
    MIGRATED = "migrated"
    STOPPED = "stopped"  # host None: the operator or the guest switched it off
    RELEASED = "released"  # host None: an isolation response or a lost datastore stopped it; HA starts it again
    EVACUATED = "evacuated"
    PREPARING = "preparing"  # its disks are being converted: nobody may start it meanwhile
    FAILOVER = "failover"  # the copy that went on when the other one was lost


@dataclass(frozen=True)
class Owner:
    """``vms/<uuid>/owner/<number>.json``, created once per number: who may run the VM. Number 0: nobody ever did."""

    number: int
    host: str | None
    boot_id: str
    why: OwnerWhy = OwnerWhy.STARTED


class Priority(StrEnum):
    """Restart priority (HA-08). ``disabled``: HA never starts this VM."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    DISABLED = "disabled"


class IsolationResponse(StrEnum):
    """HA-05."""

    SHUTDOWN = "shutdown"
    POWER_OFF = "power-off"
    LEAVE_ON = "leave-on"


@dataclass(frozen=True)
class FtEpoch:
    """The newest epoch of a VM that was ever in a pair; ``winner`` None: not decided.

    ``owner``: number of the owner file when the pair was recorded; a newer one is the later word (agent/records.py).
    None: a record of an older version, from which nothing is concluded. ``nobody``: the epoch ended so that no copy of
    it goes live. Boot ids as the record and the winner's file have them; "" if they do not.
    """

    epoch: int
    primary: str
    secondary: str
    winner: str | None
    primary_boot_id: str = ""
    secondary_boot_id: str = ""
    winner_boot_id: str = ""
    owner: int | None = None
    nobody: bool = False
    home: str | None = None  # its images are on this host's disks only: the VM is started nowhere else


@dataclass(frozen=True)
class Vm:
    """A registered VM as the datastore has it, with the settings that are in force for it (cluster's or its own)."""

    uuid: str
    name: str
    power: bool  # what is wanted: the operator switched it on, and neither they nor the guest switched it off
    owner: Owner
    priority: Priority = Priority.MEDIUM
    isolation_response: IsolationResponse = IsolationResponse.SHUTDOWN
    cpu_mhz: int = 0  # reservation
    memory_mb: int = 0  # reservation and overhead: what a host must have free to run it
    bridges: frozenset[str] = frozenset()
    ft: FtEpoch | None = None
    protected: bool = False  # FT is on
    failed_attempts: int = 0  # of HA to start it, since it last ran (agent/attempts.py)

    @property
    def runners(self) -> tuple[tuple[str, str], ...]:
        """The boots (host, boot id) that may have a copy of it, by what the datastore says."""
        epoch = self.open_epoch
        if epoch is None:
            return () if self.owner.host is None else ((self.owner.host, self.owner.boot_id),)
        if epoch.winner is not None:
            return ((epoch.winner, epoch.winner_boot_id),)
        return ((epoch.primary, epoch.primary_boot_id), (epoch.secondary, epoch.secondary_boot_id))

    @property
    def open_epoch(self) -> FtEpoch | None:
        """The epoch that says who may run the VM; None: the owner file does."""
        if self.ft is None or (self.ft.owner is not None and self.owner.number > self.ft.owner):
            return None
        return self.ft if self.ft.owner is not None or self.protected else None


# ------------------------------------------------------------------------------------------------ what a host sees


@dataclass(frozen=True)
class HostCapacity:
    """What a host told about itself with its last beat: free and unreserved, for placement (HA-07)."""

    cpu_mhz: int
    memory_mb: int
    bridges: frozenset[str] = frozenset()
    compatible: bool = True  # versions, datastore: it can take VMs at all
    why_not: str = ""


@dataclass(frozen=True)
class Beats:
    """What was heard of another host: the last beat on each HA network, the last answer to a ping."""

    networks: Mapping[str, int]
    ping_answered: int | None = None
    solo_vms: int | None = None  # how many ordinary VMs its last beat says it runs
    capacity: HostCapacity | None = None

    @cached_property
    def heard_ms(self) -> int | None:
        """When the last beat came, on whatever network; None: none has."""
        return max(self.networks.values(), default=None)


@dataclass(frozen=True)
class LocalVm:
    """A QEMU on this host. ``role``: solo, or a copy of an FT pair, which has its own rules and is left alone here."""

    uuid: str
    role: str = "solo"
    state: str = "running"


class Result(StrEnum):
    """How an action ended."""

    OK = "ok"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Ended:
    """An action ended. ``value``: what it read, as the action's class says."""

    action: "Action"
    result: Result
    value: object = None
    code: str = ""
    detail: str = ""


@dataclass(frozen=True)
class HaSettings:
    """The settings the machine needs, in milliseconds; see ``settings.py`` for names, defaults, ranges (HA-18)."""

    enabled: bool = True
    host_monitoring: bool = True  # HA-15
    interval_ms: int = 1000
    failure_ms: int = 15_000
    isolation_ms: int = 12_000
    isolation_addresses: tuple[str, ...] = ()
    lease_ms: int = 15_000
    stop_after_ms: int = 8_000
    shutdown_timeout_ms: int = 300_000
    max_attempts: int = 5
    retry_first_ms: int = 5_000
    retry_most_ms: int = 60_000
    watchdog_ms: int = 5_000  # for the runner, which arms it


@dataclass(frozen=True)
class Cluster:
    """The configuration: hosts in the order they joined; in maintenance; with a power fencing device."""

    hosts: tuple[str, ...]
    maintenance: frozenset[str] = frozenset()
    fenceable: frozenset[str] = frozenset()
    failover_host: str | None = None  # das.defaultfailoverhost, or the admission policy's
    settings: HaSettings = field(default_factory=HaSettings)
    removed: Mapping[str, str] = field(default_factory=dict)  # hosts removed as dead: the boot that is over


@dataclass(frozen=True)
class Seen:
    """All a host knows at one turn of its loop. ``ended``: only what ended since the last turn."""

    now_ms: int
    me: str
    boot_id: str
    cluster: Cluster
    beats: Mapping[str, Beats]  # of every other host that was ever heard
    local: tuple[LocalVm, ...]
    watchdog_ms: int  # 0: none armed here
    ended: tuple[Ended, ...] = ()
    capacity: HostCapacity | None = None  # of this host, for placement; None: it takes no VMs
    vms_changed_ms: int | None = None  # when this host was last told that a VM's settings were changed

    def changed_since(self, asked_ms: int | None) -> bool:
        """Whether VMs that were asked for then may have other settings now."""
        return self.vms_changed_ms is not None and (asked_ms is None or asked_ms < self.vms_changed_ms)


# --------------------------------------------------------------------------------------------------------- actions


@dataclass(frozen=True)
class WriteHeartbeat:
    """Write our heartbeat. The machine counts from the turn it asked, which is before the write began."""

    heartbeat: Heartbeat


@dataclass(frozen=True)
class ReadHeartbeats:
    """Read all hosts' heartbeats, the newest lease and roles; value: :class:`HeartbeatsRead`.

    ``asked_ms`` here and below: the turn that asked. What was read is no older than that.
    """

    asked_ms: int = 0


@dataclass(frozen=True)
class HeartbeatsRead:
    """What :class:`ReadHeartbeats` found. ``corrupt``: files that were not understood, by path; left alone."""

    heartbeats: Mapping[str, Heartbeat]
    lease: Lease | None
    roles: Roles | None
    corrupt: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClaimLease:
    """Create the lease of a term (or, with ``host`` None, give ours up); value: the Lease that is there afterwards."""

    lease: Lease


@dataclass(frozen=True)
class ClaimRoles:
    """Create the next roles; value: the Roles that are there afterwards."""

    roles: Roles


@dataclass(frozen=True)
class ReadVms:
    """Read all VMs with their owners; value: tuple of Vm. ``local``: only those that this host owns."""

    local: bool = False
    asked_ms: int = 0


@dataclass(frozen=True)
class Ping:
    """Ping addresses once each (isolation addresses, or hosts'); value: those that answered."""

    addresses: tuple[str, ...]
    hosts: bool = False
    asked_ms: int = 0


@dataclass(frozen=True)
class PetWatchdog:
    """Put the watchdog off. Done at once, has no end."""


@dataclass(frozen=True)
class StopVm:
    """End the VM here: ``power_off`` at once, else shut it down, and switch it off in the end. Then release it.

    ``release``: its owner file's next number is written with host None and this reason, if the datastore lets us.
    """

    uuid: str
    power_off: bool
    timeout_ms: int
    release: OwnerWhy
    reason: str
    owner: int | None = None  # nothing is to be ended, only released, and only while this is the newest owner number


@dataclass(frozen=True)
class StartVm:
    """Have ``host`` start the VM; it claims the owner file ``owner + 1``, so of two starters one goes on.

    ``cold_epoch``: an FT VM both of whose hosts are gone: first win that epoch for ``cold_winner`` (its primary).
    """

    uuid: str
    name: str
    host: str
    owner: int
    attempt: int
    cold_epoch: int | None = None
    cold_winner: str | None = None


@dataclass(frozen=True)
class Fence:
    """Switch a host off by its power fencing device, and see that it is off."""

    host: str


Action = (
    WriteHeartbeat | ReadHeartbeats | ClaimLease | ClaimRoles | ReadVms | Ping | PetWatchdog | StopVm | StartVm | Fence
)


# ---------------------------------------------------------------------------------------------------------- answers


class HostState(StrEnum):
    """A host as another one sees it."""

    LIVE = "live"
    UNHEARD = "unheard"  # no beats for a while; not yet failed
    CUT_OFF = "cut-off"  # no beats, no ping, but its heartbeat on the datastore moves
    ISOLATED = "isolated"  # it says so itself on the datastore
    NO_STORAGE = "no-storage"  # it beats, but its heartbeat on the datastore stands still
    HUNG = "hung"  # its kernel answers pings, its agent does not beat
    DEAD = "dead"  # nothing heard, heartbeat stood still for the lease time, and watchdog or fence covers it
    UNSAFE = "unsafe"  # as dead, but nothing proves that it cannot write any more: no automatic takeover
    MAINTENANCE = "maintenance"


@dataclass(frozen=True)
class HostView:
    """What this host makes of another one, and why (for people)."""

    host: str
    state: HostState
    why: str
    since_ms: int


class Role(StrEnum):
    """HA-01."""

    COORDINATOR = "coordinator"
    PRIMARY = "primary"
    SECONDARY = "secondary"


@dataclass(frozen=True)
class Waiting:
    """A VM that HA wants running and that does not run: failed attempts, when it is tried next, why not now."""

    uuid: str
    name: str
    attempts: int
    next_ms: int
    why: str


@dataclass(frozen=True)
class Event:
    """Something worth keeping: goes to the journal and to ``history/<host>.jsonl``. ``kind`` is a stable word."""

    kind: str
    text: str
    host: str = ""
    vm: str = ""
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Status:
    """What ``cluster status`` shows of this machine."""

    role: Role
    coordinator: str | None
    term: int
    isolated: bool
    datastore_ok: bool
    hosts: tuple[HostView, ...]
    waiting: tuple[Waiting, ...]


@dataclass(frozen=True)
class Turn:
    """What one turn came to. ``state`` is the machine's own; hand it to the next turn unseen."""

    state: object
    actions: tuple[Action, ...]
    events: tuple[Event, ...]
    status: Status
