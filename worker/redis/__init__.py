"""Redis, where redis_url is set: its clients, their deadlines, and what happens while it is away.

Nothing in here is needed for a promise: without Redis results are kept in Postgres, and workers poll. The
redis package is imported by server.py, and server.py only where redis_url is set.
"""
