"""From a call to a row: the options of a message, its encoding, the drivers."""
