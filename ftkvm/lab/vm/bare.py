"""The root of bare hosts: Debian 13 as it is after its installation, with sshd and nothing of ftkvm's.

Beside what an installer leaves there are: the kernel's modules, laid in uncompressed (no kernel package: QEMU boots the
kernel, and an initramfs would take an emulated machine minutes), no documentation, and a dpkg that does not wait for
the disk after each file. Packages come from the lab's own mirror (:mod:`ftkvm.lab.vm.mirror`).
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from ftkvm.catalogue import FtkvmError
from ftkvm.lab import names, recipe
from ftkvm.lab.image import lend_apt_config, machine_mirror, remove_tree
from ftkvm.lab.record import record
from ftkvm.lab.system import run
from ftkvm.lab.vm import mirror
from ftkvm.lab.vm.nfs import NfsHost

Progress = Callable[[str], None]

PACKAGES = ("openssh-server", "dbus", "apparmor", "ca-certificates")
"""Beside Debian's packages of priority *required* and *important*."""
MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
          "systemd-hwdb-update.service", "getty@tty1.service")  # fmt: skip
"""What would take an emulated machine its time when it is least wanted."""
FILES = {
    "/etc/fstab": "/dev/nvme0n1 / ext4 defaults 0 1\n",
    "/etc/apt/sources.list": f"deb [trusted=yes] {mirror.URL} {recipe.SUITE} main\n",
    "/etc/network/interfaces": "auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n",
    "/etc/dpkg/dpkg.cfg.d/ftlab": (
        "force-unsafe-io\npath-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n"
        "path-exclude=/usr/share/locale/*\n"
    ),
    "/etc/systemd/journald.conf.d/ftlab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitBurst=0\n",
}


class BareHost(NfsHost):
    """A host that comes up with sshd, and that is all; `ftkvm host add` does the rest."""

    up_when = "true"

    def own_files(self) -> dict[str, str]:
        return nic_files(self.name)

    def root_image(self, image: Path) -> Path:
        return root(record().bare)


def nic_files(host: str) -> dict[str, str]:
    """A host's own: the names of its NICs, and the one address by which SSH comes. The other NICs have none."""
    found = {}
    for network in names.NETWORKS.values():
        match = f"[Match]\nPermanentMACAddress={names.mac(host, network.name)}\n"
        found[f"/etc/systemd/network/10-{network.nic}.link"] = f"{match}[Link]\nName={network.nic}\n"
    nic, address = names.NETWORKS["management"].nic, names.host_address(host, "management")
    found[f"/etc/network/interfaces.d/{nic}"] = (
        f"auto {nic}\niface {nic} inet static\n  address {address}/24\n  gateway {names.client_address('management')}\n"
    )
    return found


def recipe_hash() -> str:
    """Six hex digits over all that root and mirror are made of."""
    said = json.dumps([recipe.SUITE, PACKAGES, MASKED, FILES, mirror.WANTED], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()[:6]


def root(bare: str) -> Path:
    """The root, by the name of the bare image."""
    return names.IMAGES / bare / "root"


def packages(bare: str) -> Path:
    """What the mirror serves."""
    return names.IMAGES / bare / "mirror"


def ensure_image(image: Path, progress: Progress) -> str:
    """The name of the bare image, which is made if it is not there (a few minutes). ``image``: has the modules.

    :raises FtkvmError: FTKVM-705, a package cannot be had
    """
    done = image.with_name(f"{image.name}-bare-{recipe_hash()}")
    if done.exists():
        return done.name
    part = done.with_name(f"{done.name}.partial")
    if part.exists():  # a killed build
        remove_tree(part)
    part.mkdir()
    try:
        progress("bare image: debootstrap (1/3)")
        _debootstrap(part / "root")
        progress("bare image: the lab's package mirror (2/3)")
        mirror.fill(part / "root", part / "mirror", lend_apt_config)
        progress("bare image: modules and settings (3/3)")
        _settle(part / "root", image)
        part.rename(done)
    except BaseException:
        remove_tree(part)
        raise
    return done.name


def _debootstrap(target: Path) -> None:
    source = machine_mirror()
    words = ["debootstrap", f"--include={','.join(PACKAGES)}", recipe.SUITE, str(target), *([source] if source else [])]
    try:
        run(words, timeout_s=1200)
    except FtkvmError as error:
        raise FtkvmError("FTKVM-705", detail=error.params["detail"]) from error


def _settle(target: Path, image: Path) -> None:
    modules = target / "usr/lib/modules"
    if modules.exists():
        remove_tree(modules)
    run(["cp", "-a", "--reflink=auto", str(image / "usr/lib/modules"), str(modules)], timeout_s=120)
    for name, content in FILES.items():
        file = target / name.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    for name in MASKED:
        unit = target / "etc/systemd/system" / name
        unit.unlink(missing_ok=True)
        unit.symlink_to("/dev/null")
    for key in (target / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # each host gets its own
    (target / "etc/resolv.conf").unlink(missing_ok=True)  # the machine's: debootstrap copies it
    (target / "etc/machine-id").write_text("")
    for rest in (*(target / "var/cache/apt/archives").glob("*.deb"), *(target / "var/lib/apt/lists").glob("*_*")):
        rest.unlink()
