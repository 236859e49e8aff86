"""Whether a guest really runs on this host's processor: signs from the kernel, and a guest of 19 bytes of code."""

import os
import re
import select
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ftkvm.core.checks.host import KvmSigns

_ROM_BYTES = 65536
_START, _BODY = 0xFFF0, 0xF000
"""Where an x86 processor begins, in the last 16 bytes of its ROM; and where there is room for more code."""
_COUNT = 5_000_000
"""Counted down by the guest. A processor does it in some 3 ms, one that is emulated itself in a second, a /dev/kvm that
emulates every instruction in 6 s."""
_CODE = b"".join([
    b"\xb0\x62\xe6\xe9",  # mov al, 0x62; out 0xe9, al: the debug console, "it has begun"
    b"\x66\xb9", struct.pack("<I", _COUNT),  # mov ecx, _COUNT
    b"\x66\x49\x75\xfc",  # again: dec ecx; jnz again
    b"\xb0\x31\xe6\xf4\xf4",  # mov al, 0x31; out 0xf4, al; hlt: the device at 0xf4 ends QEMU
])  # fmt: skip
_RAN = 0x31 * 2 + 1
"""QEMU's exit status then."""
_OFF = re.compile(r"(\b|_)(kvm|vmx|svm)\b.*\b(disabled|not (fully )?enabled)\b.*\bbios\b", re.IGNORECASE)
"""The words differ by kernel and maker; "not supported" is none of them: that processor cannot."""
_VMX_BIT, _SVM_BIT = 5, 2


@dataclass(frozen=True)
class Limits:
    """How long the guest may take to begin, in which QEMU starts, and then to count."""

    begin_s: float = 20.0
    count_s: float = 2.0


class Probe:
    """Runs the tiny guest beside the caller, and remembers what came of it for ``lifetime_s``."""

    def __init__(self, run: Callable[[], str], lifetime_s: float = 600.0) -> None:
        self._run, self._lifetime_s = run, lifetime_s
        self._lock = threading.Lock()
        self._error: str | None = None
        self._known_at_s = float("-inf")
        self._running: threading.Thread | None = None

    def error(self, wait_s: float) -> str | None:
        """Why the guest did not run, empty if it ran; None if that is not known within ``wait_s``.

        What is older than its lifetime is still told, and tried again meanwhile.
        """
        with self._lock:
            if self._running is None and time.monotonic() - self._known_at_s >= self._lifetime_s:
                self._running = threading.Thread(target=self._try, name="kvm-probe", daemon=True)
                self._running.start()
            running = self._running
        if running is not None and self._error is None:
            running.join(wait_s)
        return self._error

    def _try(self) -> None:
        try:
            error = self._run()
        except OSError as failed:  # no room for its ROM
            error = f"a guest could not be tried: {failed}"
        with self._lock:
            self._error, self._known_at_s, self._running = error, time.monotonic(), None


def of_this_host() -> Probe:
    """The probe of /dev/kvm."""
    return Probe(lambda: run_guest("kvm", Limits()))


def signs(flags: frozenset[str], probe: Probe, wait_s: float) -> KvmSigns:
    """Look, and if /dev/kvm opens, ask the tiny guest. Never raises; bounded by ``wait_s``."""
    device = Path("/dev/kvm")
    there, error = device.exists(), ""
    if there:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except OSError as failed:
            error = failed.strerror or str(failed)
    guest_error = probe.error(wait_s) if there and not error else None
    flag = bool({"vmx", "svm"} & flags)
    return KvmSigns(flag, _raw(), _log_says_off(), there, error, guest_error)


def rom() -> bytes:
    """The guest: a ROM that begins with a jump to its code."""
    made = bytearray(_ROM_BYTES)
    made[_BODY : _BODY + len(_CODE)] = _CODE
    made[_START : _START + 3] = b"\xe9" + struct.pack("<h", _BODY - (_START + 3))  # jmp _BODY
    return bytes(made)


def run_guest(accelerator: str, limits: Limits, qemu: str = "qemu-system-x86_64") -> str:
    """Run the tiny guest; empty if it ran, else why not: in QEMU's words, or which of the two limits it passed."""
    with tempfile.NamedTemporaryFile(prefix="ftkvm-probe-") as file, tempfile.TemporaryFile("w+") as words:
        file.write(rom())
        file.flush()
        command = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", f"pc,accel={accelerator}",
                   "-m", "16", "-bios", file.name, "-debugcon", "stdio",
                   "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]  # fmt: skip
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=words)
        except OSError as error:
            return f"{qemu}: {error.strerror}"
        with process:
            try:
                stuck = _watch(process, limits)
            finally:
                process.kill()
        if stuck or process.returncode == _RAN:
            return stuck
        words.seek(0)
        return " ".join(words.read().split()) or f"{qemu} ended with status {process.returncode}"


def _watch(process: "subprocess.Popen[bytes]", limits: Limits) -> str:
    """Until QEMU has ended; else which limit it passed."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], limits.begin_s)[0]:
        return f"a guest did not begin within {limits.begin_s:g} s"
    try:
        process.wait(limits.count_s)
    except subprocess.TimeoutExpired:
        return f"a guest began, and did not count to {_COUNT} within {limits.count_s:g} s"
    return ""


def _raw() -> bool | None:
    """What CPUID says, where the kernel lets one ask (module cpuid): newer kernels hide the flag if firmware is off."""
    try:
        fd = os.open("/dev/cpu/0/cpuid", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        amd = _leaf(fd, 0)[4:8] == b"Auth"
        ecx = int.from_bytes(_leaf(fd, 0x80000001 if amd else 1)[8:12], "little")
        return bool(ecx >> (_SVM_BIT if amd else _VMX_BIT) & 1)
    except OSError:
        return None
    finally:
        os.close(fd)


def _leaf(fd: int, number: int) -> bytes:
    return os.pread(fd, 16, number)


def says_off(line: str) -> bool:
    """Whether a line of the kernel's log says that the firmware keeps virtualisation off."""
    return _OFF.search(line) is not None


def _log_says_off() -> bool:
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while True:
            line = os.read(fd, 8192).decode(errors="replace")
            if says_off(line):
                return True
    except OSError:  # the end of the log (EAGAIN), or a line that was overwritten
        return False
    finally:
        os.close(fd)
