"""Connections, errors, statements, LISTEN and migrations: the only home of psycopg."""
