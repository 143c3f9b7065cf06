"""The page: a real server on a real database."""
