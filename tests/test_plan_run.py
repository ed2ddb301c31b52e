"""The planner on GPUs, and of whole runs: every number against one computed by hand."""

import csv
import dataclasses
import functools
import importlib.util
import math
import re

import numpy as np
import pytest

from seva_jax.batches.trees import RowShape
from seva_jax.config import Evaluation, RolloutOptions, TrainOptions
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.images import ImageProcessing
from seva_jax.inference.prefill_shapes import PrefillShape
from seva_jax.models import LLAVA_15, CacheKind, LoraConfig
from seva_jax.plan import __main__ as command
from seva_jax.plan import estimate, options
from seva_jax.plan.answering import padded_prompt
from seva_jax.plan.chips import CHIPS, GPUS, Chip, Efficiency, Topology
from seva_jax.plan.estimate import plan_rollout, plan_step
from seva_jax.plan.hlo import collective_bytes
from seva_jax.plan.roofline import Work, slowed
from seva_jax.plan.whole_run import Stage
from seva_jax.sharding import MeshShape
from seva_jax.text import Sampling
from seva_jax.types import DataError

H100 = GPUS["h100"]
GIB = 2**30

# LLaVA-1.5-7B: 32 layers of width 4096, MLP 11008, vocabulary 32064; tower of 23 layers of 1024.
LAYER = 4 * 4096**2 + 3 * 4096 * 11008
CACHED_TOKEN = 32 * 2 * 32 * 128 * 2  # bytes in bfloat16
READ = 2 * (
    32 * (LAYER + 2 * 4096) + 4096 + 4096 * 32064
)  # bytes: layers with norms, last norm, head

# Operations of a forward pass over a pair: 1 + 576 + 64 + 2 x 100 tokens, rounded up to 896.
TOWER = 23 * (2 * 577 * (4 * 1024**2 + 2 * 1024 * 4096) + 4 * 577**2 * 1024) + 2 * 576 * 588 * 1024
PROJECTOR = 2 * 576 * (1024 * 4096 + 4096**2)
ATTENTION = 32 * 4 * 4096 * 128 * sum(128 * k for k in range(1, 8))
LANGUAGE = PROJECTOR + 2 * 896 * 32 * LAYER + ATTENTION + 2 * 200 * 4096 * 32064


def close(found, expected, tolerance=1e-6):
    """Returns whether two numbers are equal, up to a share of the second."""
    return math.isclose(found, expected, rel_tol=tolerance)


@functools.cache
def published(**changes):
    """Returns the published run with changed fields."""
    run = read_config(config_directory() / "llava15_7b_seva.py")
    return dataclasses.replace(run, **changes)


def pairs_on_an_h100(pairs, remat):
    """Plans steps as they were measured: LoRA r = 128, 576 + 64 + 2 x 128 tokens."""
    run = published(lora=LoraConfig(128, 256.0), train=TrainOptions(batch_size=pairs))
    run = dataclasses.replace(run, compute=dataclasses.replace(run.compute, remat=remat))
    return plan_step(run, LLAVA_15["7b"], "h100:1", RowShape(896, 1, 2, 128, 1, 256), False)


def rows_on_an_h100(rows, cache: CacheKind = "exact"):
    """Plans answers as they were measured: all rows at once, 640 tokens and 128 new ones."""
    rollout = RolloutOptions(Sampling(max_new_tokens=128), rows, 1, cache)
    run = published(corrupt=(), rollout=rollout)
    return plan_rollout(run, LLAVA_15["7b"], "h100:1", PrefillShape(640, 1), False).layout


def test_what_the_cards_are():
    """Data sheets: dense bfloat16 operations, HBM, NVLink in one direction; 0.92 of the memory."""
    a100, hopper = (312e12, 300e9), (989e12, 450e9)
    for name, gib, hbm, (flops, nvlink) in (
        ("h100", 80, 3.35e12, hopper),
        ("h200", 141, 4.8e12, hopper),
        ("a100-80", 80, 2.039e12, a100),
        ("a100-40", 40, 1.555e12, a100),
    ):
        card = GPUS[name]
        assert (card.hbm, card.flops, card.ici) == (hbm, flops, nvlink)
        assert 0.97 * gib < card.hbm_gib / 0.92 < gib


