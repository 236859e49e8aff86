"""What the lab needs of the machine, all looked at before anything is made, each with its remedy."""

import os
import shutil
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import image, names
from ftkvm.lab.system import cgroup2_root, succeeds

COMMANDS = {
    # command: the Debian package that has it
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "bridge": "iproute2",
    "nsenter": "util-linux",
    "mount": "mount",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "qemu-img": "qemu-utils",
    "gcc": "gcc",
    "xz": "xz-utils",
    "tcpdump": "tcpdump",
}
VM_COMMANDS = {"mke2fs": "e2fsprogs", "unxz": "xz-utils", "nft": "nftables"}
"""More of them, for hosts that are VMs."""
BUILD_COMMANDS = {"debootstrap": "debootstrap", "chroot": "coreutils"}
IMAGE_MIB = 3000
LAB_MIB = 2000


def check_root() -> None:
    """FTKVM-701 unless this is root."""
    if os.geteuid() != 0:
        raise FtkvmError("FTKVM-701")


def check(*, vms: bool = False) -> None:
    """Raises the first thing that is missing; changes nothing.

    :param vms: the hosts are VMs
    """
    check_root()
    need_image = not image.image_path().exists()
    wanted = {**COMMANDS, **(BUILD_COMMANDS if need_image else {}), **(VM_COMMANDS if vms else {})}
    for command, package in wanted.items():
        if shutil.which(command) is None:
            raise FtkvmError("FTKVM-703", command=command, package=package)
    for device in ("/dev/fuse", "/dev/net/tun"):
        if not Path(device).exists():
            raise FtkvmError("FTKVM-702", what=f"the device {device}")
    if cgroup2_root() is None or not os.access(str(cgroup2_root()), os.W_OK):
        raise FtkvmError("FTKVM-702", what="a writable control group tree, version 2")
    if "overlay" not in Path("/proc/filesystems").read_text() and not succeeds(["modprobe", "overlay"]):
        raise FtkvmError("FTKVM-702", what="the overlay file system")
    if not succeeds(["unshare", "--net", "--mount", "--pid", "--fork", "true"]):
        raise FtkvmError("FTKVM-702", what="network, mount and process name spaces")
    _check_space(LAB_MIB * (3 if vms else 1) + (IMAGE_MIB if need_image else 0))


def _check_space(need_mib: int) -> None:
    there = names.STATE
    while not there.exists():
        there = there.parent
    free_mib = shutil.disk_usage(there).free >> 20
    if free_mib < need_mib:
        raise FtkvmError("FTKVM-704", path=names.STATE, need_mib=need_mib, free_mib=free_mib)
