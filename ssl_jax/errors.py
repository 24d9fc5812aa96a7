"""Errors that the user can fix, and the words they share."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """A mistake in the user's input: one line naming the input and the remedy.

  Doors print the line without a traceback and exit with status 1.
  """


class UsageError(UserError):
  """Flags that do not go together, or lack one: exit status 2."""


def nearest(
  name: str, names: Iterable[str], shown: Iterable[str] | None = None
) -> str:
  """Returns "did you mean ...?" for a wrong name, and the names there are.

  Args:
    name: given by the user.
    names: that there are.
    shown: those to list, where `names` are too many.
  """
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  meant = f"did you mean {close[0]!r}? " if close else ""
  return f"{meant}(have: {', '.join(names if shown is None else shown)})"


def check_choice(what: str, given: str, names: Iterable[str]) -> None:
  """Checks that a name is among others.

  Args:
    what: it names, as in "task".
    given: by the user.
    names: that there are.

  Raises:
    UserError: it is not; says which was meant.
  """
  names = list(names)
  if given not in names:
    raise UserError(f"unknown {what} {given!r}; {nearest(str(given), names)}")


def one_line(error: BaseException | None, most: int = 200) -> str:
  """Returns an error's message in one line of at most so many characters."""
  return " ".join(str(error).replace("\\n", " ").split())[:most]
