"""The one kind of error that a user can cause."""


class UserError(ValueError):
    """A mistake that the person at the keyboard can mend.

    The message is one line that names the file, option or rows at fault and says what to do. A command line prints it
    without a traceback and leaves with exit code 2.
    """
