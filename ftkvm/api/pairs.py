"""What other agents ask of this one about pairs; certificates are checked before it gets here."""

import time
from typing import Any

from fastapi import APIRouter, Body

from ftkvm.agent.pair_manager import PairManager


def router(pairs: PairManager) -> APIRouter:
    """Routes /v1/peer/…"""
    routes = APIRouter(prefix="/v1/peer")
    asked = pairs.for_peers

    @routes.post("/pairs/{uuid}/prepare")
    def peer_prepare(uuid: str, request: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return asked.prepare(uuid, request)

    @routes.post("/pairs/{uuid}/destroy")
    def peer_destroy(uuid: str, request: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        copied = [str(path) for path in request.get("images", ())]
        return asked.destroy(uuid, int(request["epoch"]), str(request["reason"]), copied)

    @routes.post("/pairs/{uuid}/end-secondary")
    def peer_end_secondary(uuid: str, request: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return pairs.life.end_secondary(uuid, int(request["epoch"]))

    @routes.post("/pairs/{uuid}/changed")
    def peer_changed(uuid: str, request: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        return asked.changed_on_secondary(uuid, request)

    @routes.get("/clock")
    def peer_clock() -> dict[str, Any]:
        return {"time": time.time()}

    @routes.get("/facts")
    def peer_facts() -> dict[str, Any]:
        return asked.facts()

    @routes.post("/room")
    def peer_room(request: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        directories, stale = ([str(path) for path in request.get(key, ())] for key in ("directories", "stale"))
        return asked.room(directories, stale)

    @routes.get("/pairs/{uuid}")
    def peer_pair(uuid: str) -> dict[str, Any]:
        return asked.copy(uuid)

    return routes
