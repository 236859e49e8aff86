"""The systemd units of a host. Restarting any of them disturbs no VM: QEMU belongs to libvirt."""

_COMMON = """\
Environment=PYTHONPATH=/opt/ftkvm PYTHONUNBUFFERED=1
RuntimeDirectory=ftkvm
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
"""

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
"""

UNIT_FILES = {
    "/etc/systemd/system/ftkvm-agent.service": AGENT,
    "/etc/systemd/system/ftkvm-keeper.service": KEEPER,
    "/etc/systemd/system/ftkvm-hold@.service": HOLD,
}
