"""Collectives read from HLO text: every way to write groups, loops, asynchronous parts, fusions."""

import pytest

from rlaif_jax.plan.hlo import collectives, unordered

MESH = {"data": 1, "fsdp": 4, "tensor": 2, "context": 1}
FSDP, TENSOR = "[2,4]<=[4,2]T(1,0)", "[4,2]<=[8]"


def _program(body: str, more: str = "") -> str:
    return f"HloModule m\n{more}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("groups", "axes", "size"),
    [
        (TENSOR, "tensor", 2),
        (FSDP, "fsdp", 4),
        ("{{0,2,4,6},{1,3,5,7}}", "fsdp", 4),
        ("{{0,1},{2,3},{4,5},{6,7}}", "tensor", 2),
        ("{{0,3},{1,2},{4,7},{5,6}}", "", 2),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_0'}", "fsdp", 4),
        ("mesh['axis_0'=4,'axis_1'=2] {'axis_1'}", "tensor", 2),
        ("[1,8]<=[8]", "fsdp+tensor", 8),
    ],
)
def test_groups_are_mesh_axes(groups, axes, size):
    text = _program(f"  %a = f32[16,4]{{1,0:T(8,128)}} all-gather(%p), channel_id=1, replica_groups={groups}, dimensions={{0}}")
    (found,) = collectives(text, MESH)
    assert (found.kind, found.axes, found.count) == ("all-gather", axes, 1)
    assert found.bytes == 16 * 4 * 4 * (size - 1) / size


@pytest.mark.parametrize(
    ("instruction", "kind", "nbytes"),
    [
        (f"bf16[64] all-reduce(%p), replica_groups={FSDP}, to_apply=%sum", "all-reduce", 2 * 128 * 3 / 4),
        (f"bf16[64] all-reduce-start(%p), replica_groups={FSDP}, to_apply=%sum", "all-reduce", 2 * 128 * 3 / 4),
        (f"bf16[16] reduce-scatter(%p), replica_groups={FSDP}, dimensions={{0}}, to_apply=%sum", "reduce-scatter", 3 * 32),
        (f"bf16[64] all-to-all(%p), replica_groups={FSDP}, dimensions={{0}}", "all-to-all", 128 * 3 / 4),
        ("(bf16[16], bf16[64]) all-gather-start(%p), replica_groups=[2,4]<=[4,2]T(1,0)", "all-gather", 128 * 3 / 4),
        ("bf16[64] collective-permute(%p), source_target_pairs={{0,2},{2,4},{4,6},{6,0}}", "collective-permute", 128),
    ],
)
def test_what_one_chip_receives(instruction, kind, nbytes):
    (found,) = collectives(_program(f"  %a = {instruction}\n  ROOT %b = f32[8] copy(%a)"), MESH)
    assert (found.kind, found.axes, found.bytes) == (kind, "fsdp", nbytes)


LOOP = """
%cond (c: (s32[], f32[8])) -> pred[] {{
  %c = (s32[], f32[8]) parameter(0)
  %limit = s32[]{{:T(128)}} constant({limit})
  %counter = s32[] get-tuple-element(%c), index=0
  ROOT %test = pred[] {test}
}}

%body (b: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %b = (s32[], f32[8]) parameter(0)
  %old = s32[] get-tuple-element(%b), index=0
  %step = s32[] constant({step})
  %copied = s32[] copy(%old)
  %new = s32[] add(%copied, %step)
  %r = f32[8] all-reduce(%b), replica_groups=[4,2]<=[8], to_apply=%sum
  ROOT %out = (s32[], f32[8]) tuple(%new, /*index=1*/%r)
}}
"""
CALL = "  %w = (s32[], f32[8]) while(%p), condition=%cond, body=%body"


@pytest.mark.parametrize(
    ("limit", "step", "test", "runs"),
    [
        (28, 1, "compare(%counter, %limit), direction=LT", 28),
        (15, 2, "compare(%counter, %limit), direction=LT", 8),
        (28, 1, "and(%counter, %limit)", 512),  # its end depends on data
    ],
)
def test_loops(limit, step, test, runs):
    text = _program(CALL, LOOP.format(limit=limit, step=step, test=test))
    (found,) = collectives(text, MESH, loop_trips=512)
    assert found.count == runs and found.bytes == runs * 2 * 32 / 2


