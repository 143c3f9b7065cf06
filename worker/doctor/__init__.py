"""Examination of an installation: findings with the statement that repairs each. Nothing is changed."""
