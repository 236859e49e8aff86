"""``ftkvm check``: what would refuse a VM, a host or the cluster, looked at now; nothing is changed.

The checks are those that enable, power-on and placement ask, so what is said here is what happens there.
"""

from collections.abc import Callable
from dataclasses import replace

from ftkvm import __version__
from ftkvm.adapters import host_view, kvm_probe
from ftkvm.agent import ft_checks, placing
from ftkvm.agent.context import AgentContext
from ftkvm.agent.ft_network import frames_lost
from ftkvm.agent.gather import gather
from ftkvm.agent.health import Health
from ftkvm.agent.security import Security
from ftkvm.agent.service import Service
from ftkvm.agent.vms import VmRecord
from ftkvm.catalogue import FtkvmError
from ftkvm.core.channels import channels
from ftkvm.core.checks import host
from ftkvm.core.checks.cluster import ClusterView, look
from ftkvm.core.checks.host import PAIR_NETWORKS, HostView
from ftkvm.core.checks.model import Finding, Result, run
from ftkvm.core.ha import settings
from ftkvm.ports import Json

_TIMEOUT_S = 20.0
_HOST_TIMEOUT_S = 5.0


class Checks:
    """The entry points. ``*_here`` look at this host; the others may be asked of any agent."""

    def __init__(self, ctx: AgentContext, service: Service, health: Health) -> None:
        self._ctx, self._service, self._health = ctx, service, health
        self._kvm = kvm_probe.of_this_host()

    def vm(self, name: str, *, for_ft: bool) -> Json:
        """A VM: looked at on the host it runs on; if it is off, by its definition.

        :raises FtkvmError: FTKVM-101, FTKVM-108 its definition is no XML, or a host or the storage is silent
        """
        record = self._service.vms.find(name)
        main = self._service.places().main(record.uuid)
        if main is None or main[0] == self._ctx.host:
            return self.vm_here(record.uuid, for_ft=for_ft)
        path = f"/v1/local/check/vm/{record.uuid}?for_ft={for_ft}"
        return self._ctx.peers.call(main[0], "GET", path, None, _TIMEOUT_S)

    def vm_here(self, uuid: str, *, for_ft: bool) -> Json:
        """A VM that runs here, or nowhere."""
        record = self._service.vms.find(uuid)
        info = self._ctx.libvirt.domain(uuid)
        running = info is not None and info.active
        xml = self._ctx.libvirt.xml(uuid) if running else self._service.vms.definition(uuid)
        report = ft_checks.look_at_vm(self._ctx, record, xml, for_ft=for_ft)
        if for_ft and running and not record.ft_enabled:
            report = replace(report, results=report.results + self._hosts_for(record, xml))
        return {**report.to_json(), "running": running, "for_ft": for_ft}

    def host(self, name: str) -> Json:
        """A host: what it says of itself, looked at with the host's checks.

        :raises FtkvmError: FTKVM-201, 202 it does not answer, 238
        """
        entry = self._ctx.cluster.host(name)
        said = self._ctx.peers.call(name, "GET", "/v1/local/check/host", None, _HOST_TIMEOUT_S)
        emulation = ft_checks.emulation_allowed(self._ctx)
        view = HostView.from_json(said, maintenance=entry.maintenance, emulation=emulation)
        return run(f"host {name}", host.CHECKS, view, host=name).to_json()

    def cluster(self) -> Json:
        """The cluster's settings, every host, and each beside each other."""
        config = self._ctx.cluster.current(fresh=True)
        views, silent, emulation = [], {}, ft_checks.emulation_allowed(self._ctx)
        for name, answer in gather(self._ctx, "/v1/local/check/host", _HOST_TIMEOUT_S).items():
            if isinstance(answer, FtkvmError):
                silent[name] = _finding(answer)
                continue
            resting = config.hosts[name].maintenance if name in config.hosts else False
            views.append(HostView.from_json(answer, maintenance=resting, emulation=emulation))
        facts = {each.name: each for each in placing.hosts_facts(self._ctx)}
        ha = settings.ha_settings(config.settings, "gateway")
        view = ClusterView(
            tuple(views),
            facts,
            silent,
            size=len(config.hosts),
            ha=ha.enabled,
            host_monitoring=ha.host_monitoring,
            ha_networks=settings.ha_networks(config.settings),
            isolation_addresses=ha.isolation_addresses,
            channels=channels(settings.encryption(config.settings)),
        )
        return look(config.cluster, view).to_json()

    def host_here(self) -> Json:
        """What this host is made of. A tiny guest is run for it now and then, and the others asked with full frames.

        :raises FtkvmError: FTKVM-238 the table of processor groups is not understood
        """
        config, health = self._ctx.config, self._health.current()
        addresses = {"management": config.management, "ft": config.ft, "migration": config.migration}
        try:
            seen = host_view.look(addresses, config.datastore, self._kvm)
        except ValueError as error:
            path = str(host_view.GROUPS_FILE)
            raise FtkvmError("FTKVM-238", host=self._ctx.host, path=path, detail=str(error)) from error
        trouble = health.get("error")
        security = self._ctx.extras.get("security")
        others = [name for name in self._ctx.cluster.current().hosts if name != self._ctx.host]
        return {
            **seen,
            "name": self._ctx.host,
            "qemu": _numbers(health.get("qemu")),
            "libvirt": _numbers(health.get("libvirt")),
            "ftkvm": __version__,
            "trouble": {"code": trouble["code"], "params": trouble["params"]} if trouble else None,
            "certificate": security.state() if isinstance(security, Security) else None,
            "frames_lost": {kind: sorted(frames_lost(self._ctx, kind, others)) for kind in PAIR_NETWORKS},
            "ft_copies": sum(1 for _spec in (config.paths.run / "pairs").glob("*.json")),
            "missing_bridges": sorted(set(config.vm_bridges) - set(health.get("bridges", config.vm_bridges))),
        }

    def _hosts_for(self, record: VmRecord, xml: str) -> tuple[Result, ...]:
        """Whether a pair could be made now: this host, and one for the secondary."""
        return (
            _asked("this-host", "the host it runs on can be a primary's", lambda: ft_checks.require_ready(self._ctx)),
            _asked("ft-network", "a second host answers on the FT network",
                   lambda: ft_checks.require_secondary(self._ctx, record, None)),
            _asked("second-host", "a second host fits",
                   lambda: placing.choose_for(self._ctx, record.uuid, record.name, xml, None)),
        )  # fmt: skip


def _asked(name: str, title: str, ask: Callable[[], object]) -> Result:
    try:
        ask()
    except FtkvmError as error:
        return Result(name, title, (_finding(error),))
    return Result(name, title, ())


def _finding(error: FtkvmError) -> Finding:
    return Finding(error.code, {key: str(value) for key, value in error.params.items()})


def _numbers(version: object) -> list[int]:
    return [int(part) for part in str(version).split(".")] if version else []
