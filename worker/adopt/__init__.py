"""Adopting what exists (SPEC O8): a schema of ours whose record is lost, and a queue table that another system made."""
