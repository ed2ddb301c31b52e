"""The planner: operations, loops and collectives are counted right; what it refuses."""

import csv
import dataclasses
import importlib.util
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers_devices import mesh_of
from helpers_plan import SHAPE, experiment
from jax.sharding import NamedSharding, PartitionSpec
from tiny_models import PLANNED

from seva_jax.batches.trees import RowShape
from seva_jax.config.command_line import load_experiment
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.config.experiment import check
from seva_jax.images import ImageProcessing
from seva_jax.inference.prefill_shapes import PrefillShape
from seva_jax.models import LlavaConfig
from seva_jax.plan.__main__ import main
from seva_jax.plan.chips import Topology
from seva_jax.plan.hlo import collective_bytes
from seva_jax.plan.options import PlanOptions, image_layout, row_shape, variants
from seva_jax.plan.program import lower_rollout, lower_step
from seva_jax.plan.table import describe
from seva_jax.sharding import MeshShape
from seva_jax.text.sampling import Sampling
from seva_jax.training.flops import forward, hardware_flops
from seva_jax.types import DataError


# Not adapters alone: the only layer's input then needs no gradient, and XLA drops part of the work.
@pytest.mark.parametrize(
    ("trained", "remat"),
    [
        (("lora", "projector"), "none"),
        (("lora", "projector"), "layers"),
        (("lora", "projector"), "matmuls"),
        (("language", "projector"), "none"),
        (("language", "projector"), "layers"),
        (("language", "vision"), "none"),
        (("language", "vision"), "layers"),
    ],
)
def test_operations_agree_with_xla(trained, remat):
    """They agree within 2 %, as XLA also counts norms, softmax and the optimiser."""
    e = experiment(trained, remat)
    compiled = lower_step(e, PLANNED, mesh_of(1, 1, 1), SHAPE).compile()
    analysis = compiled.cost_analysis()
    found = (analysis[0] if isinstance(analysis, list) else analysis)["flops"]
    expected = 4 * hardware_flops(forward(PLANNED, e.lora, SHAPE), trained, remat)
    assert abs(found / expected - 1) < 0.02, (found / expected, trained, remat)


def test_planned_memory_is_what_arrays_take():
    """The planned argument bytes of a device are those of real arrays on eight of them."""
    lowered = lower_step(experiment(), PLANNED, mesh_of(2, 2, 2), SHAPE)
    compiled = lowered.compile()
    memory = compiled.memory_analysis()
    assert memory is not None
    real = jax.tree.map(
        lambda x, sharding: jax.device_put(np.zeros(x.shape, x.dtype), sharding),
        lowered.args_info[0],
        compiled.input_shardings[0],
        is_leaf=lambda x: hasattr(x, "donated"),
    )

    def on_first(tree):
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == jax.devices()[0])

    # What this objective does not ask for, the step does not read, and XLA drops it.
    unread = on_first([real[2].index_BC, real[2].scores_BCK, real[2].spans_BCKT])
    assert 0 <= on_first(real) - memory.argument_size_in_bytes <= unread


def test_collectives_of_loops():
    """A gather in a scan of seven, inside a scan of three, counts twenty-one times."""
    devices = mesh_of(1, 8, 1)
    row = NamedSharding(devices, PartitionSpec("fsdp"))
    everywhere = NamedSharding(devices, PartitionSpec())

    def gathered(x, w):
        w = jax.lax.with_sharding_constraint(w, everywhere)  # an all-gather
        return jnp.tanh(x @ w), None

    def several(x, w):
        return jax.lax.scan(lambda x, _: (jax.lax.scan(gathered, x, w)[0], None), x, None, length=3)

    split = NamedSharding(devices, PartitionSpec(None, "fsdp"))
    x = jax.ShapeDtypeStruct((8, 64), jnp.float32, sharding=row)
    w = jax.ShapeDtypeStruct((7, 64, 64), jnp.float32, sharding=split)
    text = jax.jit(several).lower(x, w).compile().as_text()
    found = collective_bytes(text)
    assert found == {"all-gather": 21 * 64 * 64 * 4 * 7 / 8}


@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_no_activation_is_replicated(sizes, capfd):
    """XLA warns where it finds no other way from one layout to the next."""
    eight = dataclasses.replace(
        PLANNED, text=dataclasses.replace(PLANNED.text, num_heads=8, num_kv_heads=8),
        vision=dataclasses.replace(PLANNED.vision, num_heads=8),
    )  # fmt: skip
    lower_step(experiment(), eight, mesh_of(*sizes), SHAPE).compile()
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


