"""Decides, and touches nothing: frozen facts in, decisions out. Imports nothing of ours outside this package."""
