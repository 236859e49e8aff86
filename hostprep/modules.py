"""The modules of the kernel that a host needs: loaded now, and at each boot whatever udev was told. Pure."""

from collections.abc import Sequence

from hostprep.step import Step

WANTED = {"vmx": "kvm_intel", "svm": "kvm_amd", "": "tun"}
"""By the processor's own word for what it can; empty: whatever processor it is."""
FILE = "/etc/modules-load.d/ftkvm.conf"
COMMAND = "; ".join(
    f"grep -qw '{word or 'processor'}' /proc/cpuinfo && modprobe -n -q {name} 2>/dev/null && echo {name}"
    for word, name in WANTED.items()
)
"""Prints those that the host's kernel has and its processor is for; a container's kernel is not its own."""


def files(names: Sequence[str]) -> dict[str, tuple[bytes, int]]:
    """That they are loaded at each boot, as a wish has files. Source: modules-load.d(5)."""
    text = "".join(f"{line}\n" for line in ("# Written by `ftkvm host add`.", *names))
    return {FILE: (text.encode(), 0o644)} if names else {}


def load(names: Sequence[str]) -> Step:
    """They are loaded now, as far as they can be: without KVM it is a host all the same, and `ftkvm check host` says
    why it has none."""
    return _step("modules", names, f"for name in {' '.join(names)}; do modprobe -q $name || true; done", "true")


def load_tun() -> Step:
    """Without it no VM has a network, and the host is refused."""
    return _step("module tun", ["tun"], "modprobe tun", "test -c /dev/net/tun")


def _step(name: str, names: Sequence[str], command: str, proof: str) -> Step:
    # undo: a module that is loaded does no harm, and something may use it by now
    return Step(name, f"load {' '.join(names)}", command, proof, "true")
