"""The one exception for everything a user can mend."""


class KitError(ValueError):
    """Something the user can mend: the message says what was wrong, where, and what to do next.

    The command line prints it without a traceback; in a notebook or script it is an ordinary exception.
    """
