"""Time dilation: the clocks of emulated hosts go slower than this machine's, all by the same factor.

An emulated CPU is several times slower than a real one, and then every time limit of a real cluster is several times
too short for it: an agent that beats every 100 ms has no time left to do anything else. Instead of longer limits,
which would be another system than the one that is shipped, the hosts get slower clocks: with a factor of 8 a second
of theirs takes 8 s here, in which their CPU does what a CPU 8 times as fast does in one. Kernel, timers, watchdog,
KVM guests, systemd and the agents all live on that clock, since QEMU takes every clock it shows from its own
process's. That process sees the slower ones through libfaketime (Debian's package, out of the image).

What is outside stays as it is: the switches, the client, the operator's seat. So a figure that the client takes is
divided by the factor, and the client's own TCP is that much more impatient than the guest's. Source: time dilation as
D. Gupta et al. describe it, *To Infinity and Beyond: Time-Warped Network Emulation* (NSDI 2006).
"""

LIBRARY = "usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"
"""In the image: the library for programs with threads."""
EMULATED = 8.0
"""For hosts that this machine emulates: an emulated CPU here is 6 to 26 times slower for Python."""


def default(accelerator: str) -> float:
    """The factor if none is asked for: hosts on hardware need none."""
    return EMULATED if accelerator == "tcg" else 1.0


def environment(factor: float) -> dict[str, str]:
    """What libfaketime is to be told: from now on, slower. Files keep the times they have. Source: its README."""
    return {"FAKETIME": f"+0 x{1 / factor:.6f}", "FAKETIME_DONT_RESET": "1", "NO_FAKE_STAT": "1"}
