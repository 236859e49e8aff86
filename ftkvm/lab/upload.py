"""A client that sends without end, and the fault that tells whether it was lied to about what has arrived.

The FT network dies first, the primary still talks to the world, and then the *secondary* wins. If the primary's guest
acknowledged bytes that the secondary's guest never got, the client does not send them again, and this connection hangs.

``python -m ftkvm.lab.upload``: such faults in a row; figures in build/upload.json.
"""

import argparse
import contextlib
import fcntl
import json
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import soak
from ftkvm.lab.client import SINK, Stream
from ftkvm.lab.trials import Outcome, Round, Say

REPORT = Path("build/upload.json")
FAULT = "cut-ft-secondary-wins"
FLOWS_S = 1.0
"""How long the upload runs before the fault."""
HANGS_S = 20.0
"""Without an acknowledgement for so long after the VM is protected again, the connection hangs."""
BLOCK = b"x" * (1 << 16)
_SIOCOUTQ = 0x5411
"""Bytes of a TCP socket that the peer has not acknowledged yet (tcp(7))."""


class UploadClient(Stream):
    """Sends to the guest's sink as fast as it takes it."""

    def __init__(self, address: str) -> None:
        super().__init__(address, SINK, "upload")
        self.sent = 0

    def work(self) -> None:
        while not self._ending.is_set():
            with contextlib.suppress(TimeoutError):
                self.sent += self.sock.send(BLOCK)

    def acknowledged(self) -> int:
        """Bytes the guest has acknowledged."""
        sent = self.sent
        answer = fcntl.ioctl(self.sock, _SIOCOUTQ, struct.pack("I", 0))
        return sent - int(struct.unpack("I", answer)[0])

    def close(self) -> None:
        """Ends it at once: nobody waits for what is still on its way."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        super().close()


def goes_on(upload: UploadClient, timeout_s: float) -> float | None:
    """Seconds until more was acknowledged; None when nothing was in time."""
    before, began = upload.acknowledged(), time.monotonic()
    while time.monotonic() - began < timeout_s:
        if upload.broken:
            return None
        if upload.acknowledged() > before + len(BLOCK):
            return round(time.monotonic() - began, 2)
        time.sleep(0.02)
    return None


def fail_over(this: Round) -> tuple[Outcome, dict[str, Any]]:
    """One upload, one fault; what is wrong with the upload is in the outcome."""
    with UploadClient(this.guest.address) as upload:
        time.sleep(FLOWS_S)
        before = upload.acknowledged()
        outcome = this.run(FAULT)
        after_s = goes_on(upload, HANGS_S)
        if after_s is None:
            outcome.wrong.append(f"the upload hangs: {upload.broken or 'nothing is acknowledged any more'}")
        figures = {"acknowledged_before": before, "acknowledged_after": upload.acknowledged(), "goes_on_s": after_s}
    this.say(f"  upload: {figures}")
    return outcome, figures


def run(options: argparse.Namespace, report: dict[str, Any], say: Say) -> None:
    """All rounds, into ``report`` as they come."""
    stage = soak.make_stage(say)
    guest = soak.make_vm(stage, options.vm, "1G", say)
    soak.protect(stage, guest.name)
    with soak.streaming(stage, guest, say, options.seed) as this:
        rounds: list[dict[str, Any]] = []
        report["rounds"] = rounds
        for number in range(1, options.rounds + 1):
            say(f"-- {number} of {options.rounds}")
            outcome, figures = fail_over(this)
            rounds.append({**asdict(outcome), "upload": figures})
    if not options.keep:
        stage.ftkvm("turn-off", guest.name)
        stage.ftkvm("vm", "stop", guest.name)


def main(words: Sequence[str]) -> int:
    """0 when no upload hung and all else held."""
    parser = argparse.ArgumentParser(prog="python -m ftkvm.lab.upload", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--vm", default="vm1")
    parser.add_argument("--keep", action="store_true", help="leave the VM running and protected")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args(words)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)

    report: dict[str, Any] = {"machine": soak.machine()}
    try:
        run(options, report, say)
    except FtkvmError as error:
        report["error"] = error.to_json()
        say(f"{error}\n  cause:  {error.cause}\n  remedy: {error.remedy}")
    finally:
        options.report.parent.mkdir(exist_ok=True)
        options.report.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    wrong = [text for each in report.get("rounds", []) for text in each["wrong"]]
    say("not as promised:\n  " + "\n  ".join(wrong) if wrong else "all held")
    print(f"Figures: {options.report}")
    return 1 if wrong or "error" in report else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
