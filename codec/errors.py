"""What a user can mend is told in one line. Any other exception is a fault of the program, or of what a researcher has
added to it, and shows its traceback.
"""


class LicError(ValueError):
    """One line for the user: what is wrong, the limit, the remedy."""


MENDABLE = (LicError, OSError, MemoryError)


def explain(error: Exception) -> str:
    """The line for one of the MENDABLE."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or "not enough memory"
