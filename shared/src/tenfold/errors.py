"""The kinds of error that a user can cause."""


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend.

    The message is one line that names the file, option or rows at fault and says what to do. A command line prints it
    without a traceback and leaves with exit code 2.
    """


class WriteError(UserError):
    """A place that cannot be written, or a full disk: going on with the next file would not help."""


class RunLocked(UserError):  # noqa: N818  # reads as what is the matter
    """Another living process works on the same run folder."""