def test_kinds_and_groups():
    """They are read from lines as different compilers write them."""
    lines = """
HloModule m

%cond (p: (u32[], f32[4])) -> pred[] {
  %p = (u32[], f32[4]{0}) parameter(0)
  %limit = u32[] constant(8)
  %i = u32[] get-tuple-element(%p), index=0
  ROOT %c = pred[] compare(%i, %limit), direction=LT
}

%body (p: (u32[], f32[4])) -> (u32[], f32[4]) {
  %p.1 = (u32[], f32[4]{0}) parameter(0)
  %i.1 = u32[] get-tuple-element(%p.1), index=0
  %x = f32[4]{0} get-tuple-element(%p.1), index=1
  %two = u32[] constant(2)
  %next = u32[] add(%i.1, %two)
  %k = f32[4]{0} custom-call(%x), frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="kernel"}
  %s = (f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=1
  %d = f32[4]{0} collective-permute-done(%s)
  ROOT %t = (u32[], f32[4]{0}) tuple(%next, %d)
}

%all-reduce-scatter.1 (input: f32[8]) -> f32[2] {
  %input = f32[8]{0} parameter(0)
  %whole = f32[8]{0} all-reduce(%input), channel_id=5, replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %part = f32[2]{0} dynamic-slice(%whole, %i), dynamic_slice_sizes={2}
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %f = f32[2]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1
  %r = f32[4]{0} all-reduce(%a), channel_id=2, replica_groups=[2,4]<=[8], to_apply=%add
  %q = bf16[2]{0} reduce-scatter(%r), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
  %g = bf16[8]{0} all-gather(%q), channel_id=4, replica_groups=mesh['a'=2, 'b'=4] {'b'}
  %h = bf16[8]{0} all-gather(%q), replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}
  %w = (u32[], f32[4]{0}) while(%tuple), condition=%cond, body=%body
  ROOT %o = f32[4]{0} get-tuple-element(%w), index=1
}
"""
    assert collective_bytes(lines) == {
        "all-reduce": 2 * 16 * 3 / 4,
        "reduce-scatter": 4 + 32 * 3 / 4,
        "all-gather": 16 * 3 / 4 + 16 / 2,
        "collective-permute": 4 * 16,  # 0, 2, 4, 6
    }
    with pytest.warns(UserWarning, match="how often a loop runs cannot be read"):
        collective_bytes(lines.replace("direction=LT", "direction=NE"))


def test_rollouts_lower():
    """Prefill and decode can be lowered for a mesh."""
    e = dataclasses.replace(experiment(), rollout=dataclasses.replace(
        experiment().rollout, sampling=Sampling(4), batch_size=8))  # fmt: skip
    for program in lower_rollout(e, PLANNED, mesh_of(2, 2, 2), PrefillShape(64, 2)):
        memory = program.compile().memory_analysis()
        assert memory is not None
        assert memory.argument_size_in_bytes > 0


def test_published_config_shapes():
    """The published run has 576 image tokens and two answers, rounded up."""
    options = PlanOptions(topology=("v5e:4x4",))
    image = image_layout(ImageProcessing(), LlavaConfig(), options.image)
    assert row_shape(image, options, 2) == RowShape(960, 1, 2, 128, 1, 256)
    e = read_config(config_directory() / "llava15_7b_seva.py")
    options = PlanOptions(("v5e:4x4", "v5e:8x8"), fsdp=(8, 16), batch=(64, 128))
    found = variants(e, options)
    assert len(found) == 8
    assert found[-1].topology == "v5e:8x8"
    assert found[-1].name == "7b LoRA r=1024"
    assert found[-1].experiment.mesh == MeshShape(-1, 16, e.mesh.tensor)
    assert found[-1].experiment.train.batch_size == 128
    full = variants(e, PlanOptions(("v5e:4x4",), size=("7b", "13b"), tune=("config", "full")))
    assert [v.name for v in full] == ["7b LoRA r=1024", "7b full", "13b LoRA r=1024", "13b full"]
    assert full[3].config.text.num_layers == 40
    assert full[3].experiment.lora.rank == 0
    check(full[3].experiment)