def test_an_asynchronous_collective_counts_once():
    part = 'all-gather(%x), replica_groups=[2,4]<=[4,2]T(1,0), frontend_attributes={chain_id="3"}'
    parts = "\n".join(
        f"%{name} (x: f32[4]) -> f32[16] {{\n  %x = f32[4] parameter(0)\n  %g = f32[16] {part}\n"
        f'  ROOT %c = f32[16] custom-call(%g), custom_call_target="{target}"\n}}\n'
        for name, target in (("start", "AsyncCollectiveStart"), ("middle", "Matmul"), ("done", "AsyncCollectiveDone"))
    )
    calls = "\n".join(f"  %{n}1 = f32[16] fusion(%p), kind=kCustom, calls=%{n}" for n in ("start", "middle", "done"))
    (found,) = collectives(_program(calls, parts), MESH)
    assert found.count == 1 and found.bytes == 64 * 3 / 4


def test_an_all_reduce_whose_result_is_sliced_is_a_reduce_scatter():
    fused = (
        "%all-reduce-scatter.1 (x: f32[64]) -> f32[16] {\n  %x = f32[64] parameter(0)\n"
        "  %r = f32[64] all-reduce(%x), replica_groups=[2,4]<=[4,2]T(1,0), to_apply=%sum\n"
        "  ROOT %s = f32[16] dynamic-slice(%r)\n}\n"
    )
    call = "  %f = f32[16] fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1"
    (found,) = collectives(_program(call, fused), MESH)
    assert found.kind == "reduce-scatter" and found.bytes == 256 * 3 / 4


def test_of_two_branches_the_dearer_one_counts():
    branches = "".join(
        f"%b{i} (x: f32[64]) -> f32[64] {{\n  %x = f32[64] parameter(0)\n"
        f"  ROOT %r = f32[{size}] all-reduce(%x), replica_groups=[4,2]<=[8], to_apply=%sum\n}}\n"
        for i, size in enumerate((8, 64))
    )
    call = "  %c = f32[64] conditional(%p, %p, %p), branch_computations={%b0, %b1}"
    (found,) = collectives(_program(call, branches), MESH)
    assert found.bytes == 64 * 4


def test_a_program_on_real_devices(eight_devices):
    """XLA's own text on the CPU backend: one all-reduce over tensor, 3 times in a scan."""
    import jax
    import jax.numpy as jnp

    def f(x, w):
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ w @ w.T), None), x, None, length=3)[0]

    rows, columns = eight_devices.rows(8), eight_devices.array((None, "mlp"), (16, 32))
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=rows)
    w = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=columns)
    text = jax.jit(f, out_shardings=rows).lower(x, w).compile().as_text()
    found = {(c.kind, c.axes): c for c in collectives(text, dict(eight_devices.mesh.shape))}
    reduce = found["all-reduce", "tensor"]
    assert reduce.count == 3 and reduce.bytes == 3 * 2 * (2 * 16 * 4) / 2  # 8 rows over 4 parts of data x fsdp


EXCHANGE = """
%sample (b: (s32[], f32[8])) -> (s32[], f32[8]) {{
  %b = (s32[], f32[8]) parameter(0)
  %x = f32[8] get-tuple-element(%b), index=1
  %sum = f32[8] {op}(%x), replica_groups={{{{0,1}}}}, to_apply=%add
  ROOT %t = (s32[], f32[8]) tuple(%i, %sum)
}}
"""


@pytest.mark.parametrize(
    "loop", ["while(%p), condition=%c, body=%sample", "conditional(%q, %p), branch_computations={%sample}"]
)
@pytest.mark.parametrize(
    ("later", "found"),
    [
        ("  %last = f32[8] all-reduce(%p), to_apply=%add", [("loop", "last")]),
        ("  %y = f32[8] get-tuple-element(%loop), index=1\n  %z = f32[8] add(%y, %p)\n  %last = f32[8] all-reduce(%z)", []),
        ("  %last = (s32[], f32[8]) while(%p), condition=%c, body=%sample", [("loop", "last")]),
        ("  %last = f32[8] negate(%p)", []),
    ],
)
def test_what_follows_a_loop_by_order_alone(loop, later, found):
    body = f"  %before = f32[8] all-reduce(%p)\n  %loop = (s32[], f32[8]) {loop}\n{later}"
    assert unordered(_program(body, EXCHANGE.format(op="all-reduce"))) == found
    assert unordered(_program(body, EXCHANGE.format(op="tanh"))) == [], "nothing is exchanged in the loop"
