"""The one exception for mistakes a user can make."""


class UserError(ValueError):
    """Bad input; the message says what was expected, what came and what to change. Shown without a traceback."""
