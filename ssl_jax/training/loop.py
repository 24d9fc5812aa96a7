"""A run, from config to checkpoint, in reading order."""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from ssl_jax import SAMPLE_RATE
from ssl_jax.checkpoints.manager import Checkpoints
from ssl_jax.data.batches import load_batch, make_iterator
from ssl_jax.devices import processes, sharding
from ssl_jax.errors import UserError
from ssl_jax.files import alone, read_jsonl
from ssl_jax.labelling.codebook import mfcc_codebooks
from ssl_jax.models.backbone import compute_dtype
from ssl_jax.objectives import make_objective
from ssl_jax.optimizers import make_optimizer, make_schedule
from ssl_jax.reports import loss_picture
from ssl_jax.training import first_stage, tracking, trunk
from ssl_jax.training import header as header_lib
from ssl_jax.training import metrics as metrics_lib
from ssl_jax.training import step as step_lib
from ssl_jax.training import workdir as workdir_lib
from ssl_jax.training.alarms import Alarms
from ssl_jax.training.clock import Clock, Meter
from ssl_jax.training.compiled import CompiledSteps
from ssl_jax.training.health import Health
from ssl_jax.training.profile import Profile
from ssl_jax.training.setup import Setup, set_up
from ssl_jax.training.start import start
from ssl_jax.training.word_probe import WordProbe

_log = logging.getLogger("ssl_jax")


def train(
  config: ConfigDict,
  workdir: Path,
  dry_run: bool = False,
  clock: Clock | None = None,
  profile: Profile | None = None,
) -> dict:
  """Trains to `budget.updates`, from wherever `workdir` stands.

  Args:
    config: of the run.
    workdir: of the run.
    dry_run: whether to stop at the header.
    clock: of the process, from its start; None: of this call.
    profile: traces some updates; None: none.

  Returns:
    The run's JSON object (README, "What a run leaves"); for a dry run, the
    header as numbers.

  Raises:
    UserError: for a bad config, unusable data, a workdir of another config, or
      a loss that is not finite.
  """
  tracking.names(config)
  clock, setup = clock or Clock(), set_up(config)
  mesh = sharding.make_mesh(config.mesh)
  sharding.check(config, mesh)
  config, header = setup.config, setup.header
  _log.info("%s", header_lib.text(header, config))
  if dry_run:
    return header
  if make_objective(config).first_stage():
    setup, stopped = first_stage.make_labels(setup, workdir, clock, train)
    if stopped:
      return stopped

  with contextlib.ExitStack() as held:
    hint = f"{workdir_lib.goes_on(workdir)} from its newest checkpoint"
    held.enter_context(processes.lost_processes(hint))
    # A workdir is one run's, of one command at a time, and done once
    with processes.first_alone("workdir"):
      if processes.is_first() and not workdir_lib.read_result(workdir):
        held.enter_context(alone(workdir, f"--workdir={workdir}"))
      workdir_lib.claim(workdir, config)
      _log.info("%14s  %s", "workdir", workdir)
      if result := workdir_lib.read_result(workdir):
        _log.info(
          "this run is complete: choose another --workdir for a new one"
        )
        return result

      # Codebooks are fitted to the audio before training
      with clock.during("codebook"):
        codebooks = mfcc_codebooks(config, workdir, setup.train_source)
      data = setup.identity(codebooks)
      workdir_lib.claim_data(workdir, data, config.budget.trunk)
    profile = profile or Profile("", workdir)
    return _train(setup, mesh, workdir, codebooks, clock, profile, held)


