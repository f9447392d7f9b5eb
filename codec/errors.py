"""What a user can mend. Any other exception is a fault of the program, or of what a researcher has added to it, and
shows its traceback.
"""


class LicError(ValueError):
    """One line for the user: what is wrong, the limit, the remedy."""
