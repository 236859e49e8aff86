"""What VM monitoring makes of the VMs of this host."""

from fastapi import APIRouter

from ftkvm.agent.ha_vm_monitor import VmMonitor
from ftkvm.ports import Json


def router(monitor: VmMonitor) -> APIRouter:
    """Routes /v1/local/vm-monitor."""
    routes = APIRouter(prefix="/v1/local/vm-monitor", tags=["local"])

    @routes.get("")
    def local_vm_monitor() -> Json:
        """The monitored VMs that run here (not as secondaries), with their last and their counted resets."""
        return {"vms": monitor.all()}

    return routes
