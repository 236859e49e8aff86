"""All routes of an agent, and the server for them.

Imported when the agent's parts run already: FastAPI takes a second to import (three on a busy machine), and for that
long a pair whose primary's host dies just after its agent did would have nobody.
"""

from typing import TYPE_CHECKING

from fastapi import APIRouter

from ftkvm.agent.checks import Checks
from ftkvm.agent.cluster_settings import ClusterSettings
from ftkvm.agent.cluster_view import ClusterView
from ftkvm.agent.prepare import Prepare
from ftkvm.agent.upgrade_room import UpgradeRoom
from ftkvm.api import arrivals, checks, cluster, ha, pairs, security, vm_monitor
from ftkvm.api.app import build_app
from ftkvm.api.guard import Hosts
from ftkvm.api.server import ApiServer

if TYPE_CHECKING:  # it imports this module
    from ftkvm.agent.main import Agent


def make_api(agent: "Agent") -> ApiServer:
    """The server of an agent, not started yet."""
    ctx = agent.ctx
    settings = ClusterSettings(ctx, agent.vms, agent.service.admission)
    routers: list[APIRouter] = [
        pairs.router(agent.pairs),
        vm_monitor.router(agent.vm_monitor),
        ha.router(agent.ha),
        arrivals.router(agent.arrivals),
        cluster.router(
            settings,
            ClusterView(ctx, agent.service, settings),
            UpgradeRoom(ctx, agent.vms, agent.service.admission),
        ),
        checks.router(Checks(ctx, agent.service, agent.health), Prepare(ctx, agent.service)),
        security.router(agent.security),
        security.peer_router(agent.security),
    ]
    app = build_app(agent.service, agent.health, routers)
    return ApiServer(app, agent.trust, ctx.config.api_port, Hosts(ctx.cluster.knows, ctx.cluster.require_member))
