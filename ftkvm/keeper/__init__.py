"""The keeper: a small process of its own that watches the FT peers and holds the gates at this host's bridge ports.

It knows nothing of QEMU or libvirt and decides nothing about failover. It answers two questions, promptly whatever
else the host is doing: is the peer of a pair there, and may this host's copy of a VM be heard on the VM network.
docs/keeper.md has the rules and why they are safe.
"""
