"""Prepares a Debian 13 host over SSH: facts → plan → apply → undo. What is a fact is parsed, what is a step is data."""
