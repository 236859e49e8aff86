"""How the lab tells what a silent guest shows, and which copy of a VM runs for itself."""

import json
from typing import Any, cast

import pytest

from ftkvm.lab import looks


def test_a_screen_is_read_from_vga_memory() -> None:
    """Every second byte is a character; empty lines, and what is empty at the end of a line, are left out."""
    dump = (
        "00000000000b8000: 0x4f 0x07 0x6f 0x07 0x70 0x07 0x73 0x07\r\n"
        "00000000000b8008: 0x20 0x07 0x20 0x07 0x00 0x07 0x20 0x07\r\n"
        "00000000000b8010: 0x35 0x07 0x20 0x07 0x20 0x07 0x20 0x07\r\n"
    )
    assert looks.screen_of(dump, 4) == "Oops\n5"


def test_a_dump_that_is_none_is_shown_as_it_is() -> None:
    assert looks.screen_of("Cannot access memory", 80) == "Cannot access memory"
    assert looks.screen_of("error: domain is not running", 80) == "error: domain is not running"


class Asked:
    """A host with one QEMU of the VM, which says the same whenever it is asked; None: nothing."""

    running = True

    def __init__(self, status: str | None, mode: str) -> None:
        self._says: dict[str, Any] = {"query-status": {"status": status}, "query-colo-status": {"mode": mode}}
        self._answers = status is not None

    def qemu_pids(self, _vm: str) -> list[int]:
        return [1]

    def run(self, command: list[str], timeout_s: float = 60) -> str:
        return json.dumps({"return": self._says[json.loads(command[-1])["execute"]]} if self._answers else {})


@pytest.mark.parametrize(("status", "mode", "runs"), [
    ("running", "none", True), ("running", "primary", True), ("paused", "none", True), ("shutdown", "none", True),
    ("running", "secondary", False), ("colo", "secondary", False), ("inmigrate", "none", False), (None, "", True),
])  # fmt: skip
def test_a_copy_that_is_being_made_does_not_run_for_itself(status: str | None, mode: str, runs: bool) -> None:
    """One that waits for its memory is no COLO secondary yet; `make kvm` once took it for a second live copy."""
    assert looks.runs_for_itself(cast(Any, Asked(status, mode)), "vm1") is runs
