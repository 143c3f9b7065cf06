"""Exit codes of every `packhorse` process; docs/operations.md lists them and a test compares."""

EXIT_OK = 0  # finished, or drained after SIGTERM
EXIT_FAILED = 1  # the command could not do what it was asked; the reason is printed
EXIT_USAGE = 2  # wrong arguments or configuration
EXIT_UNAVAILABLE = 69  # no database
EXIT_LEASE_LOST = 70  # a child ended itself because a lease was over (self-fencing)
EXIT_REPLACED = 75  # a child ended itself to be replaced (hard time limit, lost thread)
EXIT_RECYCLED = 76  # a child ended itself after max_messages or max_memory_mib
EXIT_SCHEMA = 78  # the database's schema does not fit this code

#: Children that end with these are replaced at once; others with backoff.
EXPECTED_CHILD_EXITS = frozenset({EXIT_REPLACED, EXIT_RECYCLED})
#: Children that end with these will end again the same way: the parent gives up, unless some child has worked
#: before.
FATAL_CHILD_EXITS = frozenset({EXIT_USAGE, EXIT_SCHEMA})
