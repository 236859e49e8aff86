"""The cluster's hosts: which there are and how they are, their fencing devices, maintenance, and taking one out."""

import logging
from dataclasses import replace

from ftkvm.adapters.power import AGENT_NAME
from ftkvm.agent.configuration import publish
from ftkvm.agent.context import AgentContext
from ftkvm.agent.evacuation import listed
from ftkvm.agent.gather import Answers, gather
from ftkvm.agent.removal import last_boot
from ftkvm.catalogue import FtkvmError
from ftkvm.config import ClusterConfig, HostEntry
from ftkvm.core.ha.model import Role
from ftkvm.core.ha.settings import in_force
from ftkvm.ports import Json

log = logging.getLogger(__name__)
HAND_OVER_TIMEOUT_S = 15.0
"""In which the agent that an operation is handed to has checked it and begun."""


class Hosts:
    """May be asked of any agent."""

    def __init__(self, ctx: AgentContext) -> None:
        self._ctx = ctx

    def all(self, health: Answers | None = None) -> list[Json]:
        """All hosts with their health, or why they do not answer. ``health``: their answers, if just asked."""
        answers = health if health is not None else gather(self._ctx, "/v1/health")
        found = []
        hosts = self._ctx.cluster.current(fresh=True).hosts  # who has just changed one, by another agent, looks here
        for name, entry in sorted(hosts.items()):
            answer = answers.get(name) or FtkvmError("FTKVM-202", host=name, detail="not asked")
            known = {"error": answer.to_json(), "answers": False} if isinstance(answer, FtkvmError) else answer
            shown = {**entry.to_json(), "fence": entry.fence.get("agent")}  # its keys hold passwords
            found.append({"name": name, "answers": True, **shown, **known})
        return found

    def remove(self, name: str, *, dead: bool) -> Json:
        """Take a host out of the configuration.

        safety: a host that does not answer may still run VMs; only the operator's word (``dead``) lets it go, and from
        then on its VMs are started elsewhere: by HA, or by hand. The word is noted with the boot it was said of.

        :raises FtkvmError: FTKVM-201, FTKVM-202 it does not answer, FTKVM-214 it runs VMs, FTKVM-243/244 the last one,
            FTKVM-264 it is not dead
        """
        config, hosts, boot_id = self._removal(name, dead=dead)
        removed = {**config.removed, name: boot_id} if boot_id else config.removed
        return {"host": name, "version": publish(self._ctx, config, hosts=hosts, removed=removed).version}

    def may_remove(self, name: str, *, dead: bool) -> Json:
        """What :meth:`remove` would say, or raise; nothing is changed."""
        config, _hosts, _boot_id = self._removal(name, dead=dead)
        return {"host": name, "version": config.version + 1}

    def _removal(self, name: str, *, dead: bool) -> tuple[ClusterConfig, dict[str, HostEntry], str]:
        """The configuration, the hosts that would be left, and the boot of which the operator says that it is over."""
        self._ctx.cluster.host(name)
        answer = gather(self._ctx, "/v1/local/vms", hosts=[name])[name]
        if isinstance(answer, FtkvmError) and not dead:
            raise answer
        if not isinstance(answer, FtkvmError) and answer["vms"]:
            raise FtkvmError("FTKVM-214", host=name, vms=", ".join(str(vm["name"]) for vm in answer["vms"]))
        config = self._ctx.cluster.current(fresh=True)
        hosts = {key: entry for key, entry in config.hosts.items() if key != name}
        self._require_others(name, config, sorted(hosts))
        return config, hosts, last_boot(self._ctx, name) if isinstance(answer, FtkvmError) else ""

    def _require_others(self, name: str, config: ClusterConfig, others: list[str]) -> None:
        """Somebody is left, and while HA is on one of them is a primary host, that others can join through (HA-01)."""
        if not others:
            raise FtkvmError("FTKVM-243", host=name)
        if not in_force(config.settings)["ha.enabled"]:
            return
        roles = []
        for answer in gather(self._ctx, "/v1/local/ha", hosts=others).values():
            status = None if isinstance(answer, FtkvmError) else answer.get("status")
            roles.append(status["role"] if status else None)
        if not {Role.PRIMARY, Role.COORDINATOR} & set(roles):
            raise FtkvmError("FTKVM-244", host=name, others=", ".join(others))

    def set_fence(self, name: str, parameters: dict[str, str]) -> Json:
        """Set a host's power fencing device, or take it away (no parameters).

        :raises FtkvmError: FTKVM-201, FTKVM-605 no agent's name, FTKVM-606
        """
        if parameters and not AGENT_NAME.fullmatch(parameters.get("agent", "")):
            raise FtkvmError("FTKVM-605", option="agent", detail="the name of a program of fence-agents is needed")
        config, entry = self.known(name)
        hosts = {**config.hosts, name: replace(entry, fence=parameters)}
        version = publish(self._ctx, config, hosts=hosts).version
        return {"host": name, "agent": parameters.get("agent"), "keys": sorted(parameters), "version": version}

    def maintenance(self, name: str, *, on: bool) -> Json:
        """Mark a host for maintenance and move its VMs off (the operation is returned), or bring it back.

        :raises FtkvmError: FTKVM-201, FTKVM-657 it is not in maintenance, FTKVM-202 it does not answer, FTKVM-606,
            FTKVM-665 a VM of it has nowhere to go: nothing is changed
        """
        config, entry = self.known(name)
        if on:
            self._require_evacuable(name)
        if not on and not entry.maintenance:
            raise FtkvmError("FTKVM-657", host=name)
        if entry.maintenance != on:
            publish(self._ctx, config, hosts={**config.hosts, name: replace(entry, maintenance=on)})
        if not on:
            return {"host": name, "maintenance": False}
        return self._ctx.peers.call(name, "POST", "/v1/local/evacuate", {}, HAND_OVER_TIMEOUT_S)

    def _require_evacuable(self, name: str) -> None:
        try:
            found = self._ctx.peers.call(name, "GET", "/v1/local/evacuation", None, HAND_OVER_TIMEOUT_S)["obstacles"]
        except FtkvmError as error:
            if error.code != "FTKVM-901":
                raise
            log.info("%s has an older agent, and is not asked what keeps it from being emptied: %s", name, error)
            return
        if found:
            raise FtkvmError("FTKVM-665", host=name, vms=", ".join(found), reasons=listed(found))

    def known(self, name: str) -> tuple[ClusterConfig, HostEntry]:
        """The configuration as the datastore has it now, and a host of it.

        :raises FtkvmError: FTKVM-201
        """
        config = self._ctx.cluster.current(fresh=True)
        entry = config.hosts.get(name)
        if entry is None:
            raise FtkvmError("FTKVM-201", host=name)
        return config, entry


__all__ = ["Hosts"]
