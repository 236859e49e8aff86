"""The lab's cables and switches: four bridges in a name space of their own, a veth pair from each host to each."""

from pathlib import Path

from ftkvm.lab import names
from ftkvm.lab.system import run, succeeds


def _ip(namespace: str, *words: str) -> None:
    run(["ip", "-n", namespace, *words])


def exists(namespace: str) -> bool:
    return (Path("/run/netns") / namespace).exists()


def namespaces() -> list[str]:
    """The lab's name spaces that are there."""
    directory = Path("/run/netns")
    return sorted(p.name for p in directory.glob(f"{names.PREFIX}*")) if directory.exists() else []


def _fresh(namespace: str) -> None:
    run(["ip", "netns", "add", namespace])
    _ip(namespace, "link", "set", "lo", "up")


def make_switches() -> None:
    """The four bridges, no spanning tree and no forward delay; nothing of the machine is attached."""
    if exists(names.SWITCH_NS):
        return
    _fresh(names.SWITCH_NS)
    for network in names.NETWORKS.values():
        _ip(
            names.SWITCH_NS,
            "link",
            "add",
            network.bridge,
            "type",
            "bridge",
            "stp_state",
            "0",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        )
        _ip(names.SWITCH_NS, "link", "set", network.bridge, "up")


def _plug(end: str, network: str, namespace: str) -> None:
    net = names.NETWORKS[network]
    port = names.port(end, network)
    nic = ("name", net.nic, "address", names.mac(end, network), "netns", namespace)
    _ip(names.SWITCH_NS, "link", "add", port, "type", "veth", "peer", *nic)
    _ip(names.SWITCH_NS, "link", "set", port, "master", net.bridge, "up")
    _ip(namespace, "link", "set", net.nic, "up")


def unplug(end: str) -> None:
    """Removes a host's cables, both ends at once."""
    for network in names.NETWORKS:
        if port_exists(end, network):
            _ip(names.SWITCH_NS, "link", "del", names.port(end, network))


def port_exists(end: str, network: str) -> bool:
    return succeeds(["ip", "-n", names.SWITCH_NS, "link", "show", names.port(end, network)])


def make_host(host: str) -> None:
    """A new name space for a host, with four NICs; any earlier one of that host goes (it is the RAM of the NICs)."""
    remove_host(host)
    namespace = names.netns(host)
    _fresh(namespace)
    for network in names.NETWORKS:
        _plug(host, network, namespace)
    for network in names.HOST_NETWORKS:
        _ip(namespace, "addr", "add", f"{names.host_address(host, network)}/24", "dev", names.NETWORKS[network].nic)
    # The default gateway of the management network is what a host pings to tell whether it is the one cut off (HA-04).
    _ip(namespace, "route", "add", "default", "via", names.client_address("management"))
    bridge = names.VM_BRIDGE
    _ip(
        namespace,
        "link",
        "add",
        bridge,
        "type",
        "bridge",
        "stp_state",
        "0",
        "forward_delay",
        "0",
        "mcast_snooping",
        "0",
    )
    nic = names.NETWORKS["vm"].nic
    # The host itself keeps silent on the VM network: no address, no router solicitation.
    for quiet in (bridge, nic):
        _ip(namespace, "link", "set", quiet, "addrgenmode", "none")
    _ip(namespace, "link", "set", nic, "master", bridge)
    _ip(namespace, "link", "set", bridge, "up")


def make_taps(host: str) -> None:
    """The ports of a host that is a VM: taps in the switches' name space, where its QEMU runs."""
    remove_host(host)
    for network in names.NETWORKS:
        tap = names.port(host, network)
        _ip(names.SWITCH_NS, "tuntap", "add", "dev", tap, "mode", "tap")
        _ip(names.SWITCH_NS, "link", "set", tap, "addrgenmode", "none")
        _ip(names.SWITCH_NS, "link", "set", tap, "master", names.NETWORKS[network].bridge, "up")


def remove_host(host: str) -> None:
    if exists(names.SWITCH_NS):
        unplug(host)
    if exists(names.netns(host)):
        run(["ip", "netns", "del", names.netns(host)])


def make_client() -> None:
    """The client's and operator's name space: an address on the management and on the VM network."""
    if exists(names.CLIENT_NS):
        return
    _fresh(names.CLIENT_NS)
    for network in names.CLIENT_NETWORKS:
        _plug("client", network, names.CLIENT_NS)
        _ip(names.CLIENT_NS, "addr", "add", f"{names.client_address(network)}/24", "dev", names.NETWORKS[network].nic)


def set_port(host: str, network: str, up: bool) -> None:
    """Plugs a host's cable in or out at the switch; out, nothing leaves or reaches the host on it."""
    _ip(names.SWITCH_NS, "link", "set", names.port(host, network), "up" if up else "down")


def _filter(host: str) -> str:
    return f"silence-{host}"


def silence(host: str, network: str, address: str) -> None:
    """Between a host and one address on a network nothing gets through any more, and nobody is told."""
    port = names.port(host, network)
    rules = (
        f"table bridge {_filter(host)} {{\n chain frames {{\n  type filter hook forward priority 0\n"
        f'  iifname "{port}" ip daddr {address} drop\n  oifname "{port}" ip saddr {address} drop\n }}\n}}\n'
    )
    run(["ip", "netns", "exec", names.SWITCH_NS, "nft", "-f", "-"], text_in=rules)


def silenced(host: str) -> bool:
    """Whether `silence` holds for the host."""
    return succeeds(["ip", "netns", "exec", names.SWITCH_NS, "nft", "list", "table", "bridge", _filter(host)])


def unsilence(host: str) -> None:
    """Takes `silence` back; no harm if it does not hold."""
    if silenced(host):
        run(["ip", "netns", "exec", names.SWITCH_NS, "nft", "delete", "table", "bridge", _filter(host)])


def cut_all(host: str) -> None:
    """All cables of a host at one instant, as a power loss takes them; the VM network's first among equals."""
    present = [network for network in reversed(list(names.NETWORKS)) if port_exists(host, network)]
    batch = "".join(f"link set {names.port(host, network)} down\n" for network in present)
    run(["ip", "-n", names.SWITCH_NS, "-batch", "-"], text_in=batch)


def port_up(host: str, network: str) -> bool:
    """Whether the switch's end of the cable is in."""
    if not port_exists(host, network):
        return False
    return "UP" in run(["ip", "-n", names.SWITCH_NS, "link", "show", names.port(host, network)]).split("<")[1].split(
        ">"
    )[0].split(",")
