"""Frames that are late or lost: netem, in the kernel of a host that is a VM. Pure.

Both directions: what leaves the NIC, and what comes in, which is sent through a device of its own (ifb), since a queue
is only there for what leaves. The delay is the hosts' time, since it is their kernel that waits. Source: tc-netem(8).
"""

FRAMES = 100_000
"""That may wait at a time; netem's own 1000 is reached at 40 MB/s after 40 ms, and then it drops."""


def ifb(nic: str) -> str:
    """The device through which the NIC's incoming frames go."""
    return f"in-{nic}"


def script(nic: str, delay_ms: float, loss_percent: float) -> str:
    """Shell commands for the host; twice 0 takes back, and so does a boot. Run again, the new values hold."""
    undo = [
        f"tc qdisc del dev {nic} root 2>/dev/null || true",
        f"tc qdisc del dev {nic} ingress 2>/dev/null || true",
        f"ip link del {ifb(nic)} 2>/dev/null || true",
    ]
    if not (delay_ms or loss_percent):
        return "\n".join(undo)
    delay = f" delay {delay_ms * 1000:.0f}us" if delay_ms else ""
    loss = f" loss {loss_percent:g}%" if loss_percent else ""
    do = [
        f"ip link add {ifb(nic)} type ifb",
        f"ip link set {ifb(nic)} up",
        f"tc qdisc add dev {ifb(nic)} root netem limit {FRAMES}{delay}{loss}",
        f"tc qdisc add dev {nic} ingress",
        f"tc filter add dev {nic} parent ffff: matchall action mirred egress redirect dev {ifb(nic)}",
        f"tc qdisc add dev {nic} root netem limit {FRAMES}{delay}{loss}",
    ]
    return "\n".join([*undo, *do])
