"""The agent's HTTPS API, version 1: thin; each route calls one method of the service. OpenAPI at /openapi.json."""

import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ftkvm import __version__
from ftkvm.agent.health import Health
from ftkvm.agent.service import Service
from ftkvm.api import ft, hosts, local, vms
from ftkvm.catalogue import FtkvmError

log = logging.getLogger(__name__)
_HANDLERS = 100
"""Requests worked on at once; each waits for something bounded."""
_HTTP_STATUS = {3: 404, 4: 503, 5: 504, 6: 503}
"""HTTP status by a message's exit status; anything else is a conflict with the state things are in."""


def build_app(service: Service, health: Health, routers: Iterable[APIRouter] = ()) -> FastAPI:
    """The application; ``routers`` are those of the agent's other parts (``serving``)."""
    app = FastAPI(title="ftkvm agent", version=__version__, lifespan=_lifespan)
    app.add_exception_handler(FtkvmError, _known_error)
    app.add_exception_handler(RequestValidationError, _bad_request)
    app.add_exception_handler(HTTPException, _no_such_thing)
    app.add_exception_handler(Exception, _unforeseen)
    for router in (hosts.router(service, health), vms.router(service), ft.router(service), local.router(service)):
        app.include_router(router)
    for router in routers:
        app.include_router(router)
    return app


@asynccontextmanager
async def _lifespan(_app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = _HANDLERS
    yield


async def _known_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, FtkvmError)
    return JSONResponse({"error": error.to_json()}, _HTTP_STATUS.get(error.message.exit_status, 409))


async def _bad_request(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": FtkvmError("FTKVM-901", detail=str(error)).to_json()}, 400)


async def _no_such_thing(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": FtkvmError("FTKVM-901", detail=error.detail).to_json()}, error.status_code)


async def _unforeseen(request: Request, error: Exception) -> JSONResponse:
    log.error("%s %s", request.method, request.url.path, exc_info=error)
    found = FtkvmError("FTKVM-900", detail=f"{type(error).__name__}: {error}")
    return JSONResponse({"error": found.to_json()}, 500)
