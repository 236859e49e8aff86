"""What VM monitoring asks of guests, through a libvirt connection and threads of its own.

A guest that does not answer holds a request of its connection until it times out; libvirtd serves only five of one
connection at a time. So nothing here shares a connection, or a worker, with the rest of the agent.
"""

import json
import time
from typing import Any

import libvirt
import libvirt_qemu

from ftkvm.adapters.guest_figures import counters
from ftkvm.adapters.libvirt import Libvirt
from ftkvm.agent.workers import Workers
from ftkvm.catalogue import FtkvmError
from ftkvm.core.ha.vm_monitor import Beat, Io

AT_ONCE = 4
"""Guests asked at the same time: one less than libvirtd serves, so that the statistics are never behind them."""
_PING = json.dumps({"execute": "guest-ping"})
_STATS_TIMEOUT_S = 5.0
_SCREENSHOT_TIMEOUT_S = 10.0
_RESET_TIMEOUT_S = 10.0
_PNG = b"\x89PNG\r\n\x1a\n"
_STOOD_STILL_TRIES = 4
_STOOD_STILL_PAUSE_S = 0.05
"""A protected VM stands still for a checkpoint, some 10 to 50 ms: asked again a little later."""

_BEATS = {
    libvirt.VIR_ERR_AGENT_COMMAND_TIMEOUT: Beat.SILENT,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: Beat.SILENT,  # also: the guest has not opened its port
    libvirt.VIR_ERR_AGENT_COMMAND_FAILED: Beat.ANSWERED,  # it refused, so it lives
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: Beat.NO_CHANNEL,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: Beat.NO_CHANNEL,
}


class Guests:
    """The guests of this host."""

    def __init__(self, host: str) -> None:
        self._libvirt = Libvirt(Workers(limit=32), host)

    def ping(self, uuid: str, timeout_s: int) -> Beat:
        """Ask the guest's agent for a sign of life; waits up to ``timeout_s`` for it. Never raises."""

        def act(connection: Any) -> Beat:
            domain = connection.lookupByUUIDString(uuid)
            for left in reversed(range(_STOOD_STILL_TRIES)):
                try:
                    libvirt_qemu.qemuAgentCommand(domain, _PING, timeout_s, 0)
                    return Beat.ANSWERED
                except libvirt.libvirtError as error:
                    code = error.get_error_code()
                    if code == libvirt.VIR_ERR_OPERATION_INVALID and left:
                        time.sleep(_STOOD_STILL_PAUSE_S)
                        continue
                    if code not in _BEATS:
                        raise
                    return _BEATS[code]
            return Beat.UNKNOWN

        try:
            return self._libvirt.call("guest-ping", act, 2 * timeout_s + 2.0)
        except FtkvmError:
            return Beat.UNKNOWN

    def io(self) -> dict[str, Io | None]:
        """I/O counters of all running domains by UUID, in one call; None where QEMU's could not be had now.

        :raises FtkvmError: libvirt is away or hangs
        """
        flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_ACTIVE | libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        wanted = libvirt.VIR_DOMAIN_STATS_BLOCK | libvirt.VIR_DOMAIN_STATS_INTERFACE
        return self._libvirt.call(
            "statistics",
            lambda c: {str(dom.UUIDString()): counters(row) for dom, row in c.getAllDomainStats(wanted, flags)},
            _STATS_TIMEOUT_S,
        )

    def screenshot(self, uuid: str) -> bytes:
        """What the first screen shows, as PNG.

        :raises FtkvmError: FTKVM-142, there is none, or what libvirt said
        """

        def act(connection: Any) -> tuple[str, bytes]:
            domain = connection.lookupByUUIDString(uuid)
            stream = connection.newStream(0)
            kind = str(domain.screenshot(stream, 0, 0))
            parts: list[bytes] = []
            stream.recvAll(lambda _stream, data, _opaque: parts.append(data), None)
            stream.finish()
            return kind, b"".join(parts)

        try:
            kind, picture = self._libvirt.call("screenshot", act, _SCREENSHOT_TIMEOUT_S)
        except FtkvmError as error:
            raise FtkvmError("FTKVM-142", vm=uuid, detail=str(error)) from error
        if not picture.startswith(_PNG):  # QEMU 11 and libvirt 11 give nothing else
            raise FtkvmError("FTKVM-142", vm=uuid, detail=f"{len(picture)} bytes of {kind}, not a PNG picture")
        return picture

    def reset(self, uuid: str) -> None:
        """Press the reset button.

        :raises FtkvmError: libvirt refused, or (``LibvirtGone``, ``WorkTimeout``) it is not known
        """
        self._libvirt.call("reset", lambda c: c.lookupByUUIDString(uuid).reset(0), _RESET_TIMEOUT_S)
