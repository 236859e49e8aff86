"""``python -m ftkvm.lab.channels [ROUNDS]``: COLO's channels plain and over TLS, in turn: build/channels.json.

Two QEMUs of the lab's image, without a guest (their firmware idles), without replication: what QEMU itself can do, and
what it costs; and what a peer that never answers the handshake does to it. docs/security.md has the figures.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftkvm.agent.channel import shut_down_after
from ftkvm.engine.credentials import KEY_FILE, file_text, key_object, option
from ftkvm.lab import lab, names
from ftkvm.lab.monitor import Qmp, until

RAM_MIB, DISK_MIB = 128, 256
PEER_SILENT = ({"type": "migration"}, {"type": "block-node", "node-name": "nbd"}, {"type": "chardev", "id": "mir"})
_ADDRESS = "127.0.0.1"


@contextlib.contextmanager
def qemu(directory: Path, name: str, *, incoming: bool) -> Iterator[tuple[Qmp, "subprocess.Popen[bytes]"]]:
    image = names.IMAGES / lab.record().image
    libraries = f"{image}/usr/lib/x86_64-linux-gnu:{image}/usr/lib/x86_64-linux-gnu/pulseaudio"
    disk, memory = directory / f"{name}.img", directory / f"{name}.ram"
    disk.write_bytes(bytes(DISK_MIB << 20) if incoming else os.urandom(DISK_MIB << 20))
    memory.write_bytes(bytes(RAM_MIB << 20) if incoming else os.urandom(RAM_MIB << 20))
    loader = [f"{image}/usr/lib64/ld-linux-x86-64.so.2", "--library-path", libraries]
    command = [
        *loader, f"{image}/usr/bin/qemu-system-x86_64", "-L", f"{image}/usr/share/qemu", "-L",
        f"{image}/usr/share/seabios", "-machine", "pc,accel=tcg,memory-backend=m,usb=off,suppress-vmdesc=on",
        "-object", f"memory-backend-file,id=m,size={RAM_MIB}M,mem-path={memory},share=on", "-m", f"{RAM_MIB}M",
        "-nodefaults", "-display", "none", "-blockdev", f"driver=file,filename={disk},node-name=d0",
        "-netdev", "hubport,id=n0,hubid=0", "-device", "virtio-net-pci,netdev=n0,mac=52:54:00:77:ff:01,romfile=",
        "-qmp", f"unix:{directory}/{name}.qmp,server=on,wait=off", *(["-incoming", "defer"] if incoming else []),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        yield Qmp(directory / f"{name}.qmp"), process
    finally:
        process.kill()
        process.wait(10)


def _listening_port() -> int:
    with socket.socket() as probe:
        probe.bind((_ADDRESS, 0))
        return int(probe.getsockname()[1])


def measure(directory: Path, *, tls: bool) -> dict[str, Any]:
    """One pair: mirror its disk, join the packet channel, copy memory into COLO, idle, then the peer falls silent."""
    (directory / KEY_FILE).write_text(file_text(os.urandom(32).hex()))
    with (
        qemu(directory, "secondary", incoming=True) as (there, peer),
        qemu(directory, "primary", incoming=False) as (here, _process),
    ):
        if tls:
            here("object-add", key_object(directory, "client"))
            there("object-add", key_object(directory, "server"))
        with_tls = option(tls)
        figures: dict[str, Any] = {"tls": tls, "disk_mb_per_s": round(DISK_MIB / _mirror(here, there, with_tls))}
        _packets(here, there, with_tls)
        figures["memory_mb_per_s"] = round(RAM_MIB / _copy(here, there, with_tls))
        figures["checkpoint_pause_ms"] = _pauses(here)
        peer.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        begun = time.monotonic()
        for instance in PEER_SILENT:
            here("yank", {"instances": [instance]}, oob=True)
        here("x-colo-lost-heartbeat")
        until(lambda: here("query-migrate")["status"] != "colo" and here("query-status")["running"], 10)
        figures["alone_after_ms"] = round(1000 * (time.monotonic() - begun))
        return figures


def unanswered(directory: Path, deadline_s: float) -> float:
    """For how many seconds a peer that takes the connection and never answers the handshake stops QEMU's main loop.

    Whoever opened the socket shuts it down after ``deadline_s``, as the agent does (`ftkvm.agent.channel`).
    """
    (directory / KEY_FILE).write_text(file_text(os.urandom(32).hex()))
    with qemu(directory, "primary", incoming=False) as (here, _process):
        here("object-add", key_object(directory, "client"))
        here("migrate-set-parameters", option(True))
        with socket.create_server((_ADDRESS, 0)) as listener, socket.create_connection(listener.getsockname()) as out:
            here("getfd", {"fdname": "out"}, fd=out.fileno())
            begun = time.monotonic()
            with shut_down_after(out, deadline_s), contextlib.suppress(RuntimeError):
                here("migrate", {"uri": "fd:out"})
            here("query-status")
            return time.monotonic() - begun


def _mirror(here: Qmp, there: Qmp, tls: dict[str, Any]) -> float:
    port = str(_listening_port())
    there("nbd-server-start", {"addr": {"type": "inet", "data": {"host": _ADDRESS, "port": port}}, **tls})
    there("block-export-add", {"type": "nbd", "id": "x", "node-name": "d0", "name": "d", "writable": True})
    server = {"type": "inet", "host": _ADDRESS, "port": port}
    here("blockdev-add", {"driver": "nbd", "node-name": "nbd", "export": "d", "server": server, **tls})
    here("blockdev-mirror", {"job-id": "j", "device": "d0", "target": "nbd", "sync": "full", "auto-dismiss": True})
    took_s = until(lambda: here("query-jobs")[0]["status"] == "ready", 60)
    here("block-job-cancel", {"device": "j", "force": False})
    until(lambda: not here("query-jobs"), 10)
    return took_s


def _packets(here: Qmp, there: Qmp, tls: dict[str, Any]) -> None:
    address = {"type": "inet", "data": {"host": _ADDRESS, "port": str(_listening_port())}}
    for monitor, more in ((there, {"server": True, "wait": False}), (here, {"server": False})):
        backend = {"type": "socket", "data": {"addr": address, "nodelay": True, **more, **tls}}
        monitor("chardev-add", {"id": "mir", "backend": backend})
    common = {"netdev": "n0", "queue": "tx", "vnet_hdr_support": True}
    here("object-add", {"qom-type": "filter-mirror", "id": "fm", "outdev": "mir", **common})
    there("object-add", {"qom-type": "filter-redirector", "id": "fr", "indev": "mir", **common})


def _copy(here: Qmp, there: Qmp, tls: dict[str, Any]) -> float:
    for monitor, more in ((there, []), (here, ["pause-before-switchover"])):
        states = [{"capability": name, "state": True} for name in ("return-path", "x-colo", *more)]
        monitor("migrate-set-capabilities", {"capabilities": states})
        monitor("migrate-set-parameters", {"x-checkpoint-delay": 100, "max-bandwidth": 0, **tls})
    with socket.create_server((_ADDRESS, 0)) as listener, socket.create_connection(listener.getsockname()) as out:
        into, _address = listener.accept()
        with into:
            for end in (out, into):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            there("getfd", {"fdname": "in"}, fd=into.fileno())
            here("getfd", {"fdname": "out"}, fd=out.fileno())
    there("migrate-incoming", {"uri": "fd:in"})
    here("migrate", {"uri": "fd:out"})
    took_s = until(lambda: here("query-migrate").get("status") == "pre-switchover", 60)
    here("migrate-continue", {"state": "pre-switchover"})
    until(lambda: [each("query-colo-status")["mode"] for each in (here, there)] == ["primary", "secondary"], 20)
    return took_s


def _pauses(here: Qmp) -> dict[str, float]:
    here.events.clear()
    time.sleep(5)
    here("query-status")  # takes in the events that wait
    at = {kind: [_stamp(each) for each in here.events if each["event"] == kind] for kind in ("STOP", "RESUME")}
    pauses = sorted(min(after) - stop for stop in at["STOP"] if (after := [t for t in at["RESUME"] if t >= stop]))
    median = pauses[len(pauses) // 2]
    return {"checkpoints": len(pauses), "median": round(1000 * median, 1), "max": round(1000 * pauses[-1], 1)}


def _stamp(event: dict[str, Any]) -> float:
    return float(event["timestamp"]["seconds"]) + float(event["timestamp"]["microseconds"]) / 1e6


def main(rounds: int = 3) -> int:
    """Plain and TLS in turn; the file, and a line for each."""
    runs = []
    for number in range(2 * rounds):
        with tempfile.TemporaryDirectory(prefix="ftlab-channels-") as directory:
            runs.append(measure(Path(directory), tls=bool(number % 2)))
            print(runs[-1], flush=True)
    report = Path("build/channels.json")
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps({"load": os.getloadavg()[0], "runs": runs}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*(int(word) for word in sys.argv[1:2])))
