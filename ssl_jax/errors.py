"""The one exception that means "the user can fix this"."""


class UserError(Exception):
  """A mistake in the user's input: one line naming the input and the remedy.

  Doors print the line without a traceback and exit with status 1.
  """


class UsageError(UserError):
  """Flags that do not go together, or lack one: exit status 2."""
