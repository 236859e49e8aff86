"""What a lab host's disk image is made of. The image's name is the hash of all of it: change it and it is rebuilt."""

import hashlib
import json

SUITE = "trixie"
QEMU_MINIMUM = (11, 1)

BASE_PACKAGES = (
    "ca-certificates",
    "dbus",
    "iproute2",
    "iputils-ping",
    "kmod",
    "nftables",
    "openssh-server",
    "procps",
    "systemd-sysv",
    "tcpdump",
    "udev",
    "bindfs",
    "fuse3",
    "strace",
    "gdb-minimal",
    "socat",
)
VIRT_PACKAGES = (
    "libvirt-daemon-system",
    "libvirt-daemon-driver-qemu",
    "libvirt-clients",
    "systemd-container",
    "python3",
    "python3-libvirt",
    "python3-fastapi",
    "python3-uvicorn",
    "python3-httpx",
    "python3-pydantic",
    "python3-rich",
    "python3-click",
    "python3-cryptography",
    "python3-psutil",
    "python3-pyroute2",
    "python3-nftables",
    "python3-prometheus-client",
    "ufw",
    "firewalld",
)
BACKPORTS_PACKAGES = ("qemu-system-x86", "qemu-utils", "python3-qemu-qmp")
KERNEL_PACKAGE = "linux-image-cloud-amd64"
"""Only unpacked, for the lab's guests: a container needs no kernel, and so no initramfs is generated."""

DISABLED_UNITS = (
    # what needs hardware, the outside world, or only costs time in a container
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-kernel.socket",
    "systemd-udevd-control.socket",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-pstore.service",
    "systemd-sysctl.service",
    "ldconfig.service",
    "systemd-journal-catalog-update.service",
    "systemd-update-done.service",
    "proc-sys-fs-binfmt_misc.automount",
    "systemd-importd.socket",
    "systemd-sysext.socket",
    "networking.service",
    "console-getty.service",
    "getty@tty1.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "logrotate.timer",
    "e2scrub_all.timer",
    "systemd-tmpfiles-clean.timer",
    "libvirt-guests.service",
    # there for tests, which begin them
    "ufw.service",
    "firewalld.service",
)

FILES: dict[str, str] = {
    # A killed bindfs leaves the mount behind ("not connected"), as a lost server would: only `storage ok` mends it.
    "/etc/systemd/system/ftlab-datastore.service": """\
[Unit]
Description=Shared datastore of the lab (each host has its own FUSE pass-through, so that it can hang or fail alone)
DefaultDependencies=no
Before=libvirtd.service

[Service]
Type=simple
ExecStartPre=-/bin/umount -l /srv/ftkvm
ExecStart=/usr/bin/bindfs -f --multithreaded --forward-odirect=4096 \\
  -o attr_timeout=0,entry_timeout=0,negative_timeout=0,ac_attr_timeout=0 /.ftlab/datastore /srv/ftkvm
ExecStartPost=/bin/sh -c 'for i in $(seq 100); do mountpoint -q /srv/ftkvm && exit 0; sleep 0.05; done; exit 1'
KillMode=mixed
TimeoutStopSec=2

[Install]
WantedBy=multi-user.target
""",
    "/etc/systemd/journald.conf.d/ftlab.conf": "[Journal]\nStorage=persistent\nSystemMaxUse=64M\nRateLimitBurst=0\n",
    "/etc/ssh/sshd_config.d/ftlab.conf": "UseDNS no\nMaxStartups 100\nMaxSessions 100\n",
}
LIBVIRT_QEMU_CONF = """
# Lab: a container has no control group controllers, and QEMU's own mount name space hides the lab's devices.
cgroup_controllers = []
namespaces = []
security_driver = "none"
user = "root"
group = "root"
"""
LIBVIRTD_CONF = """
# Lab: all containers see the machine's one DMI UUID; libvirt would take them for one host and refuse to migrate.
host_uuid_source = "machine-id"
"""


def recipe_hash() -> str:
    """Twelve hex digits over everything above."""
    recipe = [
        SUITE,
        BASE_PACKAGES,
        VIRT_PACKAGES,
        BACKPORTS_PACKAGES,
        KERNEL_PACKAGE,
        DISABLED_UNITS,
        FILES,
        LIBVIRT_QEMU_CONF,
        LIBVIRTD_CONF,
    ]
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
