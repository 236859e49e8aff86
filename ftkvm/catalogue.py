"""Every message a user can see: a stable code, its text, its cause and its remedy.

A message is raised as ``FtkvmError("FTKVM-101", vm="vm1")``; the CLI prints text, cause and remedy and exits
with the message's exit status. A code never changes its meaning.
"""

# ruff: noqa: E501  (one entry reads best as a table)

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Message:
    """One catalogue entry; ``text``, ``cause`` and ``remedy`` are ``str.format`` templates."""

    code: str
    text: str
    cause: str
    remedy: str
    exit_status: int = 1


def _m(code: str, text: str, cause: str, remedy: str, exit_status: int = 1) -> tuple[str, Message]:
    return code, Message(code, text, cause, remedy, exit_status)


# 1xx virtual machines · 2xx hosts · 3xx datastore · 4xx FT preconditions · 5xx FT operations · 6xx cluster · 7xx lab · 9xx internal
# Exit statuses: 1 refused or failed · 2 wrong usage · 3 no such thing · 4 somebody does not answer · 5 outcome unknown · 6 storage
# fmt: off
CATALOGUE: dict[str, Message] = dict(
    [
        _m("FTKVM-101", "no VM named {vm}", "No VM of that name or UUID is registered in the cluster.",
           "`ftkvm vm list` shows the VMs; `ftkvm vm register DOMAIN` adds one.", 3),
        _m("FTKVM-102", "VM {vm} is not running", "None of the cluster's hosts that answer runs it.",
           "Start it: `ftkvm vm start {vm}`."),
        _m("FTKVM-103", "VM {vm} is running already, on {host}", "A VM runs once in the cluster.",
           "Nothing to do; to stop it: `ftkvm vm stop {vm}`."),
        _m("FTKVM-104", "no libvirt domain {domain} on {host}", "libvirt on that host knows no domain of that name or UUID.",
           "`virsh --connect qemu:///system list --all` on {host} shows its domains; name the right host with --host.", 3),
        _m("FTKVM-105", "VM {vm} is registered already", "The name or the UUID of this domain is taken in the cluster.",
           "`ftkvm vm list` shows it; rename the domain, or give it another UUID, to register a second one."),
        _m("FTKVM-106", "libvirt on {host} refused: {detail}", "libvirt or QEMU reported this error; nothing was changed.",
           "Mend what the message names; `journalctl -u libvirtd` on {host} and /var/log/libvirt/qemu/ say more."),
        _m("FTKVM-107", "an image of VM {vm} is locked: {detail}",
           "Another process has the image open for writing; perhaps another copy of the VM, or qemu-img.",
           "Find it on all hosts with `fuser -v IMAGE`, end it, and try again."),
        _m("FTKVM-108", "the definition of VM {vm} is not valid: {detail}", "The XML cannot be understood.",
           "Correct the domain's XML with `virsh edit` and register it again."),
        _m("FTKVM-109", "it is not known where VM {vm} runs: no answer from {hosts}",
           "A host that does not answer may run the VM; a second start would damage its disks.",
           "Bring the host back, or make sure that it is off and remove it: `ftkvm host remove NAME`.", 4),
        _m("FTKVM-110", "FT is on for VM {vm}: {action} is refused", "The pair's two copies must stay the same.",
           "Turn FT off first: `ftkvm turn-off {vm}`."),
        _m("FTKVM-111", "VM {vm} cannot be started now: which of its two copies went on last is not decided", "The hosts of its last pair were lost before one of them had won, and it is not known yet that both copies are gone.",
           "Run `ftkvm vm start {vm}` again once both hosts of the pair answer; one that is gone for good: `ftkvm host remove --dead HOST`, then start it.", 4),
        _m("FTKVM-112", "VM {vm} has not shut down within {seconds} s", "The guest does not react to the power button, or needs longer.",
           "Shut it down from inside, wait longer (--timeout), or switch it off: `ftkvm vm stop --force {vm}`.", 5),
        _m("FTKVM-113", "domain {domain} has a saved state", "Its next start would go on from memory that was saved, which a definition cannot carry.",
           "Start it once and shut it down, or drop the saved state: `virsh managedsave-remove {domain}`."),
        _m("FTKVM-120", "VM {vm}: NIC {device} has the back end {backend}",
           "vhost and multiqueue back ends bypass QEMU's network filters, through which every packet of a protected VM goes; "
           "the back end cannot be changed while the VM runs.",
           "Add <driver name='qemu'/> (and no queues attribute) to the interface in the domain's XML, stop and start the VM."),
        _m("FTKVM-121", "VM {vm}: machine type {machine} is not supported", "Pairs are tried with the pc and q35 machine families only.",
           "Give the domain a machine type of the pc or q35 family."),
        _m("FTKVM-122", "VM {vm}: device {device} cannot be carried over to a second copy",
           "Its state is in the host or in hardware, so QEMU cannot send it to the secondary.",
           "{how}; then stop and start the VM."),
        _m("FTKVM-123", "VM {vm}: disk {device} has the format {format}", "Only qcow2 and raw images can be put under an overlay.",
           "Convert it: `qemu-img convert -O qcow2`, and change the domain's XML."),
        _m("FTKVM-124", "VM {vm}: disk {device} is {source}, which is not a file below the datastore {datastore}",
           "Both hosts of a pair must reach the image.", "Move the image below {datastore} and change the domain's XML."),
        _m("FTKVM-125", "VM {vm}: disk {device} on bus {bus} is not supported", "Only virtio and ide disks can be replaced by the pair's disk.",
           "Use bus='virtio' in the domain's XML."),
        _m("FTKVM-126", "VM {vm}: disk {device} has internal snapshots", "An image that is frozen as the pair's base must have no snapshots inside.",
           "Delete them with `qemu-img snapshot -d`, or convert the image; `qemu-img snapshot -l` lists them."),
        _m("FTKVM-127", "VM {vm}: disk {device} is {what}", "A disk of a pair is written by one VM alone.",
           "Remove <{what}/> from the disk in the domain's XML."),
        _m("FTKVM-128", "VM {vm} has {vcpus} vCPUs, the limit for FT is {limit}", "Each vCPU makes checkpoints longer.",
           "Give the VM fewer vCPUs."),
        _m("FTKVM-129", "VM {vm}: domain type {type} is not supported", "FT needs QEMU, with kvm or in emulation.",
           "Use a domain of type kvm or qemu."),
        _m("FTKVM-131", "VM {vm}: disk {device} is served by an I/O thread",
           "QEMU ends with a failed assertion when a secondary whose disk has an I/O thread goes live (job_set_aio_context, 11.1).",
           "Remove the iothread attribute from the disk's <driver> in the domain's XML, stop and start the VM."),
        _m("FTKVM-130", "VM {vm}: NIC {device} is of type {type}",
           "Only interfaces on a bridge can be gated at the host, so that a copy that lost can send nothing.",
           "Connect it to one of the cluster's bridges: <interface type='bridge'><source bridge='{bridge}'/>."),
        _m("FTKVM-134", "VM {vm}: {device} is connected to {source}, a file or device of one host",
           "The other copy's host cannot see it, or both copies would write to it.",
           "Give the port a back end of type pty, unix or tcp in the domain's XML, or remove it; then stop and start the VM."),
        _m("FTKVM-132", "VM {vm} is a template", "Its metadata mark it (<template xmlns='urn:ftkvm:1'/>): it is a pattern for other VMs and is not run.",
           "Make a VM from it, or take the mark out: `virsh metadata`."),
        _m("FTKVM-133", "HA does not restart VM {vm}", "ha.enabled is off for the cluster, or the VM's ha.restart_priority is disabled.",
           "`ftkvm cluster set ha.enabled=on`; `ftkvm vm set {vm} ha.restart_priority=medium`."),
        _m("FTKVM-114", "setting {name} of VM {vm} is refused: {detail}", "The name or the value is not one that FT knows.",
           "`ftkvm vm show {vm}` lists the settings with their defaults and ranges.", 2),
        _m("FTKVM-115", "VM {vm} is not started from {image}: there are overlays on it ({newer})",
           "They look like FT's, and no pair record and no journal on the datastore accounts for them; the newest writes may be in them.",
           "Nothing is lost. If they are copies or left-overs, move them away; else write them back (`qemu-img commit -b IMAGE OVERLAY`). Then start again.", 2),
        _m("FTKVM-116", "VM {vm} went on at {host}", "The other copy won the pair's epoch in the same moment.",
           "Run the command again; it then acts on the copy that runs."),
        _m("FTKVM-117", "VM {vm}: its copy on {host} does not end", "QEMU was killed and waits for storage that does not answer.",
           "Mend the datastore on {host}; the process ends then. Nothing else can end it but a restart of the host.", 5),
        _m("FTKVM-119", "HA does not start VM {vm}: its last pair was recorded by an older version", "The record does not name the boots of its hosts, so whether a copy lives is for every host to say.",
           "If both copies are gone: `ftkvm vm start {vm}`."),
        _m("FTKVM-118", "VM {vm} was not started: epoch {epoch} is not its newest one", "Its pair changed since it was looked at.",
           "Run `ftkvm vm start {vm}` again."),
        _m("FTKVM-140", "VM {vm} hangs and is left alone: {resets} resets within {window_s} s did not help",
           "Its guest agent is silent and it does no I/O ({why}); so often a VM is reset within the window, and no more.",
           "Look at its console and at the pictures kept before the resets (vms/…/screenshots on the datastore). When it is mended, or to try again: "
           "`virsh reset {vm}` on its host, or stop and start it. The limit: `ftkvm vm set {vm} ha.vm_max_resets=…`."),
        _m("FTKVM-141", "VM {vm} hangs and could not be reset: {detail}", "libvirt or QEMU did not do it; it is tried again.",
           "If it goes on: switch the VM off and on, `ftkvm vm stop --force {vm}`, `ftkvm vm start {vm}`."),
        _m("FTKVM-142", "no picture of the console of VM {vm}: {detail}", "The picture is taken of the VM's first video device.",
           "Give the domain a <video> device, so that a reset leaves a picture of what its console showed."),
        _m("FTKVM-143", "VM {vm} hangs and is not reset: it cannot be recorded ({detail})",
           "Resets are counted on the datastore, and nothing is reset that is not counted.",
           "Mend the datastore (`ftkvm host list` shows its state); the reset follows by itself.", 6),
        _m("FTKVM-144", "VM {vm} is not monitored: {why}", "Without signs of life from inside, a guest that hangs cannot be told from an idle one.",
           "Install and start qemu-guest-agent in the guest, and give the domain its channel: "
           "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>."),
        _m("FTKVM-201", "no host named {host} in the cluster", "The cluster's configuration has no such host.",
           "`ftkvm host list` shows the hosts; `ftkvm host add NAME` adds one.", 3),
        _m("FTKVM-202", "host {host} does not answer: {detail}", "No connection to its agent could be made: the host is down, cut off, or its agent is not running.",
           "Look at the host: `systemctl status ftkvm-agent`; the network and TCP port 7443 between the hosts.", 4),
        _m("FTKVM-203", "the SSH host key of {host} ({address}) is not known: {fingerprint}",
           "The key is not in {known_hosts}, so that nobody has vouched for this host yet.",
           "Compare the fingerprint with the host's own (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`), then "
           "`ssh-keyscan -t ed25519 {address} >> {known_hosts}`.", 4),
        _m("FTKVM-204", "the SSH host key of {host} ({address}) has changed: now {fingerprint}",
           "{known_hosts} has another key: the host was installed again, or somebody answers in its place.",
           "If the change is yours, `ssh-keygen -R {address} -f {known_hosts}` and add the new key; otherwise find out who answers.", 4),
        _m("FTKVM-205", "host {host} refused the SSH login of {user}", "No key offered is authorized there.",
           "Name the key with --ssh-key, the user with --ssh-user, and put the public key into ~{user}/.ssh/authorized_keys.", 4),
        _m("FTKVM-206", "host {host} runs {system}", "The agent is built on Debian 13's packages.", "Install Debian 13 on the host."),
        _m("FTKVM-207", "QEMU on host {host} is {version}; 11.1 or newer is needed",
           "Older versions hang or abort under COLO.", "`apt-get install -t trixie-backports qemu-system-x86 qemu-utils` on {host}, then stop and start the VMs."),
        _m("FTKVM-208", "libvirt on host {host} is {version}; 11.0 or newer is needed", "The agent relies on its interface.",
           "Install libvirt of Debian 13 on {host}."),
        _m("FTKVM-209", "preparing host {host} stopped at step {step}: {detail}", "A command on the host failed; what this run had begun was undone.",
           "Mend what the message names and run `ftkvm host add {host}` again."),
        _m("FTKVM-210", "host {host} cannot be reached with SSH at {address}: {detail}", "No SSH connection could be made.",
           "Check the address, that the host is on, and that sshd answers there.", 4),
        _m("FTKVM-211", "no answer from host {host} to {what}", "The request was sent and no answer came in time: it may or may not have had its effect.",
           "See what became of it with `ftkvm status` and `ftkvm vm list` before trying again.", 5),
        _m("FTKVM-212", "host {host} lacks the {network} network: no address in {cidr}",
           "Each host of the cluster has an address in the management, the FT and the migration network.",
           "Give one of its interfaces an address in {cidr}, and bring it up."),
        _m("FTKVM-213", "host {host} has no bridge {bridge}", "The VMs' interfaces are connected to that bridge on every host.",
           "Create the bridge on {host}."),
        _m("FTKVM-214", "host {host} runs VMs of the cluster: {vms}", "A host that leaves must run none.",
           "Stop them first: `ftkvm vm stop NAME`."),
        _m("FTKVM-215", "libvirt on host {host} does not answer: {detail}", "libvirtd is not running, restarting or stuck.",
           "`systemctl status libvirtd` on {host}; the VMs themselves go on.", 4),
        _m("FTKVM-216", "host {host} belongs to another cluster", "It has certificates of another certificate authority.",
           "If that cluster is gone, remove /etc/ftkvm on {host} and add the host again."),
        _m("FTKVM-217", "host {host} lacks {what}", "The agent or the VMs need it.", "{how}"),
        _m("FTKVM-218", "the agent of host {host} did not come up: {detail}", "Its unit was started, but its API did not answer with the cluster's certificate.",
           "`journalctl -u ftkvm-agent -u ftkvm-keeper` on {host} says why."),
        _m("FTKVM-219", "host {host} is in the cluster with the address {there}, not {given}", "A host's name stands for one machine.",
           "Use the address it has, choose another name, or `ftkvm host remove {host}` first."),
        _m("FTKVM-240", "the keeper of this host does not answer: {detail}", "ftkvm-keeper is not running, or is being restarted over and over.",
           "`systemctl status ftkvm-keeper` and `journalctl -u ftkvm-keeper` on the host say why.", 4),
        _m("FTKVM-241", "the keeper of this host refused: {detail}", "It cannot accept the pair, or nftables cannot set the gates.",
           "The kernel needs nf_tables with the bridge family and libnftables; `journalctl -u ftkvm-keeper` on the host has more."),
        _m("FTKVM-220", "the requirements of host {host} are not met: {detail}", "The host cannot take part as it is.", "{how}"),
        _m("FTKVM-301", "the datastore {path} is not mounted on {host}", "The directory is missing, or it is an empty mount point.",
           "Mount the shared file system at {path} on {host}.", 6),
        _m("FTKVM-302", "the datastore does not work on {host}: {detail}", "The file system answers with an I/O or connection error ({path}).",
           "Look at the storage and its mount on {host}.", 6),
        _m("FTKVM-303", "the datastore is read-only on {host}", "Writing to {path} is refused.",
           "Mount it read-write on {host}, writable for root.", 6),
        _m("FTKVM-304", "the datastore is full on {host}", "No space or quota is left for {path}.", "Free space on the datastore.", 6),
        _m("FTKVM-305", "{path} on the datastore cannot be read: {detail}", "The file is damaged, or was written by a newer ftkvm.",
           "Restore the file from a backup, or upgrade ftkvm on this host. It is never taken for an empty one.", 6),
        _m("FTKVM-306", "the datastore does not answer on {host}", "An access to {path} has not ended in time.",
           "Look at the storage, its network and its mount on {host}.", 6),
        _m("FTKVM-331", "`{command}` failed: {detail}", "An image on the datastore could not be read or made.",
           "Mend what the message names; `qemu-img info` and `qemu-img check` on the image say more.", 6),
        _m("FTKVM-401", "FT is on for VM {vm} already", "It was enabled before.", "`ftkvm status {vm}` shows the pair; nothing to do."),
        _m("FTKVM-402", "FT is not on for VM {vm}", "There is no pair to act on.", "`ftkvm enable {vm}` turns it on."),
        _m("FTKVM-403", "the secondary of VM {vm} cannot be on {host}: the primary runs there",
           "Both copies on one host would be lost together.", "Name another host, or leave out --secondary."),
        _m("FTKVM-404", "no second host for VM {vm}: {reasons}", "A pair needs two hosts that can run the VM.",
           "Mend one of the reasons, or add a host: `ftkvm host add NAME`."),
        _m("FTKVM-405", "host {host} cannot be reached on the FT network ({address}): {detail}",
           "Pairs need the FT logging network between their hosts.", "Bring up the FT interface and its network on both hosts."),
        _m("FTKVM-406", "VM {vm} is not protected now: {shown}", "A test or a move gives one copy up, so the other one must be whole.",
           "`ftkvm status {vm}` shows why; try again once it says Protected."),
        _m("FTKVM-407", "{host} did not take VM {vm} over within {seconds} s", "Its copy ended in a test, and the other side has not won the epoch.",
           "`ftkvm status {vm}` and `journalctl -u ftkvm-agent` on {host}; if both copies are gone: `ftkvm vm start {vm}`.", 5),
        _m("FTKVM-408", "the secondary of VM {vm} is on {host} already", "It is moved to another host.", "Name another host, or leave out --to."),
        _m("FTKVM-409", "VM {vm} cannot be moved to {host}: its secondary is there", "Both copies never run on one host.",
           "`ftkvm test failover {vm}` lets it go on there; or move the secondary away first: `ftkvm vm migrate {vm} --secondary`."),
        _m("FTKVM-410", "FT is disabled for VM {vm} already", "It was disabled before; the secondary's place and the settings are kept.",
           "`ftkvm enable {vm}` protects it again; `ftkvm turn-off {vm}` drops what is kept."),
        _m("FTKVM-501", "another operation runs on VM {vm}: {operation}", "One operation at a time.",
           "Wait until it has ended; `ftkvm status {vm}` shows its progress."),
        _m("FTKVM-502", "no operation {operation}", "It is not known on this host; the agent may have been restarted or the host was lost.",
           "`ftkvm status` shows the VMs' states.", 3),
        _m("FTKVM-503", "{action} of VM {vm} failed: {detail}", "A step failed; what had been begun was undone.",
           "`journalctl -u ftkvm-agent` on {host} says more; `ftkvm status {vm}` shows the state.", 1),
        _m("FTKVM-504", "{action} of VM {vm} was interrupted", "The agent of {host} was restarted in the middle; it resumes or undoes what was begun.",
           "`ftkvm status {vm}` shows what became of it.", 5),
        _m("FTKVM-510", "protecting VM {vm} was given up at: {step}", "Another operation took over, or the secondary was lost on the way; what was begun was undone.",
           "Nothing, if FT stays on: it is tried again. `ftkvm status {vm}` shows it."),
        _m("FTKVM-511", "protecting VM {vm} was given up: it would have stood still for more than {seconds} s",
           "The copy of the last state took too long; the VM runs on unprotected.", "Look at the FT network and the load; `ft.max_switchover_seconds` sets the limit."),
        _m("FTKVM-512", "epoch {epoch} of VM {vm} belongs to somebody else", "Another host wrote the pair record of that epoch first.",
           "`ftkvm status {vm}` shows where the VM runs now."),
        _m("FTKVM-513", "VM {vm}: {what}: not within {seconds} s", "The secondary's host, the FT network or the datastore is too slow, or one of them hangs.",
           "Look at the FT network between the two hosts and at the datastore; the VM runs on unprotected."),
        _m("FTKVM-514", "the hold proxy of VM {vm} did not start: {detail}", "Its unit failed on the primary's host.",
           "`journalctl -u 'ftkvm-hold@*'` on that host says why."),
        _m("FTKVM-515", "protecting VM {vm} failed: {detail}", "QEMU or libvirt refused a step; what was begun was undone.",
           "`journalctl -u ftkvm-agent` on the VM's host has the step; the VM runs on unprotected."),
        _m("FTKVM-516", "merging the overlays of disk {disk} failed: {detail}", "The commit into the image below did not end well; the overlays are still in use and valid.",
           "Look at the datastore's free space; then run the same command again: it carries on."),
        _m("FTKVM-517", "FT of VM {vm} cannot be turned off here: host {host} has won the epoch", "The VM goes on there.",
           "Run the command again: it reaches the host that runs the VM now."),
        _m("FTKVM-520", "host {host} runs a copy of VM {vm} already", "Both copies of a VM never run on one host.",
           "Name another host; a copy that should not be there is ended by its agent within seconds."),
        _m("FTKVM-521", "host {host} could not start the secondary of VM {vm}: {detail}", "libvirt or QEMU on that host refused.",
           "`journalctl -u ftkvm-agent` and /var/log/libvirt/qemu/ on {host} say why."),
        _m("FTKVM-522", "host {host} keeps its copy of VM {vm}: it does not belong to epoch {epoch}", "A copy of a later epoch, or one that has won, is not ended by a message about an earlier one.",
           "`ftkvm status {vm}` shows where the VM runs."),
        _m("FTKVM-530", "host {host} has the secondary of VM {vm}", "A secondary is not operated directly.",
           "Address the VM by its name from any host: the request goes to its primary."),
        _m("FTKVM-601", "the host's configuration {path} cannot be used: {detail}", "The file is missing or has a mistake.",
           "Prepare the host again: `ftkvm host add NAME`."),
        _m("FTKVM-602", "the cluster's configuration is not known here", "The datastore has none, or has not answered since this host started.",
           "Look at the datastore's mount; `ftkvm cluster create` and `ftkvm host add` write the configuration."),
        _m("FTKVM-603", "there is a cluster already in {home}", "That directory holds one cluster's certificate authority.",
           "Use another directory (FTKVM_HOME), or go on with that cluster."),
        _m("FTKVM-604", "no cluster in {home}", "The certificates to talk to a cluster are kept there, and are not there.",
           "`ftkvm cluster create NAME` makes a cluster; or point FTKVM_HOME to the directory of one."),
        _m("FTKVM-605", "{option}: {detail}", "The value cannot be used.", "`ftkvm COMMAND --help` shows what is expected.", 2),
        _m("FTKVM-606", "the cluster's configuration was changed by somebody else at the same time", "Each change has a number, and that number was taken.",
           "Run the command again."),
        _m("FTKVM-607", "no agent of cluster {cluster} answers ({hosts})", "All hosts known here are down, cut off, or their agents are not running.",
           "Check the management network; `systemctl status ftkvm-agent` on the hosts.", 4),
        _m("FTKVM-608", "the cluster has no hosts yet", "An agent is needed to do this.", "Add a host: `ftkvm host add NAME`."),
        _m("FTKVM-630", "{action} of VM {vm} is refused: too few hosts could fail then: {detail}", "Admission control keeps slots for as many host failures as ha.host_failures says.",
           "Stop a VM, add a host, lower a reservation that makes the slot large (`ftkvm cluster what-if` names the VM), or change the policy: `ftkvm cluster set ha.host_failures=N` or `ha.admission_control=off`."),
        _m("FTKVM-631", "{action} of VM {vm} is refused: too little of the cluster would be free: {detail}", "Admission control keeps ha.reserved_percent of all CPU and memory for restarts.",
           "Stop a VM, add a host, lower a reservation, or keep less: `ftkvm cluster set ha.reserved_percent=N` or `ha.admission_control=off`."),
        _m("FTKVM-632", "{action} of VM {vm} is refused: {detail}", "The policy failover-host keeps one host for restarts.",
           "Name another host, or change the policy: `ftkvm cluster set ha.admission_policy=…`."),
        _m("FTKVM-633", "{action} of VM {vm} is refused, the host cannot hold its reservation: {detail}", "A reservation is memory or CPU that the host has free for this VM alone.",
           "Name another host, move a VM away, or lower the reservation: `ftkvm vm set {vm} ha.memory_reservation_mb=N`."),
        _m("FTKVM-634", "setting {name} of the cluster is refused: {detail}", "The name or the value is not one that HA knows; nothing was changed.",
           "`ftkvm cluster show` lists the settings with their defaults and ranges.", 2),
        _m("FTKVM-635", "setting {name} of the cluster is refused, the sum does not add up: {detail}", "Settings that together break safety or a promised time are not taken; nothing was changed.",
           "Change the settings of the sum together in one command: `ftkvm cluster set A=… B=…` (docs/admission.md shows the sums).", 2),
        _m("FTKVM-636", "the cluster's configuration is version {there} by now, not {expected}", "Somebody else changed it since it was looked at; nothing was changed.",
           "Look again with `ftkvm cluster show`, then set again."),
        _m("FTKVM-637", "setting {name} of VM {vm} is refused: {detail}", "The name or the value is not one that HA knows; nothing was changed.",
           "`ftkvm vm show {vm}` lists the settings with their defaults and ranges.", 2),
        _m("FTKVM-701", "the lab needs root", "It makes name spaces, mounts and containers.", "Run the command as root."),
        _m("FTKVM-702", "the lab needs {what}, which this machine lacks", "The kernel, or the container this runs in, does not offer it.",
           "Run the lab on a machine or VM of its own with a current kernel; in a container, start that one privileged."),
        _m("FTKVM-703", "the command {command} is missing", "A package the lab needs is not installed.",
           "`make setup` installs all of them, or: `apt-get install {package}`."),
        _m("FTKVM-704", "not enough disk space at {path}: {free_mib} MiB free, {need_mib} MiB needed",
           "The hosts' image and disks lie there.", "Free some space, or mount a larger disk there."),
        _m("FTKVM-705", "the hosts' image cannot be built: {detail}", "debootstrap or apt failed, mostly for want of a mirror it can reach.",
           "Check that `apt-get update` works on this machine; the image is built with its mirror and proxy settings. Then repeat."),
        _m("FTKVM-706", "a lab of {count} hosts is not possible", "The lab's addresses are made for 1 to {maximum} hosts.",
           "Choose a number in that range."),
        _m("FTKVM-707", "{what} is not a {kind}", "The lab has: {known}.", "Name one of those."),
        _m("FTKVM-650", "VM {vm} runs on {host} already", "A VM is migrated to another host.", "Name another host, or leave out --to."),
        _m("FTKVM-651", "VM {vm} cannot be migrated to {host}: {reasons}", "The host would not run the VM as it runs now.",
           "Mend the reason, or name another host; `ftkvm host list` shows them."),
        _m("FTKVM-652", "VM {vm} has not come to {host}", "No copy of it is there, or nobody announced it.",
           "`ftkvm vm list` shows where it runs; if nowhere, HA starts it again, or `ftkvm vm start` does."),
        _m("FTKVM-653", "migrating VM {vm} to {host} was given up: {detail}", "libvirt or QEMU reported this; the VM goes on where it was.",
           "Mend what the message names and try again; `journalctl -u libvirtd` on both hosts says more."),
        _m("FTKVM-654", "VM {vm} is on {host}, paused: that host does not answer", "Its memory is over, and its agent has not taken it over yet.",
           "The agent there goes on with it as soon as it answers; if the host is lost, HA starts the VM again. `ftkvm vm list` shows it.", 5),
        _m("FTKVM-655", "no host can take VM {vm}: {reasons}", "Every other host has a reason not to run it.",
           "Mend one of the reasons, or stop the VM."),
        _m("FTKVM-657", "host {host} is not in maintenance", "There is nothing to leave.", "`ftkvm host list` shows the hosts' states."),
        _m("FTKVM-658", "host {host} still runs {vms}", "These VMs could not be moved off it: {reasons}.",
           "The host stays marked, and takes no new VM. Stop or move them and run the command again, or `ftkvm host maintenance exit {host}`."),
        _m("FTKVM-659", "host {host} is in maintenance", "It takes no VM until it is brought back.",
           "Name another host, or `ftkvm host maintenance exit {host}`."),
        _m("FTKVM-660", "VM {vm} is {state}; it must be off to be unregistered", "Its definition would leave the cluster while it runs.",
           "`ftkvm vm stop {vm}` first."),
        _m("FTKVM-709", "`{command}` failed: {detail}", "A command the lab relies on did not do its work.",
           "Read its words above; `ftkvm lab down` and `ftkvm lab up` bring the lab back from any state."),
        _m("FTKVM-710", "waited {timeout_s} s in vain for {what}", "Something of the lab hangs, or the machine is overloaded.",
           "Look at `ftkvm lab status`; `ftkvm lab down` and `ftkvm lab up` bring it back from any state."),
        _m("FTKVM-711", "another lab command is at work", "It holds {lock}.", "Wait for it to end, or end it: the kernel frees the lock with the process."),
        _m("FTKVM-720", "there is no lab", "`ftkvm lab up` was not run, or the lab was taken down.", "`ftkvm lab up`"),
        _m("FTKVM-721", "{host} is {state}", "This needs the host to be {wanted}.",
           "`ftkvm lab status` shows the hosts; `start`, `thaw` or `crash` it first."),
        _m("FTKVM-722", "{host} did not boot within {timeout_s} s", "Its console ends so:\n{detail}",
           "The whole console is in {console}; `ftkvm lab down` and `ftkvm lab up` start from nothing."),
        _m("FTKVM-723", "the lab has no host {host}", "Its hosts: {known}.", "Name one of those; `ftkvm lab up --hosts N` adds hosts."),
        _m("FTKVM-724", "the datastore of {host} is {state}", "This change needs it to be {wanted}.", "`ftkvm lab storage {host} ok` brings it back."),
        _m("FTKVM-725", "no daemon {daemon} runs on {host}", "The unit has no process; running units: {known}.", "Name one of those."),
        _m("FTKVM-726", "no running VM {vm} in the lab", "No host's libvirt runs a domain of that name.", "`ftkvm vm list` shows where the VMs are."),
        _m("FTKVM-727", "the guest {vm} did not answer within {timeout_s} s", "{detail}", "`ftkvm lab console {vm}` shows what it says."),
        _m("FTKVM-728", "the lab's guest cannot be built: {detail}", "The C compiler or the kernel's modules are not as expected.",
           "`make setup` installs the compiler; `ftkvm lab down --images` has the image built afresh."),
        _m("FTKVM-620", "not begun: {what} has not ended yet", "An earlier one hangs, most likely in the storage.",
           "It goes on by itself when the storage answers; `ftkvm cluster status` shows what this host lacks.", 6),
        _m("FTKVM-621", "VM {vm} on {host} cannot be ended: its QEMU (process {pid}) hangs in the storage",
           "A process that waits for the storage cannot be killed.",
           "The watchdog ends the host if it has one; else bring the storage back, or switch the host off.", 6),
        _m("FTKVM-622", "VM {vm} is not started on {host}: its heartbeat on the datastore is not written",
           "A host that others may count as lost starts no VM.",
           "Look at the datastore on {host} (`ftkvm host list`); then start the VM again, or start it on another host.", 6),
        _m("FTKVM-623", "fencing host {host} with {agent} failed: {detail}", "The program for its power fencing device says so.",
           "Try `{agent}` by hand; `ftkvm host fence {host} agent=… KEY=VALUE …` sets its parameters."),
        _m("FTKVM-624", "fencing host {host} with {agent} did not end within {seconds} s", "The power fencing device does not answer; the host may be off or on.",
           "Look at the device, and at the host.", 5),
        _m("FTKVM-609", "the datastore {path} belongs to the cluster {cluster}", "Its .ftkvm directory was made by another cluster.",
           "Use another directory; or, if that cluster is gone, remove {path}/.ftkvm."),
        _m("FTKVM-610", "the datastore {path} on {host} is not the one of cluster {cluster}", "It has no configuration of the cluster, which the first host wrote there.",
           "Mount the same shared file system at {path} on all hosts.", 6),
        _m("FTKVM-729", "the lab has a guest {guest} already", "Its disk is on the datastore.", "Choose another name."),
        _m("FTKVM-900", "unexpected failure: {detail}", "An operation met an error nobody foresaw.",
           "Look at `journalctl -u ftkvm-agent` on the host named; nothing is left half done that `ftkvm status` does not show."),
        _m("FTKVM-901", "the request was not understood: {detail}", "The program that asked and the agent do not agree on the interface.",
           "Use the same version of ftkvm on both sides."),
        _m("FTKVM-902", "{what} has not ended after {seconds} s", "It waits for something that does not answer; its outcome is unknown.",
           "Look at the datastore and the hosts, see `ftkvm status`, then try again.", 5),
        _m("FTKVM-903", "no message has the code {wanted}", "The catalogue does not list it.", "`ftkvm explain` lists all codes.", 3),
        _m("FTKVM-904", "{text}", "{cause}", "{remedy}"),
        _m("FTKVM-905", "the scenario {scenario} is not understood: {detail}", "A file of it is missing or has a word nobody knows.",
           "Compare it with the ones in scenarios/ha; ftkvm/sim/ha/scenario.py says what there is.", 3),
    ]
)
# fmt: on


