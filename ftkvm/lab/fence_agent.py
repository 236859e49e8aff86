#!/usr/bin/python3
"""fence_ftkvm_lab: switches a lab host off, by the calling convention of fence-agents (key=value on standard input).

Keys: ``plug`` (the host), ``action`` (off, status), ``socket``. Exit status of ``off``: 0 done; of ``status``: 0 on,
2 off; else 1.
"""

import socket
import sys

DEFAULT_SOCKET = "/.ftlab/devices/fence.sock"


def main() -> int:
    keys = dict(line.strip().split("=", 1) for line in sys.stdin if "=" in line)
    action = keys.get("action", "off")
    try:
        with socket.socket(socket.AF_UNIX) as device:
            device.settimeout(30)
            device.connect(keys.get("socket", DEFAULT_SOCKET))
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
