"""What a confined QEMU may open beside what libvirt lets it. Pure.

libvirt gives each domain an AppArmor profile with the files of its definition. The two scratch images of a secondary's
disk (:class:`ftkvm.engine.secondary.Overlays`) are none of them: QEMU is told of them over QMP. So they are named, by
their names only, in the directory that libvirt's profiles include for such things. A profile is made when its VM is
started, so a secondary has it; nothing need be loaded. Without AppArmor the file means nothing.
"""

FILE = "/etc/apparmor.d/abstractions/libvirt-qemu.d/ftkvm"
TEXT = b"""\
# Written by `ftkvm host add`: the scratch images of VMs with fault tolerance, beside their disks.
/**.ft-[0-9]*-[ah].qcow2 rwk,
"""
