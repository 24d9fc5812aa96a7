"""Programs for TPU slices, and what is read from them."""

import importlib.util
import json

import pytest
from doors import door

from ssl_jax.devices import chips
from ssl_jax.measure import hlo

# A loop of 12, of which one branch sends more; one gather; one call.
PROGRAM = """
HloModule jit_train_step

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
}

%small (p: f32[4]) -> f32[4] {
  %r0 = f32[4]{0} all-reduce(%p), to_apply=%sum
}

%large (p: f32[4]) -> f32[4] {
  %r1 = (f32[4]{0}, bf16[2,8]{1,0}) all-reduce(%p, %q), to_apply=%sum
}

%cond (p: (s32[], f32[4])) -> pred[] {
  %n = s32[] constant(12)
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %c = f32[4]{0} conditional(%k, %x, %y), branch_computations={%small, %large}
}

ENTRY %main (x: f32[4]) -> f32[4] {
  %w = (s32[], f32[4]{0}) while(%t), condition=%cond, body=%body
  %g = (f32[4]{0}, f32[32]{0}) all-gather-start(%x), dimensions={0}
  %d = f32[32]{0} all-gather-done(%g)
  %s = ((f32[4]{0}), f32[4]{0}, u32[]) call-start(%x), to_apply=%small
}
"""


def test_collectives_are_counted_as_often_as_they_run():
  assert hlo.collectives(PROGRAM) == {
    "all-reduce": (12 + 1, 12 * (16 + 32) + 16),
    "all-gather": (1, 128),
  }


# Copies of an array and of a slice onto the chip, a loop of 5 that reads HBM,
# the costlier of branches, a fusion that reads one row and writes another.
MOVES = """
HloModule jit_step

%body (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %y = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %x), kind=kLoop, calls=%f
  ROOT %t = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%i, %x)
}

%cond (q: (s32[], bf16[8,128])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[8,128]{1,0}) parameter(0)
  %n = s32[]{:T(128)} constant(5)
  %k = s32[]{:T(128)S(6)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)S(6)} compare(%k, %n), direction=LT
}

%one (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  ROOT %b = f32[4]{0} negate(%a)
}

%two (c: f32[4]) -> f32[4] {
  %c = f32[4]{0} parameter(0)
  %d = f32[4]{0} negate(%c)
  ROOT %e = f32[4]{0} custom-call(%c, %d), custom_call_target="tpu_custom_call"
}

%row (f: f32[8,128], g: f32[8,128]) -> f32[8,128] {
  %g = f32[8,128]{1,0} parameter(1)
  %h = f32[8,128]{1,0} parameter(0)
  %k = f32[8,128]{1,0} bitcast(%h)
  %l = f32[1,128]{1,0} dynamic-slice(%k, %i, %j), dynamic_slice_sizes={1,128}
  ROOT %m = f32[8,128]{1,0} dynamic-update-slice(%g, %l, %i, %j)
}

ENTRY %main (x: bf16[8,128], v: f32[4]) -> f32[4] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %v = f32[4]{0} parameter(1)
  %s = (bf16[8,128]{1,0:S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %z = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%s)
  %o = ((bf16[8,128]{1,0}), bf16[2,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x)
  %u0 = f32[8,128]{1,0} parameter(2)
  %u1 = f32[8,128]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %q = f32[8,128]{1,0} fusion(%u0, %u1), calls=%row, metadata={op_name="PATH"}
  %w = (s32[], bf16[8,128]{1,0}) while(%t0), condition=%cond, body=%body
  ROOT %r = f32[4]{0} conditional(%k, %v, %v), branch_computations={%one, %two}
}
"""


def test_memory_traffic_leaves_out_what_stays_on_the_chip():
  array, vector, row = 8 * 128 * 2, 4 * 4, 128 * 4
  program = MOVES.replace(
    "PATH", "jit(step)/jvp(Model)/stem/stem.conv/scan/add"
  )
  assert hlo.hbm_bytes(program) == {
    "copies": array + array / 4 + 5 * array + (2 + 3) * vector,
    "stem/scan": row + row,
  }


@pytest.mark.parametrize(
  ("name", "found"),
  [
    ("v5e:4x4", ("v5e:4x4", 16)),
    ("v5e-256", ("v5e:16x16", 256)),
    ("v6e-4", ("v6e:2x2", 4)),
    ("v5p:2x2x4", ("v5p:2x2x4", 16)),
    ("v5p-8", ("v5p:2x2x1", 4)),  # 8 cores.
    ("tpu7x-8", ("tpu7x:2x2x1", 4)),
  ],
)
def test_slices_are_named_by_shape_or_chips(name, found):
  assert chips.topology(name)[1:] == found


