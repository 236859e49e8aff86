"""The guide's messages and checks, row by row, and what we say in their place (CK-07). Data for docs/messages.md.

"The guide" is the vSphere Availability Guide for vSphere 4.0 Update 1: its table A-1 (FT error messages), its table 3-1
(what FT does not go with) and the checks before FT is turned on (page 34). A row has our codes and a test that provokes
one of them, or says why it cannot happen on KVM.
"""
# ruff: noqa: E501  (one row reads best as a table)

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of the guide.

    ``tests``: ``file::function``, or ``file::function[case]`` for a domain of tests/checks/vm; each code is provoked by
    one of them.
    """

    table: str
    number: int
    says: str
    codes: tuple[str, ...] = ()
    provoked: str = ""
    tests: tuple[str, ...] = ()
    cannot: str = ""


A1, T31, P34 = "A-1", "3-1", "page 34"
_BAD = "tests/lab/test_bad_input.py::"
_LIFE = "tests/lab/test_life.py::"
_REFUSED = "tests/lab/test_refusals.py::"
_MAINTAINED = "tests/lab/test_maintenance.py::"
_HOSTS = "tests/checks/test_hosts.py::"
_CASE = "tests/checks/test_vm_cases.py::test_case"
_FT = "tests/unit/test_ft_refusals.py::"
_PREPARED = "tests/unit/test_hostprep.py::"


def _r(table: str, number: int, says: str, codes: str, provoked: str, *tests: str) -> Row:
    return Row(table, number, says, tuple(f"FTKVM-{code}" for code in codes.split()), provoked, tests)


def _no(table: str, number: int, says: str, cannot: str) -> Row:
    return Row(table, number, says, cannot=cannot)


# fmt: off
ROWS: tuple[Row, ...] = (
    _r(A1, 1, "the host contains VMs with FT and cannot be moved out of the cluster", "214", "`host remove` of the primary's host", _FT + "test_a_host_with_a_copy_stays_in_the_cluster"),
    _no(A1, 2, "a host with FT VMs cannot be added to a cluster without HA", "A host is added bare: FT VMs are the cluster's, on its datastore, and do not come with a host. That HA is off is told (FTKVM-231)."),
    _no(A1, 3, "a host with FT VMs cannot be added as a standalone host", "There are no standalone hosts: an agent has a cluster or does not run."),
    _r(A1, 4, "FT must be turned off before the host is moved out of the cluster", "214", "`host remove` of the secondary's host", _FT + "test_a_host_with_a_copy_stays_in_the_cluster"),
    _r(A1, 5, "FT must be turned off before the VM is moved out of the cluster", "110", "`vm unregister` while FT is on", _FT + "test_a_vm_with_ft_stays_in_the_cluster"),
    _r(A1, 6, "the host contains FT VMs and must be put into maintenance before it is disconnected", "214", "`host remove` before `host maintenance enter`", _FT + "test_a_host_with_a_copy_stays_in_the_cluster"),
    _r(A1, 7, "the VMs of a pair cannot be on the same host", "403 409", "`enable --secondary` with the primary's host; `vm migrate --to` the secondary's", _BAD + "test_not_now", _LIFE + "test_the_primary_moves"),
    _no(A1, 8, "unused disk blocks have not been scrubbed", "An image of any allocation can be a pair's base: its copies are overlays, and nothing is scrubbed."),
    _no(A1, 9, "disk blocks have not been fully provisioned", "Thin images (sparse raw, qcow2) can be a pair's base as they are."),
    _r(A1, 10, "the VM's configuration is not supported by FT", "122", "`enable` of a VM with such a device", _CASE + "[pci-passthrough]"),
    _r(A1, 11, "there are configuration issues; see the list of errors", "120", "`enable` of a VM with two faults: the first is the message, the others are under Also", "tests/checks/test_vm_cases.py::test_what_refuses_is_raised_with_the_rest_beside_it"),
    _r(A1, 12, "the operation is not supported on the secondary", "530", "any operation sent to the agent of the secondary's host; by the VM's name it reaches the primary", _FT + "test_a_secondary_is_not_operated"),
    _r(A1, 13, "the secondary has already been enabled", "401", "`enable` twice", _BAD + "test_enable_twice_and_at_once"),
    _r(A1, 14, "the secondary has already been disabled", "410", "`disable` twice", _LIFE + "test_disabled_and_enabled"),
    _r(A1, 15, "the secondary could not be powered on; see the list of errors", "521", "`enable` while libvirt on the other host refuses to start it", _REFUSED + "test_a_secondary_that_libvirt_refuses"),
    _r(A1, 16, "the host does not support FT: the product does not", "207 208", "an older QEMU on the host", _BAD + "test_old_qemu", _HOSTS + "test_each_finding"),
    _r(A1, 17, "the host does not support FT: its processor does not", "221", "`check host` on a processor without virtualisation", _HOSTS + "test_each_finding"),
    _r(A1, 18, "the host has FT issues for the VM; see the list of errors", "232", "`check cluster` with hosts that do not fit each other", _HOSTS + "test_hosts_that_placement_refuses_make_no_pair"),
    _r(A1, 19, "no suitable host can be found for the secondary", "404", "`enable` while no other host answers", _BAD + "test_a_host_that_does_not_answer"),
    _r(A1, 20, "the secondary's start could not be completed within the time", "513", "`enable`, and the secondary's QEMU stands still", _REFUSED + "test_a_secondary_that_does_not_come_in_time"),
    _r(A1, 21, "the secondary was not powered on, since the primary could not be", "107", "`vm start` with a locked image", _BAD + "test_image_locked"),
    _no(A1, 22, "\"DRS disabled\" is the only DRS behaviour supported", "Nothing moves a running VM by itself to balance load, so there is nothing to disable."),
    _r(A1, 23, "the host's CPU is incompatible: CPU mismatch", "234 232", "`check cluster` with processors of another stepping", _HOSTS + "test_each_finding_of_the_cluster", _HOSTS + "test_hosts_that_placement_refuses_make_no_pair"),
    _no(A1, 24, "record/replay is not supported for this guest operating system on this CPU", "Checkpoints copy the whole machine and know nothing of its operating system."),
    _r(A1, 25, "HA is not enabled on the VM", "133", "`check vm --for-ft` with ha.restart_priority=disabled; a warning: a pair does not need HA to go on", _FT + "test_a_vm_that_ha_does_not_restart"),
    _r(A1, 26, "a secondary already exists", "401", "`enable` twice", _BAD + "test_enable_twice_and_at_once"),
    _r(A1, 27, "the VM is a template", "132", "`enable`, and any start", _CASE + "[template]"),
    _r(A1, 28, "the VM has several virtual CPUs", "128", "`enable`; several are supported, up to the limit", _CASE + "[many-vcpus]"),
    _r(A1, 29, "the host is inactive", "659", "`check host` of one in maintenance", _MAINTAINED + "test_what_check_says_of_a_host_that_rests_and_of_ha_that_is_off"),
    _r(A1, 30, "the host's hardware does not support FT", "222 223 224", "`check host` with virtualisation off in the firmware", _HOSTS + "test_each_finding"),
    _r(A1, 31, "VMware Server 2.0 does not support FT", "206 207", "an older QEMU on the host", _BAD + "test_old_qemu", _PREPARED + "test_what_no_step_can_mend"),
    _r(A1, 32, "no VMotion licence, or no NIC configured for VMotion", "227 212", "`check host` without an address in the migration network", _HOSTS + "test_each_finding", _PREPARED + "test_addresses_are_found_by_network"),
    _r(A1, 33, "no NIC configured for FT logging", "212 227", "`host add` without an address in the FT network", _BAD + "test_no_ft_network", _HOSTS + "test_each_finding"),
    _r(A1, 34, "host certificates are not checked", "329 335", "`check host` of one whose certificate expired or was revoked; checking cannot be switched off", _HOSTS + "test_each_finding"),
    _r(A1, 35, "the VM has snapshots", "126", "`enable` with internal snapshots in an image", _CASE + "[snapshot-internal]"),
    _r(A1, 36, "there is no configuration information for the VM", "108", "`check vm` with a damaged definition", _FT + "test_a_definition_that_is_damaged"),
    _no(A1, 37, "the VM does not support record and replay", "Nothing is recorded and replayed; what the guide lists under it has messages of its own."),
    _r(A1, 38, "the VM's current configuration does not support FT", "120", "`enable` of a running VM with vhost-net", _BAD + "test_unsupported_nic_back_end"),
    _r(A1, 39, "the VM has a number of virtual CPUs that is not supported", "128", "`enable` with 64 of them", _CASE + "[many-vcpus]"),
    _r(A1, 40, "file backing of a virtual floppy is not supported", "122", "`enable`", _CASE + "[floppy-file]"),
    _r(A1, 41, "file backing of a virtual CD-ROM is not supported", "124", "`enable` with an ISO of one host", _CASE + "[cdrom-local-iso]"),
    _r(A1, 42, "file backing of a virtual serial port is not supported", "134", "`enable`", _CASE + "[serial-file]"),
    _r(A1, 43, "file backing of a virtual parallel port is not supported", "134", "`enable`", _CASE + "[parallel-file]"),
    _r(A1, 44, "file backing of a virtual disk is not supported", "124", "`enable` with a disk of one host", _CASE + "[disk-raw-block]"),
    _no(A1, 45, "FT was disabled, since the secondary could not be started", "FT is never switched off by itself: the VM runs on unprotected, `status` says why, and a secondary is tried again."),
    _r(A1, 46, "starting the secondary timed out", "513 511", "`enable`, and the secondary's QEMU stands still; or the VM would for longer than ft.max_switchover_seconds", _REFUSED + "test_a_secondary_that_does_not_come_in_time", _REFUSED + "test_a_vm_that_would_stand_still_too_long"),
    _no(A1, 47, "resynchronising primary and secondary", "Copies that answer differently are made alike by the next checkpoint, hundreds of times a minute; a secondary that is lost is replaced and shown as Starting."),
    _r(T31, 1, "several vCPUs", "128", "`enable`; several are supported, up to the limit", _CASE + "[many-vcpus]"),
    _r(T31, 2, "physical raw disk", "122 124", "`enable`", _CASE + "[disk-lun]", _CASE + "[disk-raw-block]"),
    _r(T31, 3, "CD-ROM or floppy of a physical or remote device", "124 122", "`enable`", _CASE + "[cdrom-host-drive]", _CASE + "[floppy-file]"),
    _no(T31, 4, "paravirtualised guest (VMI)", "KVM has no paravirtual-only guests; virtio devices are carried over."),
    _r(T31, 5, "USB and sound devices", "122", "`enable`", _CASE + "[usb-redirection]"),
    _r(T31, 6, "N_Port ID virtualisation", "122", "`enable` with a virtual HBA passed through", _CASE + "[npiv-vhost-scsi]"),
    _r(T31, 7, "NIC passthrough", "130 122", "`enable`", _CASE + "[pci-sriov-vf-nic]", _CASE + "[pci-passthrough]"),
    _r(T31, 8, "NICs of a kind that cannot be mirrored", "120 130", "`enable` with vhost-net", _CASE + "[nic-vhost-default]", _CASE + "[nic-vhost-user]"),
    _no(T31, 9, "thin disks, thick ones without clustering features", "Images of any allocation can be a pair's base."),
    _r(T31, 10, "hot-plugging devices", "151", "`virsh attach-disk` on the secondary's host: the pair is made anew and `status` tells it; on the primary's QEMU refuses it", _REFUSED + "test_a_device_on_the_secondary_is_found_and_the_pair_made_anew"),
    _no(T31, 11, "extended page tables", "Checkpoints do not depend on how the processor maps memory."),
    _r(T31, 12, "VMXNET3 driver", "120", "`enable` with several queues, its counterpart here", _CASE + "[nic-multiqueue]"),
    _r(T31, 13, "paravirtual SCSI adapter", "125", "`enable` with a disk on virtio-scsi", _CASE + "[disk-scsi]"),
    _no(P34, 1, "the host has no licence for it", "There are no licences."),
    _r(P34, 2, "the host is in maintenance or standby", "659", "`check host` of one in maintenance", _MAINTAINED + "test_what_check_says_of_a_host_that_rests_and_of_ha_that_is_off"),
    _r(P34, 3, "the VM is disconnected or orphaned", "109 108", "any action on a VM whose host is silent; a damaged definition", _FT + "test_a_definition_that_is_damaged", "tests/lab/test_power.py::test_all_copies_lost_at_once"),
    _r(P34, 4, "the user has no permission", "325 604", "a command with a certificate whose role does not allow it, or with none", "tests/contract/test_trust.py::test_what_a_role_may_do", "tests/unit/test_cli.py::test_mistakes"),
    _no(P34, 5, "certificate checking is on", "It always is."),
    _r(P34, 6, "the host is in an HA cluster", "231", "`check cluster` with HA off; a warning", _MAINTAINED + "test_what_check_says_of_a_host_that_rests_and_of_ha_that_is_off"),
    _r(P34, 7, "the host has ESX 4.0 or newer", "207 208", "an older QEMU on the host", _BAD + "test_old_qemu", _HOSTS + "test_each_finding"),
    _r(P34, 8, "the VM has no more than one vCPU", "128", "`enable`; up to the limit", _CASE + "[many-vcpus]"),
    _r(P34, 9, "the VM has no snapshots", "126", "`enable`", _CASE + "[snapshot-internal]"),
    _r(P34, 10, "the VM is no template", "132", "`enable`", _CASE + "[template]"),
    _r(P34, 11, "HA is not disabled for the VM", "133", "`check vm --for-ft`; a warning", _FT + "test_a_vm_that_ha_does_not_restart"),
    _r(P34, 12, "virtualisation is on in the firmware", "222", "`check host`", _HOSTS + "test_each_finding"),
    _r(P34, 13, "the primary's processor supports FT", "221", "`check host`", _HOSTS + "test_each_finding"),
    _r(P34, 14, "the secondary's processor is of the same family and model", "234", "`check cluster`", _HOSTS + "test_each_finding_of_the_cluster"),
    _no(P34, 15, "guest operating system and processor go together", "Checkpoints know nothing of the guest's operating system."),
    _r(P34, 16, "the VM's configuration is valid for FT", "122", "`enable`", _CASE + "[sound-ich9]"),
)
# fmt: on


def rows_of(code: str) -> tuple[Row, ...]:
    """The guide's rows that a code answers."""
    return tuple(row for row in ROWS if code in row.codes)
