"""What is left of a QEMU, by real processes: one that is killed while a thread of it hangs in the storage."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from ftkvm.adapters.qemus import LastQemu

_QEMU = """
import ctypes, sys, threading
open("/proc/self/comm", "w").write("qemu-system-x86")
threading.Thread(target=sys.stdin.readline).start()
sys.stdout.write("up\\n"); sys.stdout.flush()
threading.Event().wait(float(sys.argv[-1]))
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread only
"""


@pytest.fixture
def uuid() -> str:
    return str(uuid4())


@pytest.fixture
def qemu(uuid: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a QEMU's name and words, whose first thread ends after a second; the other reads its stdin."""
    words = ("qemu-system-x86_64", "-I", "-c", _QEMU, "-uuid", uuid, "-name", "guest=vm1", "1")
    with subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        yield process
        process.kill()


def _until_first_thread_is_dead(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while Path(f"/proc/{process.pid}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_qemu_of_which_a_thread_is_left_is_not_gone(uuid: str, qemu: subprocess.Popen[bytes]) -> None:
    last = LastQemu(uuid)
    assert not last.gone(), "nothing is known of it yet"
    last.note()
    assert not last.gone()
    _until_first_thread_is_dead(qemu)
    assert not last.gone(), "what it still writes may come through"
    qemu.kill()
    qemu.wait()
    assert last.gone()
