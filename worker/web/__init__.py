"""The page: a web server that shows a queue and steers it (SPEC O6). pages/ reads, acts.py changes, access.py
says who may.
"""
