"""What handlers use around what they call: errors with the right outcome, timeouts. `packhorse.calls` has the public names."""
