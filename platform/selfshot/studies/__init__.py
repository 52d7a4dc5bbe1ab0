"""Experiments: their stages and the store of what was already computed, tables and reports."""
