"""Set-up of logging; metrics join it here."""
