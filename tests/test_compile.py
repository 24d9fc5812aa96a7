"""Programs for TPU slices, and what is read from them."""

import importlib.util
import json

import pytest
from doors import door

from ssl_jax.devices import chips
from ssl_jax.measure import hlo

# Two layers in a loop of 12, of which one branch sends more; then one gather.
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
}
"""


def test_collectives_are_counted_as_often_as_they_run():
  assert hlo.collectives(PROGRAM) == {
    "all-reduce": (12, 12 * (16 + 32)),
    "all-gather": (1, 128),
  }


# A copy onto the chip, a loop of 5 that reads HBM, the costlier of branches.
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

ENTRY %main (x: bf16[8,128], v: f32[4]) -> f32[4] {
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %v = f32[4]{0} parameter(1)
  %s = (bf16[8,128]{1,0:S(1)}, bf16[8,128]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %z = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} copy-done(%s)
  %w = (s32[], bf16[8,128]{1,0}) while(%t0), condition=%cond, body=%body
  ROOT %r = f32[4]{0} conditional(%k, %v, %v), branch_computations={%one, %two}
}
"""


def test_memory_traffic_leaves_out_what_stays_on_the_chip():
  array, vector = 8 * 128 * 2, 4 * 4
  assert hlo.hbm_bytes(MOVES) == array + 5 * array + (2 + 3) * vector


@pytest.mark.parametrize(
  ("name", "found"),
  [
    ("v5e:4x4", ("v5e:4x4", 16)),
    ("v5e-256", ("v5e:16x16", 256)),
    ("v6e-4", ("v6e:2x2", 4)),
    ("v5p:2x2x4", ("v5p:2x2x4", 16)),
  ],
)
def test_slices_are_named_by_shape_or_chips(name, found):
  assert chips.topology(name)[1:] == found


@pytest.mark.parametrize(
  ("args", "status", "said"),
  [
    ([], 2, "--topology is missing"),
    (["--topology=v5e:3x3"], 1, "v5e:2x2, v5e:2x4, v5e:4x4"),
    (["--topology=v9-8"], 1, "v5e:SHAPE, v5p:SHAPE, v6e:SHAPE"),
  ],
)
def test_a_slice_that_is_not_sold_is_one_line(args, status, said):
  done = door("compile", "--config=configs/smoke.py", *args)
  assert (done.returncode, done.stdout) == (status, "")
  assert said in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="the TPU compiler, libtpu, is not installed",
)
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
  assert found["chips"] == 4 and found["fits"] and found["idle_rows"] == 2
  memory = found["hbm_bytes_per_chip"]
  assert memory["peak"] > memory["temporaries"] > 0
  sent = found["collectives"]
  # Gradients of 0.9 M parameters, in bfloat16 or float32.
  assert 1.5e6 < sent["all-reduce"]["bytes"] < 6e6
  assert ("all-gather" in sent) == (mesh != "(-1,1,1)")
  assert 0 < found["mfu_bound"] < 1
