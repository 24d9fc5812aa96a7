"""Messages about clips that cannot be used."""

import logging
from collections.abc import Sequence

from ssl_jax import SAMPLE_RATE
from ssl_jax.errors import UserError

# The summary has so many reasons, and names so many clips for each.
_REASONS, _NAMED = 10, 3
_MUCH = 0.05  # Share of the audio whose loss is said.


def too_short(num_samples: int, min_seconds: float) -> str:
  """Returns why a clip of so many samples is skipped."""
  seconds = num_samples / SAMPLE_RATE
  return f"shorter than data.min_seconds={min_seconds} ({seconds:.3f} s)"


def report(
  name: str,
  num_kept: int,
  skipped: Sequence[tuple[str, str]],
  short_share: float = 0.0,
) -> None:
  """Warns once of the clips that cannot be used.

  Args:
    name: the source, as the user gave it.
    num_kept: clips that can.
    skipped: (id, reason).
    short_share: share of the audio that is in clips below `data.min_seconds`.

  Raises:
    UserError: nothing is left.
  """
  total = num_kept + len(skipped)
  if not num_kept:
    clip, reason = skipped[0] if skipped else ("", "it is empty")
    raise UserError(
      f"{name}: all {total} clips were skipped, the first being {clip!r} "
      f"({reason}); lower --config.data.min_seconds or give others"
    )
  if skipped:
    logging.getLogger("ssl_jax").warning(
      "%s: skipped %d of %d clips: %s%s",
      name,
      len(skipped),
      total,
      _by_reason(skipped),
      f". {short_share:.0%} of the audio is too short: lower "
      "--config.data.min_seconds to hear it"
      if short_share > _MUCH
      else "",
    )


def _by_reason(skipped: Sequence[tuple[str, str]]) -> str:
  """Returns how many clips were skipped for which reason, and some of them."""
  clips: dict[str, list[str]] = {}
  for clip, reason in skipped:
    clips.setdefault(reason.partition(" (")[0], []).append(clip)
  reasons = sorted(clips.items(), key=lambda item: -len(item[1]))
  said = []
  for reason, named in reasons[:_REASONS]:
    more = ", ..." if len(named) > _NAMED else ""
    some = ", ".join(map(repr, named[:_NAMED]))
    said.append(f"{len(named)} {reason} ({some}{more})")
  return "; ".join(said) + ("; ..." if len(reasons) > _REASONS else "")
