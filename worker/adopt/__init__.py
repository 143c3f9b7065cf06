"""Adopting the queue of another system (SPEC O8): its unfinished rows become messages, its table stays as it
is.
"""
