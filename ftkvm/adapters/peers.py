"""Requests to agents: HTTPS with certificates on both sides, bounded, and honest about what is not known."""

import logging
import re
import ssl
import time
from collections.abc import Callable

import httpx

from ftkvm.catalogue import FtkvmError
from ftkvm.config import HostEntry
from ftkvm.ports import Json, PeerUnknown, PeerUnreachable

log = logging.getLogger(__name__)
CONNECT_TIMEOUT_S = 1.0
RETRY_CONNECT_TIMEOUT_S = 0.3
"""For a host that was silent a moment ago, so that a dead one does not slow every question to all."""
_SILENT_S = 15.0
_DISTRUST = re.compile(r"certificate verify failed: (.*?) \(_ssl")
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)


class HttpsPeers:
    """:class:`ftkvm.ports.Peers` over HTTPS.

    A host is tried at its management address, then at its FT address. Connections are not kept: one to a host that
    died silently would swallow the next request.
    """

    def __init__(self, directory: Callable[[str], HostEntry], context: ssl.SSLContext) -> None:
        self._directory = directory
        self._silent_at: dict[str, float] = {}
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=0)
        self._client = httpx.Client(verify=context, limits=limits, trust_env=False)

    def close(self) -> None:
        """Close what is open."""
        self._client.close()

    def call(self, host: str, method: str, path: str, json: Json | None = None, timeout_s: float = 5.0) -> Json:
        entry = self._directory(host)
        was_silent = time.monotonic() - self._silent_at.get(host, float("-inf")) < _SILENT_S
        connect_s = min(timeout_s, RETRY_CONNECT_TIMEOUT_S if was_silent else CONNECT_TIMEOUT_S)
        failures, distrusted = [], ""
        for address in dict.fromkeys((entry.management, entry.ft)):
            try:
                timeout = httpx.Timeout(timeout_s, connect=connect_s)
                answer = self._request(entry, address, method, path, json, timeout)
                self._silent_at.pop(host, None)
                return answer
            except _NOT_SENT as error:
                failures.append(f"{address}: {error or type(error).__name__}")
                distrusted = distrusted or _why_distrusted(error)
            except httpx.HTTPError as error:
                log.info("%s %s at %s: %s", method, path, host, error or type(error).__name__)
                raise PeerUnknown("FTKVM-211", host=host, what=f"{method} {path}") from error
        if distrusted:
            raise PeerUnreachable("FTKVM-321", host=host, detail=distrusted)
        self._silent_at[host] = time.monotonic()
        raise PeerUnreachable("FTKVM-202", host=host, detail="; ".join(failures))

    def _request(
        self, entry: HostEntry, address: str, method: str, path: str, json: Json | None, timeout: httpx.Timeout
    ) -> Json:
        response = self._client.request(
            method,
            f"https://{address}:{entry.api_port}{path}",
            json=json,
            headers={"Host": entry.name},
            timeout=timeout,
            extensions={"sni_hostname": entry.name},  # the certificate must be that host's, whatever the address
        )
        return answer_of(response)


def _why_distrusted(error: Exception) -> str:
    found = _DISTRUST.search(str(error))
    return found.group(1) if found else ""


def answer_of(response: httpx.Response) -> Json:
    """The JSON object an agent answered.

    :raises FtkvmError: the message it answered with; FTKVM-901 for anything that is not of our API
    """
    try:
        document = response.json()
    except ValueError:
        document = None
    if isinstance(document, dict):
        if response.is_success:
            return document
        if isinstance(document.get("error"), dict):
            raise FtkvmError.from_json(document["error"])
    raise FtkvmError("FTKVM-901", detail=f"{response.status_code} {response.text[:300]}")
