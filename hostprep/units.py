"""The systemd units of a host. Restarting any of them disturbs no VM: QEMU belongs to libvirt.

What confines them (docs/security.md) needs no mount namespace. systemd makes one for ``Protect{System,Home,
ControlGroups,Kernel*}``, ``Private*`` and the ``*Paths``, out of a copy of all the host's mounts, the datastore's too.
safety: a step of making it that touches that mount by its path may wait for an NFS server that is silent, and just then
a daemon that ended must be there again after 100 ms. (Not seen; nor is it worth finding out which of them do.) A mount
that comes later would get in (systemd makes such namespaces slaves of the host's), but one that is unmounted lazily
stays busy in it. So ``systemd-analyze security`` calls the units exposed where it counts namespaces.

``DevicePolicy=`` is left, too, and ``ProtectClock=``, which sets it: the agent opens /dev/kvm, /dev/watchdog, /dev/kmsg
and the processors' cpuid, and a watchdog that it may not open is one that does not end the host. ``UMask=`` is as
always: disks that the agent makes are read by QEMU, which is another user, where NFS makes root nobody.
"""

_COMMON = """\
Environment=PYTHONPATH=/opt/ftkvm PYTHONUNBUFFERED=1
RuntimeDirectory=ftkvm
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
"""

_CONFINED = """\
NoNewPrivileges=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @debug @module @mount @obsolete @raw-io @reboot @swap
SystemCallErrorNumber=EPERM
"""
"""For all three. A list of system calls that are refused, not of those that are allowed: qemu-img and fence agents run
in the agent's unit, and a call that one of them newly makes must not be found out in the middle of a failover."""

_AGENT_CAPABILITIES = (
    "~CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_AUDIT_WRITE CAP_BLOCK_SUSPEND CAP_BPF CAP_CHECKPOINT_RESTORE"
    " CAP_IPC_OWNER CAP_LEASE CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE CAP_MKNOD"
    " CAP_NET_BROADCAST CAP_PERFMON CAP_SETFCAP CAP_SETPCAP CAP_SYS_BOOT CAP_SYS_CHROOT CAP_SYS_MODULE CAP_SYS_PACCT"
    " CAP_SYS_RAWIO CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM"
)
"""What is taken from the agent. It keeps the rights over others' files and processes (QEMU's), the network's, those of
a fence agent that uses ssh, and CAP_SYSLOG (the kernel's log says whether the firmware keeps virtualisation off)."""
_KEEPER_CAPABILITIES = "CAP_DAC_OVERRIDE CAP_IPC_LOCK CAP_NET_ADMIN CAP_NET_RAW CAP_SYS_NICE"
"""Others' files on the datastore; memory that stays; nftables; pings; real time."""
_HOLD_CAPABILITIES = "CAP_DAC_OVERRIDE CAP_NET_ADMIN CAP_SYS_NICE"
"""QEMU's sockets; large buffers; its place before others."""

AGENT = f"""\
[Unit]
Description=ftkvm agent: fault tolerance and high availability of this host's VMs
After=network-online.target libvirtd.service ftkvm-keeper.service
Wants=network-online.target libvirtd.service ftkvm-keeper.service
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart=/usr/bin/python3 -m ftkvm.agent
{_COMMON}Restart=always
RestartSec=100ms
TimeoutStartSec=180
TimeoutStopSec=20
WatchdogSec=30
KillMode=process
OOMScoreAdjust=-900
LimitNOFILE=65536
{_CONFINED}RestrictRealtime=yes
CapabilityBoundingSet={_AGENT_CAPABILITIES}

[Install]
WantedBy=multi-user.target
"""

KEEPER = f"""\
[Unit]
Description=ftkvm keeper: beats to the other hosts, and the gate at the VMs' bridge ports
After=network.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/bin/python3 -m ftkvm.keeper
{_COMMON}Restart=always
RestartSec=100ms
Nice=-20
OOMScoreAdjust=-1000
LimitMEMLOCK=infinity
LimitRTPRIO=99
{_CONFINED}MemoryDenyWriteExecute=yes
CapabilityBoundingSet={_KEEPER_CAPABILITIES}

[Install]
WantedBy=multi-user.target
"""

HOLD = f"""\
[Unit]
Description=ftkvm hold proxy of VM %i: frames wait until the checkpoint that covers them

[Service]
Type=notify
ExecStart=/usr/bin/python3 -m ftkvm.hold /run/ftkvm/hold/%i.json
{_COMMON}Restart=no
Nice=-20
OOMScoreAdjust=-1000
TimeoutStopSec=2
{_CONFINED}RestrictRealtime=yes
MemoryDenyWriteExecute=yes
CapabilityBoundingSet={_HOLD_CAPABILITIES}
"""

UNIT_FILES = {
    "/etc/systemd/system/ftkvm-agent.service": AGENT,
    "/etc/systemd/system/ftkvm-keeper.service": KEEPER,
    "/etc/systemd/system/ftkvm-hold@.service": HOLD,
}
