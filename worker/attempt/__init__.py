"""One attempt: the claimed message, its context, what ends it, the heartbeat of its lease, dramatiq's
middleware.
"""
