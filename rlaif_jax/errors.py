"""The error for a user's mistake: its message is shown alone, without a traceback."""


class UserError(ValueError):
    """Something in the input, a config or a file that the user can mend; the message says what and how."""
