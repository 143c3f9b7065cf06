"""Stores, child processes, rows and tables of the benchmark: everything that knows no queue system."""
