"""Parent and children: who starts, replaces, watches and ends worker processes, and what is counted of all of
them.
"""
