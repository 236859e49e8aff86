"""Checks: one small object each, run on observed facts. What `ftkvm check` says is what gates enable and power-on."""
