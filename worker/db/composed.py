"""Statements with names of tables and columns in them, composed as psycopg quotes them: what worker/store has
of psycopg.
"""

from __future__ import annotations

from psycopg.sql import SQL, Composable, Composed, Identifier, Literal, Placeholder

__all__ = ["SQL", "Composable", "Composed", "Identifier", "Literal", "Placeholder"]
