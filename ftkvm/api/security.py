"""This host's certificate and the revocation list. Addressed to the host itself, never forwarded."""

from fastapi import APIRouter
from pydantic import BaseModel, Field

from ftkvm.agent.security import Security
from ftkvm.ports import Json


class CertificateRequest(BaseModel):
    """A certificate (PEM) for the key of the last request."""

    certificate: str = Field(max_length=16_384)


class ListRequest(BaseModel):
    """A revocation list (PEM), signed by the cluster's authority."""

    list: str = Field(max_length=500_000)


class KeysRequest(BaseModel):
    """The cluster's beat keys, as in their file."""

    keys: str = Field(max_length=1000)


def peer_router(security: Security) -> APIRouter:
    """Routes /v1/peer: what hosts of the cluster may ask, and nobody else."""
    routes = APIRouter(prefix="/v1/peer")

    @routes.post("/beat-keys")
    def beat_keys() -> Json:
        """The beat keys in use here. A POST, though nothing is changed: what is only read, administrators may read."""
        return {"keys": security.beat_keys.text()}

    return routes


def router(security: Security) -> APIRouter:
    """Routes /v1/security."""
    routes = APIRouter(prefix="/v1/security", tags=["security"])

    @routes.get("")
    def state() -> Json:
        """This host's certificate."""
        return security.state()

    @routes.post("/request")
    def request() -> Json:
        """Make a new key, which stays on the host, and a request to certify it."""
        return security.request()

    @routes.post("/certificate")
    def install(request: CertificateRequest) -> Json:
        """Take a renewed certificate; connections that are open go on."""
        return security.install(request.certificate)

    @routes.post("/revoked")
    def revoked(request: ListRequest) -> Json:
        """Take a revocation list, if it is newer than the one in force."""
        return security.take_list(request.list)

    @routes.post("/beat-keys")
    def beat_keys(request: KeysRequest) -> Json:
        """Use these beat keys; when it is answered, HA and the keeper do, and will after a power loss."""
        return security.beat_keys.take(request.keys)

    return routes
