"""The queue and its runtime; what applications import stands in packhorse/__init__.py."""