def test_names_of_cards():
    assert Topology.parse("h100") == Topology.parse("h100:1")
    eight = Topology.parse("a100-40:8")
    assert (eight.kind, eight.num_chips, eight.is_gpu) == ("a100-40", 8, True)
    mesh = MeshShape(2, 2, 2).make(eight.stand_ins())
    assert mesh.shape == {"data": 2, "fsdp": 2, "tensor": 2}
    for wrong in ("a100:1", "h100:9", "h100:0", "h100:2x2", "2xh100:8"):
        with pytest.raises(DataError, match="GPU of h100, h200, a100-80, a100-40, up to 8 in one"):
            Topology.parse(wrong)


@pytest.mark.parametrize("tensor", [1, 4])
def test_a_token_step(tensor):
    """The weights but the embedding and all positions of all caches are read once."""
    run = published(rollout=RolloutOptions(Sampling(max_new_tokens=128), 64, tensor=tensor))
    layout = plan_rollout(run, LLAVA_15["7b"], "h100:4", PrefillShape(640, 1), False).layout
    assert (layout.data, layout.tensor, layout.rows, layout.fresh) == (4 // tensor, tensor, 64, 16)
    rows = 64 * tensor // 4
    norms = 2 * 4096 * 65  # whole on every card
    assert close(layout.token.hbm, (READ - norms + rows * 768 * CACHED_TOKEN) / tensor + norms)
    attention = 4 * 768 * 4096 * 32
    each = 2 * (32 * LAYER + 4096 * 32064) + attention
    assert close(layout.token.flops, rows * each / tensor)
    # Two all-reduces a layer of [rows, 4096] in bfloat16, each sending 2 (t - 1) / t of it.
    assert close(layout.token.sent, 64 * rows * 4096 * 2 * 2 * (tensor - 1) / tensor)
    assert layout.token.binds(H100) == "HBM"


def test_prefill():
    """Its operations: tower, projector, layers, causal attention in blocks of 128, one logit."""
    layout = rows_on_an_h100(64)
    attention = 32 * 4 * 4096 * 128 * sum(128 * k for k in range(1, 6))
    row = TOWER + PROJECTOR + 2 * 640 * 32 * LAYER + attention + 2 * 4096 * 32064
    assert close(layout.prefill.flops, 64 * row)
    assert layout.prefill.binds(H100) == "compute"


@pytest.mark.parametrize("rows", [2, 32])
def test_rows_that_fit(rows):
    """From few rows as from many: with one prompt more, memory would exceed 0.92 of the card."""
    run = published(rollout=RolloutOptions(Sampling(max_new_tokens=512), rows))
    planned = plan_rollout(run, LLAVA_15["7b"], "h100:1", PrefillShape(672, 1), False)
    most = planned.rows_that_fit
    # At least the caches and the layers must fit, which are then there in one form.
    assert most * 1184 * CACHED_TOKEN + 2 * 32 * LAYER < H100.hbm_gib * GIB
    for number, fits in ((most // 8 * 8, True), (most + 8, False)):
        more = dataclasses.replace(run, rollout=dataclasses.replace(run.rollout, batch_size=number))
        again = plan_rollout(more, LLAVA_15["7b"], "h100:1", PrefillShape(672, 1), False)
        assert again.memory.fits == fits, number


def test_one_chip_without_room_for_both_forms():
    """7 billion weights in bfloat16 and two rows take 14 GiB of the 15.75 GiB of a v5e."""
    run = published(rollout=RolloutOptions(Sampling(max_new_tokens=128), 2))
    small = plan_rollout(run, LLAVA_15["7b"], "v5e:1x1", PrefillShape(672, 1), False)
    large = plan_rollout(run, LLAVA_15["7b"], "h100:1", PrefillShape(672, 1), False)
    layers = 2 * 32 * (LAYER + 2 * 4096)
    assert close(large.layout.resident - small.layout.resident, layers)
    assert close(large.memory.needed - small.memory.needed, layers)
    assert close(small.layout.weights, layers)
    assert small.memory.fits
    assert 2 * layers > CHIPS["v5e"].hbm_gib * GIB
    assert 1.5 * layers > small.memory.needed > layers + 2 * 800 * CACHED_TOKEN


@pytest.mark.parametrize(
    ("pairs", "remat", "peak"),
    [(8, "layers", 23.8), (4, "layers", 21.8), (8, "none", 69.9)],
)
def test_memory_that_was_measured(pairs, remat, peak):
    """Within 6 % of the peak on an H100, GiB."""
    assert close(pairs_on_an_h100(pairs, remat).memory.needed / GIB, peak, 0.06)


def test_what_a_gpu_keeps():
    """Arguments: 7.06 billion frozen weights in bfloat16, adapters three times in float32."""
    adapters = 128 * 32 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    projector = 1024 * 4096 + 4096 + 4096**2 + 4096
    tower = 1024 * (588 + 577 + 1 + 2) + 23 * (4 * (1024**2 + 1024) + 2 * 1024 * 4096 + 4096 + 5120)
    language = 32 * (LAYER + 2 * 4096) + 4096 + 2 * 4096 * 32064
    arguments = 2 * (language + tower) + 3 * 4 * (adapters + projector)
    assert close(pairs_on_an_h100(8, "layers").memory.arguments, arguments)


def test_remat_auto():
    """It is the cheapest kind that fits the card."""
    assert pairs_on_an_h100(8, "auto").remat == "matmuls"  # none needs 98 % of what it may have
    assert pairs_on_an_h100(4, "auto").remat == "none"
    assert pairs_on_an_h100(64, "auto").remat == "layers"


def test_measured_rates_give_the_measured_times():
    """Steps of 8 pairs, with remat layers and matmuls; 64 rows; 32 rows with the int8 cache."""

    def seconds(work, kind):
        slower = slowed(H100, kind)
        assert slower
        return work.seconds(slower)

    step = pairs_on_an_h100(8, "layers").work
    assert close(seconds(step, "training"), 0.582, 0.01)
    step = pairs_on_an_h100(8, "matmuls").work
    assert close(seconds(step, "training_kept"), 0.506, 0.01)
    rows = rows_on_an_h100(64)
    assert close(seconds(rows.prefill, "forward"), 1.072, 0.01)
    assert close(seconds(rows.token, rows.kind), 0.0263, 0.01)
    rows = rows_on_an_h100(32, "int8")
    assert close(seconds(rows.token, rows.kind), 0.0194, 0.01)
    assert slowed(GPUS["h200"], "training") is None


def test_rooflines():
    """The longest limit binds; a stage adds the longest limits of its parts."""
    chip = Chip(
        1, flops=10, hbm=5, ici=2, network="wire", measured=Efficiency(0.5, 0.4, 0.25, 0.2, 0.1, "")
    )
    work = Work(flops=20, hbm=5, sent=1)
    assert work.limits(chip) == {"compute": 2, "HBM": 1, "wire": 0.5}
    assert (work.binds(chip), work.seconds(chip)) == ("compute", 2)
    assert work * 2 + work == Work(60, 15, 3)
    stage = Stage("x", "", (("forward", work), ("decoding", Work(0, 10, 0))))
    assert stage.seconds(chip) == 2 + 2
    assert stage.measured_seconds(chip) == 2 / 0.25 + 2 / 0.2
    assert Stage("x", "", (("training", work),)).measured_seconds(CHIPS["v5e"]) is None


@functools.cache
def planned(topology, *arguments):
    """Returns the plan of the published run with 100 tokens an answer."""
    argv = ("--topology", topology, "--answer", "100", *arguments)
    seen = []
    saved = command.describe
    command.describe = lambda row: seen.append(row) or saved(row)
    try:
        command.main(["--config", str(config_directory() / "llava15_7b_seva.py"), *argv])
    finally:
        command.describe = saved
    (row,) = seen
    return row


def minutes(row):
    """Returns the minutes of each stage, by name."""
    return {stage.name: stage.seconds(row.plan.chip) / 60 for stage in row.plan.stages}


ONE_CARD = ("--lora.rank", "128", "--train.micro-batches", "16", "--compute.remat", "layers")


def test_a_whole_run_on_one_card(capsys):
    """Rollouts, reference, training and evaluation of 16,000 prompts and 10,800 pairs."""
    planned.cache_clear()
    row = planned("h100:1", *ONE_CARD)
    shown = capsys.readouterr().out
    found = minutes(row)
    assert list(found) == ["rollouts", "reference", "training", "evaluation"]
    # 64 rows, of which 16 are refilled together: 56 are busy on average.
    step = (READ + 64 * 1184 * CACHED_TOKEN) / H100.hbm
    prefill = row.plan.rollout.layout.prefill.flops / H100.flops
    assert close(found["rollouts"] * 60, 32000 * 100 / 56 * step + 32000 / 16 * prefill)
    # 10,800 pairs, each twice, in batches of 128: 168.75 steps.
    executed = row.plan.step.hardware_flops
    assert close(found["training"] * 60, 169 * executed / H100.flops)
    assert close(found["reference"] * 60, 10800 * (TOWER + LANGUAGE) / H100.flops)
    # 9,000 questions of each model are 18,000 prefills; the second time with adapters.
    asked = math.ceil(9000 / 16) * prefill
    assert 2 * asked < found["evaluation"] * 60 < 2.5 * asked
    total = sum(found.values())
    assert close(row.chip_hours, total / 60)
    assert f"  whole run   {total:.1f} min, {total / 60:.1f} chip-hours, at least: " in shown
    assert "training    " in shown
    assert "169 steps of 128 pairs" in shown
    assert "NVLink" not in shown  # one card has no network
    assert re.search(
        r"measured +[\d.]+ min .* at the rates measured on an H100, commit 40defb9", shown
    )


def test_the_targets_on_one_card():
    """45 minutes with r = 128, 60 with r = 1024: the lower bounds at peak rates are below."""
    narrow = planned("h100:1", *ONE_CARD)
    assert sum(minutes(narrow).values()) < 45
    wide = planned("h100:1", "--train.micro-batches", "16")
    assert sum(minutes(wide).values()) < 60
    assert narrow.plan.fits
    assert wide.plan.fits


def test_the_targets_on_slices():
    """16,000 prompts on v5e-16 in 10 minutes, the whole of SeVa-7B on v5e-64 in 8, at least.

    In the layout that the run chooses by itself.
    """
    small = planned("v5e:4x4", "--fsdp", "16", "--no-compile")
    assert small.plan.fits
    assert small.plan.rollout.layout.tensor == 8
    assert minutes(small)["rollouts"] < 10
    large = planned("v5e:8x8", "--fsdp", "64", "--no-compile")
    assert large.plan.fits
    assert large.plan.rollout.layout.tensor == 16
    assert sum(minutes(large).values()) < 8


def test_cards_side_by_side(capsys, tmp_path):
    """A sweep over how prompts are answered: the same step, other rollouts."""
    file = tmp_path / "plan.csv"
    command.main([
        *("--config", str(config_directory() / "llava15_7b_seva.py"), "--topology", "h100:8"),
        *("--fsdp", "8", "--rollout-tensor", "1", "4", "3", "--rows", "64", "256"),
        *("--csv", str(file), "--html", str(tmp_path / "plan.html")),
    ])  # fmt: skip
    shown = capsys.readouterr().out
    assert shown.count("Left out: ") == 2
    assert "rollout.tensor 3" in shown
    rows = list(csv.DictReader(file.read_text().splitlines()))
    layouts = [(row["answering data x tensor"], row["rows"]) for row in rows]
    assert layouts == [("8 x 1", "64"), ("8 x 1", "256"), ("2 x 4", "64"), ("2 x 4", "256")]
    assert len({row["s/step"] for row in rows}) == 1
    best = min(rows, key=lambda row: float(row["whole run min"]))
    assert f"answering {best['answering data x tensor']} with {best['rows']} rows" in shown
    page = (tmp_path / "plan.html").read_text()
    assert page.count('<figure class="chart">') == 5
    assert "libtpu" not in page.split("</h1>")[1][:300]


def test_no_card_needs_libtpu(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    planned.cache_clear()
    planned("h200:1", *ONE_CARD)
    shown = capsys.readouterr().out
    assert "counted from shapes" in shown
    assert "  measured" not in shown  # nothing was measured on an H200


def test_parts_that_are_not_planned(capsys):
    """Pairs with answers need no rollouts, and --no-rollout plans neither these nor evaluations."""
    planned.cache_clear()
    row = planned("h100:1", *ONE_CARD, "--no-rollout")
    assert list(minutes(row)) == ["reference", "training"]
    row = planned("h100:1", *ONE_CARD, "--train.reference", "in_step", "--eval-questions", "0")
    assert list(minutes(row)) == ["rollouts", "training"]
    # The step then has the reference's forward pass, but for the tower.
    plain = planned("h100:1", *ONE_CARD).plan.step.hardware_flops
    assert close(row.plan.step.hardware_flops - plain, 128 * LANGUAGE)
    pairs = read_config(config_directory() / "povid.py")
    assert pairs.prompts.has_answers
    wanted = options.PlanOptions(("h200:1",))
    variant, *_ = options.variants(pairs, wanted)
    stages = [stage.name for stage in options.plan_variant(variant, wanted).stages]
    assert stages == ["reference", "training", "evaluation"]


def test_evaluations_of_a_run_must_fit():
    """With adapters of rank 1024, 120 rows are too many for the card."""
    options_of_run = ("--train.micro-batches", "16", "--compute.remat", "layers")
    short = ("--rollout.sampling.max-new-tokens", "16", "--rows", "120")
    row = planned("h100:1", *options_of_run, *short)
    assert row.plan.fits
    assert not row.plan.rollout.evaluation_fits
    run = published(
        evals=(Evaluation(),),
        train=TrainOptions(micro_batches=16),
        rollout=RolloutOptions(Sampling(max_new_tokens=16), 120),
    )
    wanted = options.PlanOptions(("h100:1",))
    image = options.image_layout(ImageProcessing(), LLAVA_15["7b"], wanted.image)
    with_evals = estimate.plan(
        run, LLAVA_15["7b"], "h100:1", options.row_shape(image, wanted, 2), wanted.amounts,
        padded_prompt(image, 64),
    )  # fmt: skip
    assert not with_evals.fits
    assert not with_evals.stages


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fsdp", "x"), r"error: --fsdp: .*\n.*--help lists all options\n"),
        (("--rows", "0"), r"error: --rows must be at least 1, not 0\n"),
        (("--answer", "-3"), r"error: --answer must be at least 1, not -3\n"),
        (("--size", "70b"), r"error: invalid choice '70b' .*\n.*--help lists all options\n"),
    ],
)
def test_values_that_cannot_be(words, message, capsys):
    """They give one plain line, as those of the other commands do."""
    with pytest.raises(SystemExit) as stopped:
        command.main(["--topology", "h100:1", *words])
    said = capsys.readouterr().err
    if isinstance(stopped.value.code, str):
        said += stopped.value.code + "\n"
    assert re.fullmatch(message, said), said


def test_loops_of_unknown_length():
    """What a loop sends that ends at run time counts as often as is asked."""
    lines = """
HloModule m

%cond (p: (u32[], f32[4])) -> pred[] {
  %p = (u32[], f32[4]{0}) parameter(0)
  ROOT %c = pred[] custom-call(%p)
}

%body (p: (u32[], f32[4])) -> (u32[], f32[4]) {
  %p.1 = (u32[], f32[4]{0}) parameter(0)
  %x = f32[4]{0} get-tuple-element(%p.1), index=1
  %r = f32[4]{0} all-reduce(%x), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %t = (u32[], f32[4]{0}) tuple(%n, %r)
}

ENTRY %main (a: f32[4]) -> f32[4] {
  %a = f32[4]{0} parameter(0)
  %g = f32[4]{0} all-gather(%a), channel_id=2, replica_groups=[1,4]<=[4]
  %w = (u32[], f32[4]{0}) while(%tuple), condition=%cond, body=%body
  ROOT %o = f32[4]{0} get-tuple-element(%w), index=1
}
"""
    outside, once = 16 * 3 / 4, 16 * 2 * 3 / 4
    sums = [sum(collective_bytes(lines, trips).values()) for trips in (0, 1, 7)]
    np.testing.assert_allclose(sums, [outside, outside + once, outside + 7 * once])
