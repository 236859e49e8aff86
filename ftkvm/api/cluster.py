"""Settings of the cluster and of its VMs, validity, what-if, room for an upgrade."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ftkvm.agent.cluster_settings import ClusterSettings
from ftkvm.agent.cluster_view import ClusterView
from ftkvm.agent.upgrade_room import UpgradeRoom
from ftkvm.core.upgrade import Do, UpgradeStep
from ftkvm.ports import Json


class ChangeRequest(BaseModel):
    """``changes``: name to text (empty: the default); ``version``: refuse unless it is the newest."""

    changes: dict[str, str] = Field(min_length=1)
    version: int | None = Field(default=None, ge=0)


class WhatIfRequest(BaseModel):
    """Hosts that are lost, all at once."""

    lose: list[str] = Field(default_factory=list, max_length=64)


class StepRequest(BaseModel):
    """One step of a rolling upgrade (see :class:`ftkvm.core.upgrade.UpgradeStep`)."""

    do: Do
    subject: str
    host: str = ""


class RoomRequest(BaseModel):
    """The steps that are left."""

    steps: list[StepRequest] = Field(max_length=4096)


def router(cluster: ClusterSettings, view: ClusterView, room: UpgradeRoom) -> APIRouter:
    """Routes /v1/cluster/… and /v1/vms/…/settings."""
    routes = APIRouter(prefix="/v1", tags=["cluster"])

    @routes.get("/cluster/status")
    def status() -> Json:
        """The cluster at a glance."""
        return view.status()

    @routes.get("/cluster/settings")
    def show() -> Json:
        """The cluster's settings."""
        return cluster.show()

    @routes.post("/cluster/settings")
    def change(request: ChangeRequest) -> Json:
        """Change settings of the cluster, all or none."""
        return cluster.change(request.changes, request.version)

    @routes.get("/cluster/validate")
    def validate() -> Json:
        """Validity, the figures of admission control, and what is wrong with the settings."""
        return cluster.validate()

    @routes.post("/cluster/what-if")
    def what_if(request: WhatIfRequest) -> Json:
        """What a loss of hosts would do."""
        return cluster.what_if(request.lose)

    @routes.post("/cluster/upgrade-room")
    def upgrade_room(request: RoomRequest) -> Json:
        """Which steps of a rolling upgrade have no room."""
        return room.look([UpgradeStep(step.do, step.subject, step.host) for step in request.steps])

    @routes.get("/vms/{name}/settings")
    def show_vm(name: str) -> Json:
        """A VM's FT and HA settings."""
        return cluster.show_vm(name)

    @routes.post("/vms/{name}/settings")
    def change_vm(name: str, request: dict[str, str]) -> Json:
        """Change a VM's FT and HA settings, all or none."""
        return cluster.change_vm(name, request)

    return routes
