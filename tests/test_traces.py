"""Traces of the profiler are read and summed up right.

Most are made up, with sums that were worked out by hand; one is taken here. `test_profile.py` has
those of runs.
"""

import dataclasses
import gzip
import json

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData
from jax.sharding import PartitionSpec as P

from seva_jax.report.__main__ import main
from seva_jax.runtime.trace_events import Op, Step, Trace, read_trace, trace_files
from seva_jax.runtime.trace_summary import (
    ATTENTION,
    COLLECTIVES,
    COMPUTE,
    COPIES,
    IDLE,
    MATMULS,
    Summary,
    collective_kind,
    part_of,
    summarise,
)
from seva_jax.runtime.trace_table import trace_table
from seva_jax.types import DataError

NONE = dict.fromkeys((ATTENTION, MATMULS, COMPUTE, COLLECTIVES, COPIES, IDLE), 0.0)


def op(name, start, end, *, device="/device:TPU:0", line="XLA Ops", text="", category=""):
    return Op(device, line, name, text, category, "jit_step", start, end)


def test_every_moment_counts_once():
    """Of two devices, one only multiplies; times are nanoseconds of a window of 100."""
    ops = (
        op("while.1", 0, 60),  # contains what its body does, which is there, too
        op("dot.1", 0, 20),
        op("add_fusion", 10, 30, line="another queue"),
        op("all-gather-start.1", 25, 45, line="Async XLA Ops"),
        op("copy.2", 40, 50),
        op("dot.1", 0, 100, device="/device:TPU:1"),
    )
    steps = (Step("align", 10, 0, 50), Step("align", 11, 50, 100))
    found = summarise([Trace(ops, steps, ((48, 60),))])

    assert (found.loop, found.first, found.last, found.steps) == ("align", 10, 11, 2)
    assert (found.processes, found.devices, found.seconds) == (1, 2, 100e-9)
    # The first device: 20 in products, 10 more in the fusion until 30, the all-gather alone until
    # 45, the copy alone until 50, then nothing. The loop waited for 12, with an idle device for 10.
    expected = {MATMULS: 0.6, COMPUTE: 0.05, COLLECTIVES: 0.075, COPIES: 0.025, IDLE: 0.25}
    assert found.shares == pytest.approx(NONE | expected)
    assert list(found.shares) == list(NONE)
    assert found.collectives == pytest.approx({"all-gather": 0.1})
    assert found.hidden == pytest.approx(0.025)
    assert found.waiting == pytest.approx(0.12)
    assert found.waiting_idle == pytest.approx(0.05)
    # Two of the names took 20 in all: they are in the order of the alphabet.
    names = ["dot.1", "add_fusion", "all-gather-start.1", "copy.2"]
    assert [op.name for op in found.ops] == names
    assert [op.count for op in found.ops] == [2, 1, 1, 1]
    assert [op.seconds for op in found.ops] == pytest.approx([60e-9, 10e-9, 10e-9, 5e-9])
    assert [op.share for op in found.ops] == pytest.approx([0.6, 0.1, 0.1, 0.05])


def test_time_of_nested_operations():
    """What happens inside an operation, on the same queue, is not its own time."""
    ops = (op("outer", 0, 10), op("inner", 2, 5), op("innermost", 3, 4), op("later", 10, 12))
    found = summarise([Trace(ops)])
    own = {op.name: round(op.seconds * 1e9) for op in found.ops}
    assert own == {"outer": 7, "inner": 2, "innermost": 1, "later": 2}
    assert found.shares == pytest.approx(NONE | {COMPUTE: 1.0})
    assert found.steps == 0
    assert "the whole trace" in trace_table(found)


def test_a_loop_without_visible_body_counts():
    """On CPUs a small loop is one operation."""
    ops = (op("while.1", 0, 30), op("while.2", 40, 60), op("dot.1", 45, 50))
    found = summarise([Trace(ops, (Step("a", 1, 0, 100),))])
    assert found.shares == pytest.approx(NONE | {COMPUTE: 0.3, MATMULS: 0.05, IDLE: 0.65})


def test_processes_have_clocks_of_their_own():
    """Shares are means over all devices, times over processes."""
    first = Trace((op("dot.1", 0, 50),), (Step("a", 1, 0, 100),), ((0, 50),))
    second = Trace((op("dot.1", 1000, 1300),), (Step("a", 1, 1000, 1300),))
    found = summarise([first, second])
    assert (found.processes, found.devices, found.steps) == (2, 2, 1)
    assert found.shares == pytest.approx(NONE | {MATMULS: 0.75, IDLE: 0.25})
    assert found.seconds == pytest.approx(200e-9)
    assert found.waiting == pytest.approx(0.25)
    assert found.ops[0].seconds == pytest.approx(175e-9)


