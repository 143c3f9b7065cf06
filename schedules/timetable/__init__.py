"""When something is due: one entry, its trigger, and the loop that enqueues what is due (SPEC M1)."""