@pytest.mark.parametrize(
    "topology", ["v5e", "v5e:", "v9:2x2", "8x8", "v5e:2x", "0xv5e:2x2", "2x:2x2"]
)
def test_topologies_that_do_not_exist(topology):
    with pytest.raises(DataError, match="for example v5e:4x4"):
        Topology.parse(topology)
    with pytest.raises(SystemExit, match="error: topology"):
        main(["--topology", topology])


def test_libtpu_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'seva_jax\[tpu\]'"):
        Topology.parse("v5e:2x2").devices()


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="compiles for TPUs with libtpu"
)


@needs_libtpu
def test_a_slice_that_libtpu_does_not_know():
    with pytest.raises(DataError, match="libtpu knows no such slice; the nearest is v5e:4x4"):
        Topology.parse("v5e:3x5").devices()
    with pytest.raises(DataError, match="the nearest is v5p:2x2x2"):
        Topology.parse("v5p:3x3x1").devices()


@needs_libtpu
def test_only_data_spans_slices():
    """With two slices, every fsdp group is within one of them."""
    devices = Topology.parse("2xv5e:4x4").devices()
    assert len(devices) == 32
    found = MeshShape(fsdp=8, tensor=2).make(devices)
    assert dict(found.shape) == {"data": 2, "fsdp": 8, "tensor": 2}
    slices = [{d.slice_index for d in row.flat} for row in found.devices]
    assert slices == [{0}, {1}]
    with pytest.raises(DataError, match="data 1 is not a multiple of the 2 slices"):
        MeshShape(fsdp=32).make(devices)


@needs_libtpu
def test_libtpu_knows_the_preset():
    """An unknown flag would end the process as soon as libtpu is loaded."""
    code = (
        "from seva_jax.runtime.processes import ProcessOptions, set_libtpu_flags\n"
        "from seva_jax.plan.chips import Topology\n"
        "set_libtpu_flags(ProcessOptions(libtpu_flags='overlap'))\n"
        "print(len(Topology.parse('v5e:2x2').devices()))"
    )
    for extra, expected in (("", 0), ("--xla_no_such_flag=1", 1)):
        env = os.environ | {"LIBTPU_INIT_ARGS": extra, "JAX_PLATFORMS": "cpu"}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
        )
        assert (done.returncode != 0) == expected, done.stderr
        assert expected or done.stdout.strip() == "4"


@needs_libtpu
@pytest.mark.slow
def test_the_command(capsys, tmp_path, monkeypatch):
    """It plans the tiny model of the default run on two slices, and refuses some batches."""
    arguments = [
        "--size",
        "base",
        "--question",
        "20",
        "--answer",
        "8",
        "--base.vocab-multiple",
        "8",
    ]
    file = tmp_path / "plan.csv"
    planned = []
    monkeypatch.setattr(
        "seva_jax.plan.__main__.describe", lambda row: planned.append(row) or describe(row)
    )
    main([
        *("--topology", "v5e:2x2", "v6e:2x2", "--fsdp", "2", "--tensor", "2", "16"),
        *("--rollout-tensor", "1", "2"),
        *("--csv", str(file), "--html", str(file.with_suffix(".html")), *arguments),
    ])  # fmt: skip
    shown = capsys.readouterr().out
    assert shown.count("those of compiled programs") == 4
    assert shown.count("Left out: ") == 4
    assert "fewest chip-hours that fit, base LoRA r=32: " in shown
    rows = list(csv.DictReader(file.read_text().splitlines()))
    assert [row["answering data x tensor"] for row in rows] == ["4 x 1", "2 x 2"] * 2
    assert {row["rollouts min"] for row in rows} != {"-"}
    # Where every chip has all weights, a token step only adds up how many rows are done, an int32.
    sent = [row.plan.rollout.layout.token.sent for row in planned]
    assert sent[::2] == [4 * 2 * 3 / 4] * 2
    assert min(sent[1::2]) > 1000
    page = file.with_suffix(".html").read_text()
    assert page.count('<figure class="chart">') == 5
    assert page.count("Left out: base LoRA r=32 on v") == 4
    assert "v6e:2x2" in page
    with pytest.raises(SystemExit, match=r"must be a multiple of 4 .* nearest is 8"):
        main(["--topology", "v5e:2x2", "--batch", "6", "--fsdp", "4", *arguments])
    with pytest.raises(SystemExit, match=r"needs (a multiple of )?16"):
        main(["--topology", "v5e:2x2", "--fsdp", "16", *arguments])
    load_experiment("test", [])  # and the command line of training is untouched
