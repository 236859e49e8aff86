"""The image of hosts that are VMs: the containers' image with what a machine of its own needs besides.

Kernel modules lie uncompressed (an emulated CPU unpacks slowly), there is no initramfs (the cloud kernel has NVMe and
ext4 built in), systemd-networkd names the NICs by their addresses, the datastore is mounted by fstab.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names
from ftkvm.lab.image import lend_apt_config, remove_tree
from ftkvm.lab.system import run

Progress = Callable[[str], None]

PACKAGES = ("virtiofsd", "libfaketime", "nfs-kernel-server", "nfs-common")
"""The first runs on this machine, from the image, as QEMU does. A host may serve NFS to the others, and mount it."""

UNMASKED = (
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket",
    "systemd-networkd.service",
    "systemd-sysctl.service",
)
DISABLED = ("nfs-server.service", "rpcbind.service", "rpcbind.socket", "nfs-blkmap.service")
MASKED = ("systemd-networkd-wait-online.service", "ftlab-datastore.service", "systemd-hwdb-update.service")
MODULES = ("virtio_net", "tun", "bridge", "i6300esb")
"""Loaded early: the search for devices takes an emulated machine long. KVM's module is left to udev."""
TAG = "ftlab"
"""What the datastore's device is called."""

ROOT_LINE = "/dev/nvme0n1 / ext4 defaults 0 1\n"
_QUIET = "[Match]\nName={name}\n[Network]\nLinkLocalAddressing=no\n{more}"
FILES = {
    "/etc/fstab": f"{ROOT_LINE}{TAG} {names.DATASTORE_MOUNT} virtiofs defaults,nofail 0 0\n",
    "/etc/modules-load.d/ftlab.conf": "".join(f"{name}\n" for name in MODULES),
    "/etc/systemd/network/10-br-vm.netdev": (
        f"[NetDev]\nName={names.VM_BRIDGE}\nKind=bridge\n[Bridge]\nSTP=no\nForwardDelaySec=0\nMulticastSnooping=no\n"
    ),
    "/etc/systemd/network/20-br-vm.network": _QUIET.format(name=names.VM_BRIDGE, more="ConfigureWithoutCarrier=yes\n"),
    "/etc/systemd/network/20-vm0.network": _QUIET.format(
        name=names.NETWORKS["vm"].nic, more=f"Bridge={names.VM_BRIDGE}\n"
    ),
}


def nic_files(host: str) -> dict[str, str]:
    """A host's own networkd files: each NIC named by its address on the cable, with its address on the network."""
    found = {}
    for network in names.NETWORKS.values():
        match = f"[Match]\nPermanentMACAddress={names.mac(host, network.name)}\n"
        found[f"/etc/systemd/network/10-{network.nic}.link"] = f"{match}[Link]\nName={network.nic}\n"
    for name in names.HOST_NETWORKS:
        gateway = f"Gateway={names.client_address(name)}\n" if name == "management" else ""
        found[f"/etc/systemd/network/20-{names.NETWORKS[name].nic}.network"] = (
            f"[Match]\nName={names.NETWORKS[name].nic}\n"
            f"[Network]\nAddress={names.host_address(host, name)}/24\nIPv6AcceptRA=no\n{gateway}"
        )
    return found


def layer_hash() -> str:
    """Six hex digits over everything above."""
    said = json.dumps([PACKAGES, UNMASKED, DISABLED, MASKED, MODULES, FILES], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:6]


def ensure_image(base: Path, progress: Progress) -> Path:
    """The image for VMs over the containers' one, made if it is not there (half a minute).

    :raises FtkvmError: FTKVM-705, a package cannot be had
    """
    done = base.with_name(f"{base.name}-vm-{layer_hash()}")
    if done.exists():
        return done
    progress("image: what a VM needs besides")
    part = done.with_name(f"{done.name}.partial")
    if part.exists():  # a killed build
        remove_tree(part)
    try:
        run(["cp", "-a", "--reflink=auto", str(base), str(part)], timeout_s=300)
        _install(part)
        _settle(part)
        part.rename(done)
    except BaseException:
        remove_tree(part)
        raise
    return done


def _install(root: Path) -> None:
    borrowed = lend_apt_config(root)
    env = dict(os.environ, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8", HOME="/root")
    script = (
        f"apt-get update -qq; apt-get install -qq -y --no-install-recommends {' '.join(PACKAGES)}; "
        "apt-get clean; rm -rf /var/lib/apt/lists/*"
    )
    try:
        run(["chroot", str(root), "/bin/sh", "-ec", script], timeout_s=600, env=env)
    except FtkvmError as error:
        raise FtkvmError("FTKVM-705", detail=error.params["detail"]) from error
    finally:
        for file in borrowed:
            file.unlink(missing_ok=True)


def _settle(root: Path) -> None:
    modules = root / "usr/lib/modules"
    run(["find", str(modules), "-name", "*.ko.xz", "-exec", "unxz", "{}", "+"], timeout_s=120)
    for release in modules.iterdir():
        run(["chroot", str(root), "depmod", "-a", release.name], timeout_s=120)
    units = root / "etc/systemd/system"
    for name in UNMASKED:
        (units / name).unlink(missing_ok=True)
    for name in MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    for name, content in FILES.items():
        file = root / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    run(["chroot", str(root), "systemctl", "enable", "--quiet", "systemd-networkd.service"])
    run(["chroot", str(root), "systemctl", "disable", "--quiet", *DISABLED])
