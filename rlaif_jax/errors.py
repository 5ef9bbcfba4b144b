"""The error for a user's mistake: its message is shown alone, without a traceback; and the way out when told to stop."""

EXIT_USER_ERROR = 2
EXIT_RESTART = 75  # sysexits.h, EX_TEMPFAIL: everything is saved, start the same command again


class UserError(ValueError):
    """Something in the input, a config or a file that the user can mend; the message says what and how."""


class Preempted(Exception):
    """The run was told to stop (SIGTERM) and has saved its state; the command ends with EXIT_RESTART."""