class _Params(dict[str, object]):
    """Parameters of a template; one that is missing shows its name."""

    def __missing__(self, key: str) -> str:
        return f"<{key}>"


class FtkvmError(Exception):
    """A message of the catalogue with its parameters; ``str()`` gives code and text."""

    def __init__(self, code: str, **params: object) -> None:
        self.code = code
        self.params = params
        self.message = CATALOGUE[code]
        super().__init__(f"{code}: {self.text}")

    @property
    def text(self) -> str:
        return self.message.text.format_map(_Params(self.params))

    @property
    def cause(self) -> str:
        return self.message.cause.format_map(_Params(self.params))

    @property
    def remedy(self) -> str:
        return self.message.remedy.format_map(_Params(self.params))

    def to_json(self) -> dict[str, object]:
        """The form in which the API and ``--output json`` carry it."""
        return {
            "code": self.code,
            "text": self.text,
            "cause": self.cause,
            "remedy": self.remedy,
            "params": {k: str(v) for k, v in self.params.items()},
        }

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "FtkvmError":
        """The error an agent answered with; a code that is newer than this program keeps its texts."""
        code = str(document.get("code"))
        if code in CATALOGUE:
            return cls(code, **dict(document.get("params", {})))
        return cls("FTKVM-904", **{key: document.get(key, "?") for key in ("text", "cause", "remedy")})
