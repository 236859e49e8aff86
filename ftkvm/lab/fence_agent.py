#!/usr/bin/python3
"""fence_ftkvm_lab: switches a lab host off, by the calling convention of fence-agents (key=value on standard input).

Keys: ``plug`` (the host), ``action`` (off, status), ``socket`` or ``ip`` and ``ipport`` (the switch: a container's is
bound into it, a VM's is on the network). Exit status of ``off``: 0 done; of ``status``: 0 on, 2 off; else 1.
"""

import socket
import sys
from pathlib import Path

DEFAULT_SOCKET = "/.ftlab/devices/fence.sock"
DEFAULT_IP, DEFAULT_PORT = "10.77.0.2", 7230


def connect(keys: dict[str, str]) -> socket.socket:
    """A connection to the switch. Raises OSError."""
    path = keys.get("socket", DEFAULT_SOCKET)
    if "ip" in keys or not Path(path).exists():
        return socket.create_connection((keys.get("ip", DEFAULT_IP), int(keys.get("ipport", DEFAULT_PORT))), 30)
    device = socket.socket(socket.AF_UNIX)
    try:
        device.settimeout(30)
        device.connect(path)
    except OSError:
        device.close()
        raise
    return device


def main() -> int:
    keys = dict(line.strip().split("=", 1) for line in sys.stdin if "=" in line)
    action = keys.get("action", "off")
    try:
        with connect(keys) as device:
            device.sendall(f"{action} {keys.get('plug', '')}\n".encode())
            answer = device.recv(200).decode().strip()
    except OSError as error:
        print(f"the power switch does not answer: {error}", file=sys.stderr)
        return 1
    if action == "status" and answer in ("on", "off"):
        return 0 if answer == "on" else 2
    if action == "off" and answer == "off":
        return 0
    print(answer, file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
