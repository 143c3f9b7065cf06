"""HTTP push: message types that an endpoint handles instead of a Python function (SPEC W8)."""
