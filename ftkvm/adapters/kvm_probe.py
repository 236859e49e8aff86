"""Whether a guest really runs on this host's processor: signs from the kernel, and a guest of 15 bytes of code."""

import os
import re
import struct
import subprocess
import tempfile
from pathlib import Path

from ftkvm.core.checks.host import KvmSigns

_ROM_BYTES = 65536
_START, _BODY = 0xFFF0, 0xF000
"""Where an x86 processor begins, in the last 16 bytes of its ROM; and where there is room for more code."""
_COUNT = 20_000_000
"""Counted down by the guest. A processor does it in some 10 ms, a /dev/kvm that emulates every instruction in 25 s."""
_CODE = b"".join([
    b"\x66\xb9", struct.pack("<I", _COUNT),  # mov ecx, _COUNT
    b"\x66\x49\x75\xfc",  # again: dec ecx; jnz again
    b"\xb0\x31\xe6\xf4\xf4",  # mov al, 0x31; out 0xf4, al; hlt: the device at 0xf4 ends QEMU
])  # fmt: skip
_RAN = 0x31 * 2 + 1
"""QEMU's exit status then."""
_OFF = re.compile(r"disabled by (the )?bios", re.IGNORECASE)
_VMX_BIT, _SVM_BIT = 5, 2


def signs(flags: frozenset[str], *, guest_timeout_s: float = 1.5) -> KvmSigns:
    """Look, and if /dev/kvm opens, start the tiny guest. Never raises; bounded by ``guest_timeout_s``."""
    device = Path("/dev/kvm")
    there, error = device.exists(), ""
    if there:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
        except OSError as failed:
            error = failed.strerror or str(failed)
    guest_error = run_guest("kvm", guest_timeout_s) if there and not error else None
    flag = bool({"vmx", "svm"} & flags)
    return KvmSigns(flag, _raw(), _log_says_off(), there, error, guest_error)


def rom() -> bytes:
    """The guest: a ROM that begins with a jump to its code."""
    made = bytearray(_ROM_BYTES)
    made[_BODY : _BODY + len(_CODE)] = _CODE
    made[_START : _START + 3] = b"\xe9" + struct.pack("<h", _BODY - (_START + 3))  # jmp _BODY
    return bytes(made)


def run_guest(accelerator: str, timeout_s: float, qemu: str = "qemu-system-x86_64") -> str:
    """Run the tiny guest; empty if it ran, else why not, in QEMU's words."""
    with tempfile.NamedTemporaryFile(prefix="ftkvm-probe-") as file:
        file.write(rom())
        file.flush()
        command = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", f"pc,accel={accelerator}",
                   "-m", "16", "-bios", file.name, "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]  # fmt: skip
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return f"a guest that only counts to {_COUNT} did not end within {timeout_s:g} s"
        except OSError as error:
            return f"{qemu}: {error.strerror}"
    if done.returncode == _RAN:
        return ""
    return " ".join(done.stderr.split()) or f"{qemu} ended with status {done.returncode}"


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


def _log_says_off() -> bool:
    """Whether the kernel's log has "disabled by BIOS" of KVM."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        while True:
            line = os.read(fd, 8192).decode(errors="replace")
            if _OFF.search(line) and re.search(r"kvm|vmx|svm", line, re.IGNORECASE):
                return True
    except OSError:  # the end of the log (EAGAIN), or a line that was overwritten
        return False
    finally:
        os.close(fd)
