"""The lab's small guest: one static program as init, Debian's cloud kernel, and its image files."""
