"""The command line: each module parses, calls one function below, renders. No SQL, no rules."""
