"""Defines the errors that answer a request."""

LATE = 504
"""HTTP status of a step that was not answered in time."""


class RequestError(Exception):
    """An HTTP status and one message: what was expected, what came, what to do."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)  # both: so that it pickles
        self.status, self.message = status, message
