"""Several processes as one run: joining, taking turns, stopping together."""

import atexit
import contextlib
import importlib.util
import itertools
import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssl_jax import process
from ssl_jax.data import workers
from ssl_jax.errors import UserError, one_line

_log = logging.getLogger("ssl_jax")
_A_WEEK_S = 7 * 24 * 3600
# Counters that agree in all processes: they name barriers.
_runs, _meetings = itertools.count(), itertools.count()
_answering: list[threading.Thread] = []


def join(
  coordinator: str | None,
  num_processes: int | None,
  process_id: int | None,
  timeout_s: float,
) -> None:
  """Joins the run's other processes, if there are any; before JAX is used.

  On TPU pods, under SLURM and under Open MPI they are found; elsewhere the
  first three say who they are.

  Args:
    coordinator: host:port of process 0.
    num_processes: of the run.
    process_id: of this one, from 0.
    timeout_s: to wait for others to start, and until one that no longer answers
      is given up, and the run with it.

  Raises:
    UserError: the others did not come.
  """
  workers.set_patience(timeout_s=timeout_s, flag="--process_timeout=")
  if coordinator is None and not _is_one_of_many():
    return
  message = (
    f"the processes of the run did not meet within {timeout_s:g} s at "
    f"{coordinator or 'the coordinator'}: start all of them, with the same "
    "--coordinator and --num_processes"
  )
  # JAX's own deadline aborts, saying less.
  late = threading.Timer(timeout_s, workers.give_up, (message,))
  late.start()
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=round(2 * timeout_s),
      # JAX beats twice in this time, so what has just stopped may be given up
      # after half of it: later than by `lost_processes`, which has more to say.
      heartbeat_timeout_seconds=round(3 * timeout_s),
    )
  except (RuntimeError, ValueError) as error:
    raise UserError(f"{message} ({one_line(error)})") from error
  finally:
    late.cancel()
  atexit.register(_leave)
  if not is_first():
    _log.setLevel(logging.WARNING)


def _leave() -> None:
  """Leaves the others before the interpreter ends.

  JAX would leave at its end, which wakes what still waits for an answer; a
  thread that wakes then aborts the process.
  """
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    jax.distributed.shutdown()
  for thread in _answering:
    thread.join()


