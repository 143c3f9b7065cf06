"""What keeps the database healthy: retention, partitions and jobs, all by one run loop (SPEC M2-M7)."""
