"""The library for handlers of a conversation platform (docs/platform-library.md); packhorse/platform.py has
the public names.
"""
