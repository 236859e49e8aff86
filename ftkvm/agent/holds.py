"""Start and stop of the hold proxy of one VM: its own process, so that a restart of the agent leaves frames alone."""

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from ..adapters.local_file import replace_volatile
from ..catalogue import FtkvmError
from ..engine.credentials import file_text
from ..engine.primary import Endpoints, HoldSockets
from ..engine.shape import Shape
from . import monitors
from .context import AgentContext
from .local_vm import LocalVm, systemctl

START_TIMEOUT_S = 10.0


def _config_path(ctx: AgentContext, uuid: str) -> Path:
    return ctx.config.paths.run / "hold" / f"{uuid}.json"


def status_path(ctx: AgentContext, uuid: str) -> Path:
    """The proxy's status socket."""
    return _config_path(ctx, uuid).with_suffix(".status")


def unit(uuid: str) -> str:
    """The systemd unit of a VM's hold proxy."""
    return f"ftkvm-hold@{uuid}.service"


def start(
    ctx: AgentContext,
    vm: LocalVm,
    shape: Shape,
    sockets: Mapping[str, HoldSockets],
    secondary: Endpoints,
    mode: str,
    key: str | None,
) -> None:
    """Start the proxy and wait until it listens and is connected to the secondary.

    One that ran before is ended first: its sockets are stale.

    :param key: what the secondary's frames are encrypted with; it lies in a file only until the proxy is connected
    :raises FtkvmError: FTKVM-514
    """
    stop(ctx, vm.uuid)
    directory = vm.directory()
    path = _config_path(ctx, vm.uuid)
    path.parent.mkdir(parents=True, exist_ok=True)
    paths = [Path(end) for nic in sockets.values() for end in asdict(nic).values()]
    for socket_path in paths:
        socket_path.unlink(missing_ok=True)
    key_path = path.with_suffix(".key")
    path.write_text(
        json.dumps(
            {
                "uuid": vm.uuid,
                "monitor": monitors.socket_path(directory, "hold"),
                "mode": mode,
                "key_file": str(key_path) if key else "",
                "status": str(status_path(ctx, vm.uuid)),
                "nics": [
                    {
                        "id": nic.alias,
                        "mac": nic.mac,
                        **asdict(sockets[nic.alias]),
                        "secondary": f"{secondary.address}:{secondary.nics[nic.alias].compare}",
                    }
                    for nic in shape.nics
                ],
            }
        )
    )
    try:
        if key:
            replace_volatile(key_path, file_text(key).encode())
        systemctl("start", unit(vm.uuid), timeout_s=START_TIMEOUT_S)
    except RuntimeError as error:
        raise FtkvmError("FTKVM-514", vm=vm.name, detail=error) from error
    finally:
        key_path.unlink(missing_ok=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not all(socket_path.exists() for socket_path in paths):
        if time.monotonic() > deadline:
            raise FtkvmError("FTKVM-514", vm=vm.name, detail="it does not listen")
        time.sleep(0.01)
    path.with_suffix(".pid").write_text(str(_main_pid(vm.uuid)))


def _main_pid(uuid: str) -> int:
    """The proxy's process id as systemd knows it; 0 when it does not run."""
    done = subprocess.run(
        ("systemctl", "show", "-p", "MainPID", "--value", unit(uuid)),
        capture_output=True,
        text=True,
        timeout=START_TIMEOUT_S,
        check=False,
    )
    return int(done.stdout.strip() or 0)


def stop(ctx: AgentContext, uuid: str) -> None:
    """End the proxy; one that does not run is fine."""
    if not _config_path(ctx, uuid).exists():
        return
    systemctl("stop", unit(uuid), timeout_s=START_TIMEOUT_S)
    for leftover in (".pid", ".status", ".json"):
        _config_path(ctx, uuid).with_suffix(leftover).unlink(missing_ok=True)


def alive(ctx: AgentContext, uuid: str) -> bool:
    """Whether the proxy of this VM runs, by its process: cheap enough for every observation."""
    path = ctx.config.paths.run / "hold" / f"{uuid}.pid"
    try:
        pid = int(path.read_text())
        return uuid.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return False
