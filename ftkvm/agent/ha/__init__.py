"""The HA machine of this host in the agent: its thread, its beats, what it reads and writes, what it has done."""
