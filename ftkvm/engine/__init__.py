"""The COLO pair: what is done to a QEMU over QMP, step by step, and how each step is proved and undone."""