@pytest.mark.parametrize(
  ("args", "status", "said"),
  [
    ([], 2, "--topology is missing"),
    (["--topology=v5e:3x3"], 1, "v5e:2x2, v5e:2x4, v5e:4x4"),
    (["--topology=v9-8"], 1, "v5e:SHAPE, v5p:SHAPE, v6e:SHAPE, tpu7x:SHAPE"),
  ],
)
def test_a_slice_that_is_not_sold_is_one_line(args, status, said):
  done = door("compile", "--config=configs/smoke.py", *args)
  assert (done.returncode, done.stdout) == (status, "")
  assert said in done.stderr and len(done.stderr.splitlines()) == 1


needs_compiler = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="the TPU compiler, libtpu, is not installed",
)

SMOKE = "--config=configs/smoke.py --topology=v5e-4"


@pytest.mark.parametrize(
  ("args", "said"),
  [
    ([f"--row={SMOKE}"], "--row without --table"),
    (["--table=x", "--topology=v5e-4"], "--row='--config=..."),
    (["--table=x", "--row=--config=configs/smoke.py"], "expected '--config="),
    (["--table=x", "--row=--topology=v5e-4"], "expected '--config="),
    (["--table=x", f"--row={SMOKE}x"], "expected one of v5e:2x2"),
    (["--config=configs/smoke.py", "--topology=v5e-4", "--xla=x"], "NAME="),
  ],
)
@needs_compiler
def test_wrong_use_of_a_table_is_one_line(args, said, tmp_path):
  done = door("compile", *args)
  assert (done.returncode, done.stdout) == (2, "")
  assert said in done.stderr and len(done.stderr.splitlines()) == 1


@needs_compiler
def test_a_table_goes_on_where_it_was_killed(tmp_path):
  facts = {
    "mesh": {"data": 4, "fsdp": 1, "tensor": 1},
    "rows": 12,
    "idle_rows": 2,
    "hbm_bytes_per_chip": {"peak": 2**30, "available": 2**34},
    "collectives": {"all-reduce": {"operations": 1, "bytes": 58e6}},
    "roofline_seconds": {"compute": 0.005, "memory": 0.004, "network": 0.001},
    "mfu_bound": 0.8,
    "compile_seconds": 60.0,
  }
  path = tmp_path / "rows.jsonl"
  whole = json.dumps({"row": SMOKE, "facts": facts}) + "\n"
  path.write_text(whole + whole[:20])  # The last line was cut short.
  wrong = f"{SMOKE} --config.mesh='(3,1,1)'"

  def run():
    done = door(
      "compile", f"--table={path}", f"--row={SMOKE}", f"--row={wrong}"
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr

  result, said = run()
  assert f"row 1 of 1: {wrong}" in said  # The other was there.
  assert (
    result["rows"] == 2 and "needs a multiple of 3" in result["failed"][wrong]
  )
  cells = "1.00 of 16 | all-reduce 58 MB | 5 | 4 | 1 | 80%"
  assert f"| smoke.py | v5e 2x2 | 4,1,1 | 12 (2) | {cells} |" in said
  assert len(path.read_text().splitlines()) == 2
  again, said = run()
  assert again == result and "row 1" not in said


@needs_compiler
@pytest.mark.parametrize("mesh", ["(-1,1,1)", "(-1,4,1)"])
def test_the_step_compiles_for_a_slice(mesh):
  done = door(
    "compile",
    "--config=configs/smoke.py",
    "--topology=v5e-4",
    f"--config.mesh={mesh}",
    "--config.encoder.num_layers=2",
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found["chips"] == 4 and found["fits"] and found["idle_rows"] == 1
  memory = found["hbm_bytes_per_chip"]
  assert memory["peak"] > memory["temporaries"] > 0
  sent = found["collectives"]
  # Gradients of 0.9 M parameters, in bfloat16 or float32; the positions'
  # kernel has its summed as blocks, eight times its size.
  assert 1.5e6 < sent["all-reduce"]["bytes"] < 8e6
  assert ("all-gather" in sent) == (mesh != "(-1,1,1)")
  assert 0 < found["mfu_bound"] < 1
