"""What handlers use around what they call: services, errors with the right outcome, timeouts.
`packhorse.calls` has the public names.
"""
