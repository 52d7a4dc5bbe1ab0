"""Finished stages by the hash of what made them: on this machine, and behind an address."""