def _is_one_of_many() -> bool:
  """Tells whether JAX finds the run's processes by itself."""
  for count in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    number = os.environ.get(count, "")
    if number.isdecimal() and int(number) > 1:
      return True
  chips = [*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")]
  if not chips or "cpu" in os.environ.get("JAX_PLATFORMS", ""):
    return False
  return importlib.util.find_spec("libtpu") is not None


def many() -> bool:
  """Tells whether the run has several processes."""
  return jax.process_count() > 1


def is_first() -> bool:
  """Tells whether this process is the one that writes and draws."""
  return jax.process_index() == 0


@contextlib.contextmanager
def first_alone(what: str) -> Iterator[None]:
  """Runs the block in the first process, then in all others.

  They may read what it wrote. If it fails, all fail.
  """
  done = not is_first()
  if done and not _first_says(what, True):
    raise UserError("the first process of the run failed, and says of what")
  try:
    yield
    done = True
  finally:
    if is_first():
      _first_says(what, done)


def _first_says(where: str, value: bool) -> bool:
  meet(where)
  if not many():
    return value
  return bool(multihost_utils.broadcast_one_to_all(np.array(value)))


def any_says(value: bool) -> bool:
  """Tells whether any process says so; all must ask."""
  if not many():
    return value
  return bool(multihost_utils.process_allgather(np.array([value])).any())


def meet(where: str) -> None:
  """Waits until every process is here, however long; see `lost_processes`.

  On the hosts: a collective operation would not wait for what the first process
  does alone.
  """
  if many():
    _meet_at(f"meeting {next(_meetings)}: {where}", _A_WEEK_S)


def _meet_at(name: str, timeout_s: float) -> None:
  """Waits for every process to call this with that name, of no call before."""
  meet_all = ocp.multihost.get_barrier_sync_fn()
  meet_all(key=f"ssl_jax {name}", timeout_ms=round(1000 * timeout_s))


@contextlib.contextmanager
def lost_processes(hint: str) -> Iterator[None]:
  """Ends this process soon after another one is lost, saying `hint`.

  A collective operation without one of its processes fails at once, or never
  ends, as the network has it: then no `beat` comes for `timeout_s`. Before the
  first, as compiling takes its time, a thread of each answers the others'.
  """
  global _moved
  before = workers.set_patience(remedy=hint)
  try:
    if not many():
      yield
      return
    # Waiting for data ends earlier: its message says more.
    problem = "a process of the run is lost or stuck"
    with workers.waiting(problem, times=1.1) as moved:
      begun = threading.Event()

      def _moved() -> None:
        begun.set()
        moved()

      answers = threading.Thread(
        target=_answer, args=(next(_runs), moved, begun), daemon=True
      )
      answers.start()
      _answering.append(answers)
      try:
        yield
      finally:
        begun.set()
  except Exception as error:
    if not many():
      raise
    # JAX's way out would wait for the others, and they for this one.
    message = str(error)
    if isinstance(error, jax.errors.JaxRuntimeError):
      message = f"a process of the run was lost ({one_line(error)}); {hint}"
    elif not isinstance(error, UserError | OSError):
      traceback.print_exc()
    workers.give_up(message)
  finally:
    workers.set_patience(remedy=before.remedy)


def _answer(
  run: int, moved: Callable[[], None], begun: threading.Event
) -> None:
  """Meets the other processes' threads again and again until `begun`."""
  for turn in itertools.count():
    try:
      _meet_at(f"run {run} answer {turn}", 2 * workers.patience().timeout_s)
    except jax.errors.JaxRuntimeError:
      return  # Another process began, or it is lost: then `moved` is missing.
    if begun.wait(workers.patience().timeout_s / 10):
      return
    moved()


def _moved() -> None:
  """Does nothing; `lost_processes` puts in its place what `beat` calls."""


def beat() -> None:
  """Says that the run goes on; `lost_processes` waits for it."""
  _moved()


class StopRequest:
  """SIGTERM, as preemption and time limits send it, or Ctrl-C: to stop soon.

  A context manager: inside it the first such signal only asks, and a second
  one kills.

  Attributes:
    interrupted: whether it was Ctrl-C, here.
  """

  def __init__(self, mesh: Mesh):
    self._asked = False
    everywhere = NamedSharding(mesh, P(mesh.axis_names))
    self._count = jax.jit(
      lambda x: x.sum(), out_shardings=NamedSharding(mesh, P())
    )
    self._place = lambda value: jax.make_array_from_callback(
      (mesh.size,), everywhere, lambda _: np.array([value], np.int32)
    )
    self._before: jax.Array | None = None

  def __enter__(self) -> "StopRequest":
    self.interrupted, self._old = False, {}
    if threading.current_thread() is threading.main_thread():
      for asks in (signal.SIGTERM, signal.SIGINT):
        # A shell's background jobs are not to be interrupted.
        if signal.getsignal(asks) != signal.SIG_IGN:
          self._old[asks] = signal.signal(asks, self._ask)
    return self

  def __exit__(self, *_: object) -> None:
    for asks, old in self._old.items():
      signal.signal(asks, old)

  def _ask(self, number: int, _: FrameType | None) -> None:
    process.stopping.set()
    self._asked, self.interrupted = True, number == signal.SIGINT
    for asks in self._old:
      signal.signal(asks, signal.SIG_DFL)
    # The interrupted code may hold the lock of logging.
    name = signal.Signals(number).name
    message = f"{name}: saving, then stopping; another stops at once\n"
    with contextlib.suppress(OSError):
      os.write(2, message.encode())

  def agreed(self) -> bool:
    """Tells whether any process was asked; all agree, an update late.

    Called once an update by all. Late, so that no device waits for the host.
    """
    if not many():
      return self._asked
    before, self._before = self._before, self._count(self._place(self._asked))
    return before is not None and int(before) > 0
