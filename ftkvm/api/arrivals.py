"""The target's side of a live migration; asked by the source's agent only."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ftkvm.agent.migrate import Arrivals, Incoming
from ftkvm.ports import Json


class IncomingRequest(BaseModel):
    """A VM that will come; ``owner``: the number of the source's owner file."""

    name: str = Field(min_length=1, max_length=200)
    source: str = Field(min_length=1, max_length=200)
    owner: int = Field(ge=0)


def router(arrivals: Arrivals) -> APIRouter:
    """Routes /v1/local/vms/UUID/incoming, …/incoming/forget, …/arrived."""
    routes = APIRouter(prefix="/v1/local/vms", tags=["local"])

    @routes.post("/{uuid}/incoming")
    def incoming(uuid: str, request: IncomingRequest) -> Json:
        """Expect a VM."""
        arrivals.announce(Incoming(uuid, request.name, request.source, request.owner))
        return {"uuid": uuid}

    @routes.post("/{uuid}/incoming/forget")
    def forget(uuid: str) -> Json:
        """It does not come."""
        arrivals.forget(uuid)
        return {"uuid": uuid}

    @routes.post("/{uuid}/arrived")
    def arrived(uuid: str) -> Json:
        """Its memory is here: own it and let it run."""
        arrivals.arrived(uuid)
        return {"uuid": uuid}

    return routes
