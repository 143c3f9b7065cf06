"""Backfills: rows of one table become rows of another, or get another form, beside the work, resumable at any
point (SPEC M8).

base.py says what a backfill is, declare.py how users write theirs, engine.py walks the source, acts.py does
what an operator asks for before and after. The shipped ones have a file each.
"""
