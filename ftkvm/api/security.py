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

    return routes
