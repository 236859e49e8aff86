"""Facts of all hosts, asked in parallel, for core's placement of a secondary."""

import logging
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from ..adapters.host_view import mixed_group, own_cpu
from ..catalogue import FtkvmError
from ..core.checks.domain import disk_files
from ..core.facts import DatastoreState
from ..core.ft_settings import effective
from ..core.ha.settings import kept_empty
from ..core.placement import HostFacts, Refusal, Room, VmNeeds, choose_secondary, lacking
from ..core.versions import dotted
from ..keeper.client import KeeperClient
from .context import AgentContext
from .ft_network import reached
from .own_images import stale_on, whole_copies
from .records import PairStore
from .storage import bounded

if TYPE_CHECKING:  # libvirt's binding exists on hosts only
    from .local_vm import LocalVm

log = logging.getLogger(__name__)

ASK_TIMEOUT_S = 1.0
ROOM_TIMEOUT_S = 5.0


def hosts_facts(ctx: AgentContext) -> list[HostFacts]:
    """What every host of the cluster says of itself now; one that does not answer is not alive."""
    asked: dict[str, Future[dict[str, Any]]] = {}
    entries = ctx.cluster.current(fresh=True).hosts  # a host that has just left maintenance must not be refused
    for name in entries:
        asked[name] = ctx.workers.submit(
            lambda name=name: ctx.peers.call(name, "GET", "/v1/peer/facts", timeout_s=ASK_TIMEOUT_S),  # type: ignore[misc]
            f"facts of {name}",
        )
    return [replace(_facts(name, future), maintenance=entries[name].maintenance) for name, future in asked.items()]


def _facts(name: str, future: "Future[dict[str, Any]]") -> HostFacts:
    try:
        said = future.result(ASK_TIMEOUT_S)
    except (FtkvmError, FutureTimeout) as error:
        log.info("facts of %s: %s", name, error)
        return HostFacts(name, False, DatastoreState.UNKNOWN, "", "", "", 0)
    return HostFacts(
        name,
        True,
        DatastoreState(said["datastore"]),
        said["qemu_version"],
        said["libvirt_version"],
        said["cpu"],
        int(said["free_memory_mb"]),
        int(said["ft_vms"]),
        bridges=frozenset(said["bridges"]),
        cpu_group=str(said.get("cpu_group", "")),
    )


def own_facts(ctx: AgentContext, ft_vms: int) -> dict[str, Any]:
    """This host's own facts, as ``GET /v1/peer/facts`` answers them."""
    versions = ctx.libvirt.require_versions()
    cpu = own_cpu()
    return {
        "datastore": KeeperClient().status().datastore.state,
        "qemu_version": dotted(versions.qemu),
        "libvirt_version": dotted(versions.libvirt),
        "cpu": cpu.fingerprint,
        "cpu_group": mixed_group(cpu),
        "free_memory_mb": psutil.virtual_memory().available >> 20,
        "ft_vms": ft_vms,
        "bridges": [name for name in ctx.config.vm_bridges if Path(f"/sys/class/net/{name}/bridge").is_dir()],
    }


def choose_host(ctx: AgentContext, vm: "LocalVm", wanted: str | None, exclude: Collection[str] = ()) -> str:
    """The host for the secondary of ``vm``; ``wanted`` is the operator's choice, checked like any other.

    ``exclude``: hosts that are not to be chosen, as the one it is moved away from.

    :raises FtkvmError: FTKVM-201 no such host, FTKVM-403 it is the primary's, FTKVM-404 none fits (with each reason)
    """
    if wanted is not None:
        ctx.cluster.host(wanted)
        if wanted == ctx.host:
            raise FtkvmError("FTKVM-403", host=wanted, vm=vm.name)
    return choose_for(ctx, vm.uuid, vm.name, vm.domains.xml(vm.uuid), wanted, exclude)


