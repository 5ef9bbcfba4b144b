"""UserError for a user's mistake (shown without a traceback), Preempted and Interrupted for a stopped run, and exit codes."""

EXIT_USER_ERROR = 2
EXIT_RESTART = 75  # EX_TEMPFAIL of sysexits.h: everything is saved; start the same command again


class UserError(ValueError):
    """A mistake in the input, the config or a file that the user can fix; the message says what is wrong and how to fix it."""


class Preempted(Exception):
    """The run got SIGTERM and has saved its state; the command exits with EXIT_RESTART."""


class Interrupted(KeyboardInterrupt):
    """The run got Ctrl-C (SIGINT, the stop button of a notebook) while it trained, and has saved its state."""