def _train(
  setup: Setup,
  mesh: Mesh,
  workdir: Path,
  codebooks: tuple[np.ndarray, ...],
  clock: Clock,
  profile: Profile,
  held: contextlib.ExitStack,
) -> dict:
  """Trains a run that is set up, in a workdir that is its own; its result."""
  config, plan, header = setup.config, setup.plan, setup.header

  # Model and optimizer
  objective = make_objective(config, compute_dtype(config))
  optimizer = make_optimizer(config)
  init = functools.partial(step_lib.init_state, objective, optimizer, config)
  abstract_state = jax.eval_shape(init, jax.random.key(config.seed))
  placed = sharding.of_state(config, mesh, abstract_state)
  abstract_state = sharding.abstract(abstract_state, placed)
  checkpoints = Checkpoints(
    workdir, config.checkpoint.keep, config.checkpoint.at
  )

  # Programs are compiled while the state is made, and in the first updates.
  newest = checkpoints.latest() or 0
  steps = CompiledSteps(
    setup,
    objective,
    optimizer,
    mesh,
    abstract_state,
    codebooks,
    newest or trunk.begins(config),
    validates=not newest,
  )
  held.callback(steps.close)
  go_on = functools.partial(first_stage.go_on, setup, mesh, workdir)
  begun = start(config, checkpoints, objective, init, abstract_state, go_on)
  first_update, update, state, spent = begun
  clock.go_on(spent)
  health = Health(config.optimizer.max_skipped_updates, spent.pop("health", {}))

  share = {
    "row_multiple": sharding.row_shards(mesh) * config.batch.microbatches,
    "num_shards": sharding.row_shards(mesh),
    "shards": sharding.my_shards(mesh),
  }
  no_sums = jax.jit(
    lambda: step_lib.no_sums(abstract_state), out_shardings=placed["sums"]
  )

  def evaluate(state: step_lib.State) -> dict[str, float]:
    sums, model = None, step_lib.model_of(state)
    for rows in setup.valid_plan:
      with clock.during("compile"):
        step = steps.valid(rows.bucket_length)
      batch = load_batch(
        setup.valid_source, rows, **share, labels=setup.valid_labels
      )
      batch["draw_id"] = np.maximum(batch.pop("record"), 0).astype(np.int32)
      new = step(model, sharding.put(batch, mesh))
      processes.beat()
      sums = new if sums is None else jax.tree.map(jnp.add, sums, new)
    return step_lib.report(objective, jax.device_get(sums))

  # Train loop
  probe = WordProbe(config, mesh)
  updates = config.budget.updates
  schedule = make_schedule(config)
  previous = None  # The update before and its metrics, still on the device.
  to_first = 0.0  # Seconds from here to this process's first update.

  def settle(update: int, current: dict) -> float:
    """Counts a finished update, and tells if it was not as usual; its loss."""
    spent["audio_samples"] += int(current.pop("audio_samples"))
    current = {name: float(value) for name, value in current.items()}
    try:
      kind, message = health.check(update, current)
    except UserError as error:
      checkpoints.wait()  # The newest may be being written.
      kept = checkpoints.latest()
      raise UserError(
        f"{error}, learning rate {float(schedule(update - 1)):.3g}. The last "
        f"good checkpoint is {f'update {kept}' if kept else 'none yet'}; lower "
        "config.optimizer.learning_rate or config.optimizer.clip_norm, or warm "
        "up for longer"
      ) from error
    if kind:
      clips = plan.batch(update - 1).clips
      records = [setup.train_source.ids[i] for i in clips if i >= 0]
      message += f"; of {', '.join(map(repr, records[:3]))} ... (metrics.jsonl)"
      writer.event(update, kind, current | {"records": records}, message)
      progress.print(f"warning: update {update}: {message}")
    return current["loss"]

  with contextlib.ExitStack() as stack:
    stack.callback(checkpoints.close)
    with processes.first_alone("metrics"):
      writer = metrics_lib.MetricsWriter(
        workdir, first_update, update, processes.is_first(), config
      )
      alarms = Alarms(objective, config, read_jsonl(workdir / "metrics.jsonl"))
    stack.callback(writer.close)
    progress = metrics_lib.Progress(
      update, updates, header["flops"], processes.is_first()
    )
    stack.callback(progress.close)
    batches = make_iterator(
      setup.train_source,
      plan,
      update,
      updates - update,
      **share,
      labels=setup.train_labels,
      **config.loader,
    )
    stack.callback(batches.close)
    stack.enter_context(_resume_hint(workdir, checkpoints))
    stop = stack.enter_context(processes.StopRequest(mesh))
    with clock.during("compile"):
      steps.wait_where_needed()
    processes.beat()
    if not first_update:
      with clock.during("eval"):
        values = evaluate(state)
        writer.write(update, "valid", values)
        progress.print(f"update {update}: valid loss {values['loss']:.4f}")
        probe.log(update, state, writer, progress)
    steps.compile_rest()
    clock.switch("redone" if writer.dropped > update else "train")
    meter, valid_loss = Meter(clock, spent, update), None
    picture = loss_picture.Picture(workdir)
    stack.enter_context(profile.among(update, updates))

    while update < updates:
      with clock.during("data"):
        batch = next(batches)
      del batch["record"]
      length = batch["waveform"].shape[1]
      with clock.during("compile"):
        step = steps.train(length)
      with profile.update(update + 1):
        state, current = step(state, sharding.put(batch, mesh))
      update += 1
      profile.after(update, state)
      if update > writer.dropped:
        clock.switch("train")
      spent["flops"] += setup.padded_update_flops[length]
      log_due, eval_due, checkpoint_due = (
        update % config[name].every == 0 or update == updates
        for name in ("log", "eval", "checkpoint")
      )
      probe_due = probe.due(update, updates)
      stopping = stop.agreed() and update < updates
      checkpoint_due |= stopping or update in config.checkpoint.at

      # Metrics are read one update late, so that the device never waits for
      # the host, but before anything is made of the state they belong to.
      if previous is not None:
        loss = settle(*previous)
        to_first = to_first or clock.of_process()
        progress.show(update - 1, loss, meter.speed(), spent["flops"])
      previous = update, current
      if log_due or eval_due or probe_due or checkpoint_due:
        settle(*previous)
        to_first = to_first or clock.of_process()
        previous = None
      if log_due:
        values = step_lib.report(objective, jax.device_get(state["sums"])) | {
          "learning_rate": float(schedule(update - 1)),
          "epoch": update / plan.updates_per_epoch,
          "flops": spent["flops"],
          "audio_seconds": spent["audio_samples"] / SAMPLE_RATE,
          "skipped_updates": health.skipped,
        }
        values |= objective.schedules(update - 1)
        writer.write(update, "train", values | meter.read(update))
        raised = alarms.check(update, values)
        for name, text in raised.items():
          writer.event(update, "alarm", {"name": name}, text)
          progress.print(f"warning: update {update}: {text}")
        state = state | {"sums": no_sums()}
        progress.show(
          update, values["loss"], meter.speed(), spent["flops"], line=True
        )
        meter.restart(update)
        if raised and config.log.stop_on_alarm:
          raise UserError(f"update {update}: {'; '.join(raised.values())}")
      with clock.during("eval"):
        valid_loss = None
        if eval_due:
          values = evaluate(state)
          writer.write(update, "valid", values)
          progress.print(f"update {update}: valid loss {values['loss']:.4f}")
          if math.isfinite(values["loss"]):
            valid_loss = values["loss"]
          if processes.is_first() and update < updates:
            picture.draw()
        if probe_due:
          probe.log(update, state, writer, progress)
      if checkpoint_due:
        with clock.during("checkpoint"):
          counters = spent | clock.counters() | {"health": health.state}
          checkpoints.save(update, state, counters, valid_loss)
      processes.beat()
      if stopping:
        checkpoints.wait()
        if stop.interrupted:
          raise KeyboardInterrupt
        progress.print(
          f"stopped at update {update} of {updates}: "
          + workdir_lib.goes_on(workdir)
        )
        return {
          "workdir": str(workdir),
          "updates": update,
          "preempted": True,
        }

    spent |= clock.counters()
    writer.finish({"updates": update, "valid_loss": valid_loss, **spent})
    clock.switch("checkpoint")  # Those that are still being written.

  # Report
  spent |= clock.counters()
  result = workdir_lib.make_result(
    workdir, header, update, spent, health.skipped, to_first
  )
  if processes.is_first():
    workdir_lib.write_result(workdir, result)
    loss_picture.try_to_draw(workdir)
    _log.info("%s", loss_picture.summary(result))
  processes.meet("end")
  return result


@contextlib.contextmanager
def _resume_hint(workdir: Path, checkpoints: Checkpoints) -> Iterator[None]:
  try:
    yield
  except KeyboardInterrupt:
    checkpoints.wait()
    raise KeyboardInterrupt(
      f"interrupted; {workdir_lib.goes_on(workdir)} from update "
      f"{checkpoints.latest() or 0}"
    ) from None