def choose_for(
    ctx: AgentContext, uuid: str, name: str, xml: str, wanted: str | None, exclude: Collection[str] = ()
) -> str:
    """The host for the secondary of a VM that runs here as ``xml``.

    :raises FtkvmError: FTKVM-404 none fits (with each reason), FTKVM-156 none has room for whole copies of its disks
    """
    needs, facts = VmNeeds.of(name, ctx.host, xml), hosts_facts(ctx)
    store = PairStore(ctx.datastore, uuid)
    if effective((bounded(ctx, store.vm, f"vms/{uuid}") or {}).get("ft", {}).get("settings", {}))["ft.disks"] == "copy":
        needs, facts = with_room(ctx, store, needs, facts, disk_files(xml).values())
    if needs.primary_host == ctx.host:
        heard = reached(ctx, [each.name for each in facts if each.alive and each.name != ctx.host])
        facts = [replace(each, ft_reached=each.name in heard) for each in facts]
    ruled_out = [*exclude, *(host.name for host in facts if wanted is not None and host.name != wanted)]
    kept = kept_empty(ctx.cluster.current().settings)  # the failover host
    ruled_out += [kept] if kept and wanted is None else []
    choice = choose_secondary(facts, needs, ruled_out)
    if choice.host is None:
        shown = choice.refusals if wanted is None else {wanted: choice.refusals.get(wanted, ())}
        raise no_place(needs, {host: why for host, why in shown.items() if host != ctx.host}, facts)
    return choice.host


def with_room(
    ctx: AgentContext, store: PairStore, needs: VmNeeds, facts: list[HostFacts], mine: Collection[str]
) -> tuple[VmNeeds, list[HostFacts]]:
    """The same, knowing what whole copies need and what the hosts have free for them.

    :param mine: the images of the copy that is here, which are as large
    :raises FtkvmError: FTKVM-331 one cannot be read
    """
    copies = ctx.workers.run(lambda: whole_copies(mine), ROOM_TIMEOUT_S, f"images of {needs.name}")
    others = [each.name for each in facts if each.alive and each.name != ctx.host]
    stale = {name: bounded(ctx, partial(stale_on, store, name, mine), f"ft/{store.uuid}") for name in others}
    asked = {
        name: ctx.workers.submit(partial(_room_on, ctx, name, list(copies), gone), f"room on {name}")
        for name, gone in stale.items()
    }
    found = {name: _answered(future) for name, future in asked.items()}
    return replace(needs, copies=copies), [replace(each, room=found.get(each.name)) for each in facts]


def _room_on(ctx: AgentContext, host: str, directories: list[str], stale: list[str]) -> dict[str, Room | None]:
    body = {"directories": directories, "stale": stale}
    said = ctx.peers.call(host, "POST", "/v1/peer/room", body, timeout_s=ROOM_TIMEOUT_S)["room"]
    return {name: Room(int(each["device"]), int(each["free_bytes"])) if each else None for name, each in said.items()}


def _answered(future: "Future[dict[str, Room | None]]") -> dict[str, Room | None] | None:
    """None: not known; an older agent does not know the question, and any refuses what has no room when it comes."""
    try:
        return future.result(ROOM_TIMEOUT_S)
    except (FtkvmError, FutureTimeout) as error:
        log.info("room: %s", error)
        return None


def no_place(
    needs: VmNeeds, refusals: Mapping[str, tuple[Refusal, ...]], facts: Collection[HostFacts] = ()
) -> FtkvmError:
    """FTKVM-404: no host fits, with each one's reasons; FTKVM-156 if room for whole copies is all that one lacks."""
    lacks = {each.name: "; ".join(lacking(each.room, needs.copies)) for each in facts if each.room is not None}
    reasons = "; ".join(f"{host}: {', '.join(_said(word, lacks.get(host, '')) for word in why)}"
                        for host, why in refusals.items())  # fmt: skip
    code = "FTKVM-156" if (Refusal.DISK_ROOM,) in refusals.values() else "FTKVM-404"
    return FtkvmError(code, vm=needs.name, reasons=reasons or "this is the only host")


def _said(word: Refusal, lacks: str) -> str:
    return f"{word} ({lacks})" if word is Refusal.DISK_ROOM else str(word)
