"""ftkvm: high availability and fault tolerance for QEMU/KVM virtual machines."""

__version__ = "0.1.0"
