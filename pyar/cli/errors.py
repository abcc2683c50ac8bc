"""What the user can put right. Imports no torch."""


class UserError(Exception):
    """Something the user can put right; the message says what."""
