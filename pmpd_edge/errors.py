"""The exceptions that users see.

Every message is one line: what is wrong and where; the hint says what to do about it. The command line prints both and
exits with status 1; only `--debug` shows a traceback.
"""

from __future__ import annotations


class PmpdError(Exception):
    """Something that the user can mend.

    Args:
        message: what is wrong, with the file or the value that is wrong.
        hint: the way out, as an instruction; empty if the message already says it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message


class NativeError(PmpdError):
    """The patched llama.cpp library is missing, foreign, or refused a call."""


class BundleError(PmpdError):
    """A bundle's manifest or one of its files is not what it should be."""


class ConvertError(PmpdError):
    """A model could not be converted."""


class DiskFullError(ConvertError):
    """There is no space left for what a conversion writes."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: No space left on device", "free some, or convert to another disk")


class ContextFullError(PmpdError):
    """The prompt does not fit the context."""


class Cancelled(PmpdError):
    """The evaluation was stopped on request."""
