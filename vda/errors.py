"""The one exception that reaches a user: bad input, told in one sentence."""


class UsageError(Exception):
    """Bad input: names the file or the argument, what was wanted and what was found.

    The command line prints the sentence alone and exits with status 2 (no traceback).
    """
