"""Errors that a user can mend: they are reported in one line. Any other exception is a bug, of this program or of code
added to it, and shows its traceback.
"""


class LicError(ValueError):
    """An error that the user can mend; the message is one line: what is wrong, the limit, the remedy."""


MENDABLE = (LicError, OSError, MemoryError)


def explain(error: Exception) -> str:
    """The line that reports one of the MENDABLE errors."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or "not enough memory"
