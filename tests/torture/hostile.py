"""What may come in place of a file, and how what reads it must take it."""

import contextlib
import copy
import json
import math
import os
import resource
import signal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ssl_jax.errors import UserError

# For a longer run: SSL_JAX_FUZZ_EXAMPLES=5000.
EXAMPLES = int(os.environ.get("SSL_JAX_FUZZ_EXAMPLES", "50"))
fuzzed = settings(
  max_examples=EXAMPLES,
  derandomize=True,
  deadline=None,
  database=None,
  suppress_health_check=list(HealthCheck),
)
few = settings(fuzzed, max_examples=1 + EXAMPLES // 20)  # Of slow ones.

SECONDS, MEMORY = 60, 3 << 30  # Of one call; of address space, and threads'.

# In place of any value of JSON.
ODD = [
  *(None, True, False, "", " ", "x", "..", "/", "a\0b", "1", "NaN"),
  *(0, 1, -1, 7, 2**31, 2**63, 10**18, 10**400, -(10**400)),
  *(0.5, -2.5, 1e300, 1e-300, math.nan, math.inf, -math.inf),
  *([], {}, [0], [[]], [1e300], ["x", None], {"": 0}, {"a.b": {"c": []}}),
]
# In place of any file of text.
TEXTS = [
  *(b"", b"\n", b"\0" * 99, b"\xff\xfe\xfd", b"\xef\xbb\xbf", b"x" * 999_999),
  *(b"null", b"7", b"NaN", b'"x"', b"[]", b"{}", b"[{}]", b"{", b"{}\n[]\n"),
  *(b"9" * 100_000, b'{"a": ' + b"9" * 100_000 + b"}", b"1e999"),
]


@contextlib.contextmanager
def bounded():
  """Neither waits nor takes memory without end."""

  def late(*_):
    raise TimeoutError(f"not done in {SECONDS} s")

  with open("/proc/self/statm") as file:
    now = int(file.read().split()[0]) * resource.getpagesize()
  old = resource.getrlimit(resource.RLIMIT_AS)
  handler = signal.signal(signal.SIGALRM, late)
  signal.alarm(SECONDS)
  resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, old[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, old)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)


def told(call, *args):
  """What a call was refused with; "" if it was not. Nothing else may come."""
  with bounded():
    try:
      call(*args)
    except UserError as error:
      said = str(error)
      assert said.strip() and "\n" not in said and len(said) < 20_000, said
      return said
  return ""


def assault(path, call):
  """Puts what is no such file in a file's place; the call must refuse or cope.

  Returns:
    How often it refused.
  """
  kept = path.read_bytes()
  contents = [
    *TEXTS,
    *(kept[: len(kept) // 2], kept[:-1], kept + kept, kept[::-1]),
    *(b"\xef\xbb\xbf" + kept, kept.replace(b"\n", b"\r\n")),
    *(kept + b"\0" * 8, kept + b"\xff", b" " * 100_000 + kept),
  ]
  refused = 0
  for content in contents:
    path.write_bytes(content)
    refused += bool(told(call))
  for put in (os.mkdir, link_to_itself, len):
    path.unlink()
    put(path) if put is not len else None  # In the end there is nothing.
    refused += bool(told(call))
    if path.is_dir():
      path.rmdir()
    else:
      path.unlink(missing_ok=True)
    path.write_bytes(kept)
  return refused


def link_to_itself(path):
  path.symlink_to(path.name)


def _places(value, at=()):
  yield at
  if isinstance(value, dict | list):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inside in items:
      yield from _places(inside, (*at, key))


@st.composite
def changed(draw, value):
  """JSON as bytes, with values replaced, removed or doubled."""
  value = copy.deepcopy(value)
  for _ in range(draw(st.integers(1, 3))):
    *at, last = draw(st.sampled_from([*_places(value)][1:] or [("",)]))
    inside = value
    for key in at:
      inside = inside[key]
    if last not in (inside if isinstance(inside, dict) else range(len(inside))):
      continue
    if draw(st.integers(0, 4)):
      inside[last] = copy.deepcopy(draw(st.sampled_from(ODD)))
    elif draw(st.booleans()):
      del inside[last]
    else:
      inside[last] = [inside[last], inside[last]]
  return json.dumps(value).encode()


@st.composite
def damaged(draw, content):
  """Bytes that were cut, changed, doubled or filled with others."""
  content = bytearray(content)
  for _ in range(draw(st.integers(1, 4))):
    at = draw(st.integers(0, max(0, len(content) - 1)))
    # Most that matters is at the beginning.
    at = at if draw(st.booleans()) else min(at, at % 200)
    kind = draw(st.integers(0, 4))
    if kind == 0:
      del content[at:]
    elif kind == 1:
      content[at : at + 4] = draw(st.binary(min_size=4, max_size=4))
    elif kind == 2:
      odd = (b"\xff", b"\0", b"\x7f", b"\x80")
      content[at : at + 8] = draw(st.sampled_from(odd)) * 8
    elif kind == 3:
      content[at:at] = content[at : at + draw(st.integers(1, 400))]
    else:
      del content[at : at + draw(st.integers(1, 400))]
  return bytes(content)
