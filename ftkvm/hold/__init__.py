"""The hold proxy: what COLO does not compare waits here until a checkpoint covers it.

One process per protected VM, on the primary's host, on the unix sockets between QEMU's filter-redirectors and its
colo-compare. ``cover`` has the rule and why it is safe, ``frames`` the framing, ``proxy`` the sockets.
"""
