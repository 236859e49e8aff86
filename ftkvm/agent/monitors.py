"""Our own QMP monitors in a domain that libvirt runs.

libvirt's monitor is in-band only and a hung QEMU wedges the domain's job, so every FT step goes over monitors of our
own, added to the *running* domain with libvirt's passthrough (QEMU >= 11.1: object-add monitor-qmp).
"""

import logging
from pathlib import Path
from typing import Any, Protocol

log = logging.getLogger(__name__)

LIBVIRT_STATE = Path("/var/lib/libvirt/qemu")
PURPOSES = ("ft", "hold")


class Passthrough(Protocol):
    """The part of the libvirt adapter that is needed here."""

    def monitor_command(self, uuid: str, command: dict[str, Any]) -> Any: ...


def domain_directory(domain_id: int, name: str) -> Path:
    """libvirt's per-domain directory: QEMU may create sockets there under any user and AppArmor profile.

    libvirt shortens long names, so the id decides (qemuDomainSetPrivatePaths).
    """
    exact = LIBVIRT_STATE / f"domain-{domain_id}-{name[:20]}"
    if exact.is_dir():
        return exact
    found = sorted(LIBVIRT_STATE.glob(f"domain-{domain_id}-*"))
    return found[0] if found else exact


def socket_path(directory: Path, purpose: str) -> str:
    return str(directory / f"ftkvm-{purpose}.qmp")


def ensure_monitors(libvirt: Passthrough, uuid: str, directory: Path) -> None:
    """Add the monitors that are not there yet, one for each of ``PURPOSES``. Repeating it changes nothing."""
    present = {entry["label"] for entry in libvirt.monitor_command(uuid, {"execute": "query-chardev"})}
    objects = {
        entry["name"]
        for entry in libvirt.monitor_command(uuid, {"execute": "qom-list", "arguments": {"path": "/objects"}})
    }
    for purpose in PURPOSES:
        label = f"ftkvm-{purpose}"
        if label not in present:
            libvirt.monitor_command(
                uuid,
                {
                    "execute": "chardev-add",
                    "arguments": {
                        "id": label,
                        "backend": {
                            "type": "socket",
                            "data": {
                                "server": True,
                                "wait": False,
                                "addr": {"type": "unix", "data": {"path": socket_path(directory, purpose)}},
                            },
                        },
                    },
                },
            )
        if f"{label}-monitor" not in objects:
            libvirt.monitor_command(
                uuid,
                {
                    "execute": "object-add",
                    "arguments": {"qom-type": "monitor-qmp", "id": f"{label}-monitor", "chardev": label},
                },
            )