def test_work_outside_of_the_steps():
    """What ran before the first step is left out; the last one ends when its work does."""
    steps = (Step("a", 1, 10, 15), Step("a", 2, 15, 20))
    found = summarise([Trace((op("dot.1", 0, 12), op("dot.1", 20, 30)), steps)])
    assert found.shares == pytest.approx(NONE | {MATMULS: 0.6, IDLE: 0.4})
    assert found.seconds == pytest.approx(20e-9)


def test_origins_tell_no_folders():
    ops = [op("dot.1", 0, 9)._replace(origin="/opt/of-alice/layers.py:12"), op("dot.2", 9, 10)]
    found = summarise([Trace(tuple(ops))])
    assert [op.origin for op in found.ops] == ["…/layers.py:12", "jit_step"]


def test_nothing_was_traced():
    found = summarise([Trace(())])
    assert found.shares == NONE | {IDLE: 1.0}
    assert found.devices == 0
    assert trace_table(found)


# Names as XLA and CUDA libraries write them: HLO operation, what else is known, HLO category.
TPU = "%{0} = bf16[256,512]{{1,0:T(8,128)(2,1)S(1)}} {1}(bf16[256,512]{{1,0:T(8,128)}} %{2})"
NAMED = (
    ("fusion.12", TPU.format("fusion.12", "fusion", "copy.3"), "convolution fusion", MATMULS),
    ("fusion.12", TPU.format("fusion.12", "fusion", "dot.3") + ", kind=kOutput", "", MATMULS),
    ("fusion.12", TPU.format("fusion.12", "fusion", "dot.3") + ", kind=kLoop", "", COMPUTE),
    ("fusion.9", TPU.format("fusion.9", "fusion", "all-gather-done.2"), "loop fusion", COMPUTE),
    ("all-gather-done.2", "", "all-gather", "all-gather"),
    ("all-reduce-scatter.4", "", "all-reduce-scatter fusion", "reduce-scatter"),
    ("fusion.7", "", "collective-permute", "collective-permute"),
    ("psum_invariant.7", "", "", "all-reduce"),
    ("ppermute.1", "", "", "collective-permute"),
    ("send-done.3", TPU.format("send-done.3", "send-done", "send.3"), "", "send and receive"),
    ("splash_mha_fwd_no_residuals.1", "", "custom-call", ATTENTION),
    ("copy-start.8", TPU.format("copy-start.8", "copy-start", "dot.1"), "copy-start", COPIES),
    ("fusion.77", "", "data formatting", COPIES),
    ("dynamic-update-slice.5", "", "dynamic-update-slice", COMPUTE),
    ("custom-call.4", "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "", MATMULS),
    ("gemm_fusion_dot_12", "gemm_fusion_dot_12", "", MATMULS),
    ("custom-call.9", "void cutlass::Kernel2<cutlass_80_tensorop_bf16>(Params)", "", MATMULS),
    ("custom-call.2", "cudnn_generated_fort_native_sdpa_sm90_flash_fprop(args)", "", ATTENTION),
    ("all-reduce-start.1", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(args)", "", "all-reduce"),
    ("ncclDevKernel_SendRecv(args)", "", "", "send and receive"),
    ("MemcpyD2D", "", "", COPIES),
    ("copy.3", "MemcpyH2D", "", COPIES),
    ("loop_convert_fusion", "loop_convert_fusion", "", COMPUTE),
    ("input_reduce_fusion.1", "", "", COMPUTE),
    ("loop_dynamic_update_slice_fusion", "", "", COMPUTE),
    ("wrapped_copy", "", "", COPIES),
    ("copy_add_fusion", "", "", COMPUTE),
    ("dot_general.5", "", "", MATMULS),
    ("convolution.1", "", "", MATMULS),
    ("ynn_fusion.29", "", "", MATMULS),
)  # fmt: skip


@pytest.mark.parametrize(("name", "text", "category", "expected"), NAMED)
def test_kinds_of_operations(name, text, category, expected):
    named = op(name, 0, 1, text=text, category=category)
    if expected in NONE:
        assert (part_of(named), collective_kind(named)) == (expected, "")
    else:
        assert (part_of(named), collective_kind(named)) == (COLLECTIVES, expected)


# A trace of a TPU: what is the same for all events of an operation stands apart from them.
ON_TPU = """
planes { id: 1 name: "/device:TPU:0"
 lines { id: 1 name: "Steps" timestamp_ns: 1000 events { metadata_id: 9 duration_ps: 90000000 } }
 lines { id: 2 name: "XLA Modules" timestamp_ns: 1000
  events { metadata_id: 9 duration_ps: 90000000 } }
 lines { id: 3 name: "XLA Ops" timestamp_ns: 1000
  events { metadata_id: 1 offset_ps: 1000000 duration_ps: 5000000 }
  events { metadata_id: 1 offset_ps: 7000000 duration_ps: 5000000 } }
 lines { id: 4 name: "Async XLA Ops" timestamp_ns: 1000
  events { metadata_id: 2 offset_ps: 2000000 duration_ps: 8000000 } }
 event_metadata { key: 1 value { id: 1 name: "%fusion.1 = bf16[8]{0:T(128)} fusion(%copy.2)"
  display_name: "fusion.1" stats { metadata_id: 1 str_value: "convolution fusion" } } }
 event_metadata { key: 2 value { id: 2 name: "%all-gather-start.2 = bf16[] all-gather-start(%p)" } }
 event_metadata { key: 9 value { id: 9 name: "jit_train_step(123)" } }
 stat_metadata { key: 1 value { id: 1 name: "hlo_category" } } }
planes { id: 2 name: "/device:TPU:0 SparseCore 0"
 lines { id: 1 name: "XLA Ops" events { metadata_id: 1 duration_ps: 5000000 } }
 event_metadata { key: 1 value { id: 1 name: "sparse" } } }
planes { id: 3 name: "/host:CPU"
 lines { id: 1 name: "python" timestamp_ns: 500
  events { metadata_id: 1 duration_ps: 20000000 stats { metadata_id: 1 str_value: "7" } }
  events { metadata_id: 2 offset_ps: 1000000 duration_ps: 300000 } }
 lines { id: 2 name: "a thread" events { metadata_id: 3 duration_ps: 1000
  stats { metadata_id: 2 str_value: "dot.1" } } }
 event_metadata { key: 1 value { id: 1 name: "align" } }
 event_metadata { key: 2 value { id: 2 name: "wait for input" } }
 event_metadata { key: 3 value { id: 3 name: "dot.1" } }
 stat_metadata { key: 1 value { id: 1 name: "step_num" } }
 stat_metadata { key: 2 value { id: 2 name: "hlo_op" } } }
"""
DETAILS_OF_TPU = [
    {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:TPU:0"}},
    {"ph": "M", "pid": 2, "name": "process_name", "args": {"name": "/host:CPU"}},
    {"ph": "X", "pid": 2, "name": "fusion.1", "args": {"hlo_category": "something else"}},
    {"ph": "X", "pid": 1, "name": "fusion.1", "args": {
        "hlo_category": "convolution fusion", "tf_op": "jit(train_step)/mlp/dot_general:"}},
]  # fmt: skip
ON_GPU = """
planes { id: 1 name: "/device:GPU:0"
 lines { id: 1 name: "Stream #13(Compute)" timestamp_ns: 1000
  events { metadata_id: 1 duration_ps: 4000000 stats { metadata_id: 1 str_value: "dot.5" }
   stats { metadata_id: 2 str_value: "jit_train_step" } } }
 lines { id: 2 name: "XLA Ops" timestamp_ns: 1000
  events { metadata_id: 2 duration_ps: 4000000 } }
 lines { id: 3 name: "Framework Ops" timestamp_ns: 1000
  events { metadata_id: 2 duration_ps: 4000000 } }
 event_metadata { key: 1 value { id: 1 name: "nvjet_tst_64x8" } }
 event_metadata { key: 2 value { id: 2 name: "dot.5" } }
 stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
 stat_metadata { key: 2 value { id: 2 name: "hlo_module" } } }
"""


def written(folder, text, details=None):
    """Writes a trace as JAX's profiler does, and returns its file."""
    file = folder / "plugins" / "profile" / "2026" / "host.xplane.pb"
    file.parent.mkdir(parents=True)
    file.write_bytes(ProfileData.text_proto_to_serialized_xspace(text))
    if details is not None:
        beside = file.with_name("host.trace.json.gz")
        beside.write_bytes(gzip.compress(json.dumps({"traceEvents": details}).encode()))
    return file


def test_trace_of_a_tpu(tmp_path):
    """The TensorCore's operations count; categories come from the file beside the trace."""
    trace = read_trace(written(tmp_path, ON_TPU, DETAILS_OF_TPU))
    assert [(o.name, o.category, o.origin, o.start, o.end) for o in trace.ops] == [
        ("fusion.1", "convolution fusion", "jit(train_step)/mlp/dot_general", 2000, 7000),
        ("fusion.1", "convolution fusion", "jit(train_step)/mlp/dot_general", 8000, 13000),
        ("all-gather-start.2", "", "", 3000, 11000),
    ]
    assert trace.steps == (Step("align", 7, 500, 20500),)
    assert trace.waits == ((1500, 1800),)
    # In 20 µs: products for 10, and the all-gather beside them but for 1.
    found = summarise([trace])
    assert found.shares == pytest.approx(NONE | {MATMULS: 0.5, COLLECTIVES: 0.05, IDLE: 0.45})
    assert found.hidden == pytest.approx(0.35)


@pytest.mark.parametrize("beside", [None, b"", b"no gzip", gzip.compress(b"no JSON", mtime=0)])
def test_trace_without_its_details(tmp_path, beside):
    file = written(tmp_path, ON_TPU)
    if beside is not None:
        file.with_name("host.trace.json.gz").write_bytes(beside)
    trace = read_trace(file)
    assert [o.category for o in trace.ops] == ["", "", ""]
    assert summarise([trace]).shares == pytest.approx(
        NONE | {COMPUTE: 0.5, COLLECTIVES: 0.05, IDLE: 0.45}
    )


def test_trace_of_a_gpu(tmp_path):
    """Kernels are on streams; the other lines of the plane repeat them."""
    (kernel,) = read_trace(written(tmp_path, ON_GPU)).ops
    assert (kernel.name, kernel.text, kernel.origin) == (
        "dot.5",
        "nvjet_tst_64x8",
        "jit_train_step",
    )
    assert part_of(kernel) == MATMULS


def test_kernels_of_a_recorded_graph(tmp_path):
    """As an H100 wrote it: all kernels of a CUDA graph have the graph's name and no origin."""
    kernel_name = "nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_NNT"
    text = ON_GPU.replace('"dot.5" }\n', '"command_buffer_1" } stats { metadata_id: 3\n'
                          '    str_value: "XlaModule:" }\n', 1)  # fmt: skip
    text = text.replace("nvjet_tst_64x8", kernel_name).rstrip().removesuffix("}")
    text += '\n stat_metadata { key: 3 value { id: 3 name: "tf_op" } } }\n'
    (kernel,) = read_trace(written(tmp_path, text)).ops
    assert (kernel.name, kernel.origin) == (kernel_name, "jit_train_step")
    assert part_of(kernel) == MATMULS


def test_files(tmp_path):
    """The newest trace below a folder, and one clear error where there is none."""
    with pytest.raises(DataError, match="holds no trace"):
        trace_files(tmp_path)
    file = written(tmp_path, ON_TPU)
    assert trace_files(tmp_path) == trace_files(file.parent) == [file]
    file.write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"host\.xplane\.pb: not a trace"):
        read_trace(file)


def test_trace_that_jax_takes(tmp_path, capsys):
    """A step over eight devices: a product, then an all-reduce, of which JAX tells the names."""
    mesh = jax.make_mesh((8,), ("x",))
    place = jax.NamedSharding(mesh, P("x"))

    def step(x):
        return jax.lax.psum(x @ x.T, "x")

    step = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P("x"), out_specs=P()))
    x = jax.device_put(jnp.ones((64, 32)), place)
    step(x).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        for number in (4, 5):
            with jax.profiler.StepTraceAnnotation("mine", step_num=number):
                with jax.profiler.TraceAnnotation("wait for input"):
                    pass
                step(x).block_until_ready()
    main(["profile", str(tmp_path)])
    printed = capsys.readouterr().out
    (file,) = trace_files(tmp_path)
    trace = read_trace(file)
    assert [(s.name, s.number) for s in trace.steps] == [("mine", 4), ("mine", 5)]
    assert len(trace.waits) == 2
    found = summarise([trace])
    assert printed == trace_table(found) + "\n"
    assert printed.startswith("profile of mine, steps 4 to 5: ")
    assert (found.devices, found.steps) == (8, 2)
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares[MATMULS] > 0
    assert list(found.collectives) == ["all-reduce"]
    reduced = [op for op in found.ops if op.part == COLLECTIVES]
    assert sum(op.count for op in reduced) == 16
    assert 0 < found.waiting < 1


def test_table():
    """It is short, and names from a trace cannot do anything to the terminal."""
    hostile = "\x1b[2J\n" + "x" * 200
    ops = tuple(op(f"{n}{hostile}", n * 10, n * 10 + 9) for n in range(30))
    ops += (op("all-gather.1", 500, 600), op("reduce-scatter.1", 500, 600))
    found = summarise([Trace(ops, (Step(hostile, 1, 0, 1000),))])
    lines = trace_table(found).split("\n")
    assert len(lines) <= 20
    assert max(map(len, lines)) < 120
    assert "".join(lines).isprintable()
    assert "all-gather 10.0%, reduce-scatter" not in lines[5]
    assert lines[4].startswith("  collectives alone   10.0%")
    assert "reduce-scatter 10.0%, all-gather 10.0%" in lines[4]
    assert len(found.ops) == 10


def test_summary_as_json():
    """What is stored is read back as it was."""
    found = summarise([Trace((op("dot.1", 0, 9),), (Step("align", 1, 0, 10),), ((1, 2),))])
    stored = json.loads(json.dumps(dataclasses.asdict(found)))
    assert Summary.from_json(stored) == found
