"""Errors that people read: what happened, where, and what to do.

Room: errors.

    EmasegError                 anything this program raises on purpose
    ├── PeerFailed              another process of this run has failed, and tells why
    └── UserError               the reader can fix it; carries a hint and an exit code
        ├── RecipeError    2    usage or recipe; nothing was started
        ├── DataError      3    data set or image: missing, damaged, label out of range
        ├── WeightsError   3    weight file: missing, damaged, of another model
        ├── SystemFault    4    disk full, unwritable, out of memory, no such device
        │   ├── NetworkFault    nobody answers
        │   └── ImageTooLarge   an image does not fit into memory
        └── Diverged       5    a loss that is not finite
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EmasegError(Exception):
    """Base of every error this program raises on purpose."""


class UserError(EmasegError):
    """A failure that the reader can mend.

    Args:
        message: what happened and where (file:line, key or image path), one or a few lines.
        hint: what to do about it; "" when the message says it all.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """The message, and what to do on a line of its own: what Python shows of an error that nobody catches."""
        return f"{self.message}\n  try: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        return type(self), (self.message, self.hint)  # survives the trip out of a data-loading worker


class RecipeError(UserError):
    """Usage or recipe: nothing was started."""

    exit_code = 2


class DataError(UserError):
    """A data set or an image: missing, damaged, or labelled with values it must not hold."""

    exit_code = 3


class WeightsError(UserError):
    """A weight file: missing, damaged, or of another model."""

    exit_code = 3


class SystemFault(UserError):
    """The machine: disk full, folder unwritable, out of memory, no such device, network."""

    exit_code = 4


class NetworkFault(SystemFault):
    """No server answered; another file may lie on one that does."""


class ImageTooLarge(SystemFault):
    """An image does not fit into memory; what was done before it is whole, and other images may fit."""


class Diverged(UserError):
    """Training reached a loss that is not finite."""

    exit_code = 5


class PeerFailed(EmasegError):
    """Another process of this run has failed. It tells people why, so this one ends without a word.

    Attributes:
        exit_code: the other one's, as far as it is known.
    """

    def __init__(self, exit_code: int = SystemFault.exit_code) -> None:
        super().__init__("another process of this run has ended")
        self.exit_code = exit_code


def need_type(name: str, value: object, types: type | tuple[type, ...], wanted: str) -> None:
    """Stop at an argument of the Python API that is of another type.

    Args:
        name: the argument's. wanted: what to give, for people.

    Raises:
        RecipeError: it is none of `types`.
    """
    if not isinstance(value, types):
        raise RecipeError(f"{name}: is of type {type(value).__name__}", f"give {wanted}")


def nearest(name: str, known: Iterable[str], most: int = 1) -> str:
    """`did you mean "x" or "y"?` for the closest of `known`, `most` at the most, or "" when nothing is close."""
    return did_you_mean(closest(name, known, most))


def closest(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Those of `known` that `name` may have been meant to be, the closest first."""
    known = list(known)
    # A shortened or lengthened name is close too, whatever the ratio says.
    return (
        difflib.get_close_matches(name, known, n=most, cutoff=0.6)
        or [k for k in known if len(name) >= 4 and (k.startswith(name) or name.startswith(k))][:most]
    )


def did_you_mean(choices: Iterable[str]) -> str:
    """`did you mean "x", "y" or "z"?`; "" without choices."""
    quoted = [f'"{choice}"' for choice in choices]
    if not quoted:
        return ""
    *others, last = quoted
    return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"
