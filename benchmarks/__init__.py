"""Packhorse measured beside its peers and beside the raw limits of the machine; see README.md."""
