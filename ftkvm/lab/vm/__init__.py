"""Lab hosts that are virtual machines: their image, their QEMU, their life."""
