"""What recipes say about themselves: commands that can be pasted, and the papers' numbers."""

import ast
import re
import shlex

import jax
import pytest

from seva_jax.config.command_line import load_experiments
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.config.rounds import runs_of
from seva_jax.config.source import flatten
from seva_jax.sharding import check_batch

ALL = sorted(config_directory().glob("*.py"))
COMMAND = re.compile(r"^ *python -m seva_jax\.train (.*(?:\\\n.*)*)", re.MULTILINE)
OPTIONS = re.compile(r"`(--[a-z][^`]*)`")


def said(path):
    """Returns the module docstring of a recipe."""
    return ast.get_docstring(ast.parse(path.read_text("utf-8")))


@pytest.mark.parametrize("path", ALL, ids=lambda p: p.stem)
def test_the_commands_of_a_recipe(path, monkeypatch):
    """There is one; it is accepted with every option named next to it, and fits eight devices."""
    monkeypatch.chdir(config_directory().parent)
    text = said(path)
    commands = [re.sub(r"\\\n", "", found) for found in COMMAND.findall(text)]
    assert commands
    further = [shlex.split(re.sub(r"\s+", " ", options)) for options in OPTIONS.findall(text)]
    for number, command in enumerate(commands):
        for more in [[], *further] if not number else [[]]:
            argv = [*shlex.split(command, comments=True), *more]
            assert argv[:2] == ["--config", f"configs/{path.name}"]
            for experiment in load_experiments("test", argv)[0]:
                for run in runs_of(experiment):
                    mesh = run.mesh.make(jax.devices())
                    check_batch(mesh, run.train.batch_size, run.train.micro_batches)


ADAPTERS = {"lora.rank": 128, "lora.alpha": 256.0}
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# The system prompts of conv_vicuna_v1 ("v1") and conv_llava_v1 in LLaVA's llava/conversation.py.
VICUNA_V1, LLAVA_V1 = (
    f"A chat between a curious {who} and an artificial intelligence assistant. The assistant gives "
    f"helpful, detailed, and polite answers to the {who}'s questions."
    for who in ("user", "human")
)
# What transformers' Trainer does by default, and all releases below that have these keys.
TRAINER = {"optim.schedule": "cosine", "optim.warmup_ratio": 0.03, "optim.weight_decay": 0.0,
           "optim.b1": 0.9, "optim.b2": 0.999, "optim.eps": 1e-8,
           "optim.clip_norm": 0.0}  # fmt: skip
PAD = {"base.pad_to_square": True}
# Kevinz-code/SeVa: run/llava1.5_lora_our_ocr8k_diffu500_text8k_diffu500.sh, seva/train_dpo_ours.py
# (defaults, "* 2", find_all_linear_names); data/step1/make_{ocrvqa,textvqa}_data.py (prompts);
# data/step2/generate_with_aug.py (answers).
SEVA = TRAINER | PAD | {
    "lora.rank": 1024, "lora.alpha": 2048.0, "lora.targets": ALL_LINEAR, "optim.lr": 2e-6,
    "optim.projector_lr": 0.0, "train.trained": ["lora", "projector"], "objective.beta": 0.1,
    "train.batch_size": 8 * 16, "train.epochs": 1, "train.repeat": 2, "seed": 42,
    "text.max_length": 2048, "text.train.system": VICUNA_V1, "corrupt.0.step": 500,
    "rollout.sampling.max_new_tokens": 512, "rollout.sampling.temperature": 0.0,
    "prompts.sources.0.prefix": "ocr_vqa/", "prompts.sources.0.limit": 4000,
    "prompts.sources.0.questions_per_image": 2, "prompts.sources.0.which_questions": "random",
    "prompts.sources.0.remove": ["Answer the question using a single word or phrase."],
    "prompts.sources.1.prefix": "textvqa/", "prompts.sources.1.limit": 8000,
    "prompts.sources.1.questions_per_image": 2, "prompts.sources.1.which_questions": "random",
    "prompts.sources.1.remove": [], "pairs.most_per_source": [],
}  # fmt: skip
# YiyangZhou/POVID: scripts/run_dpo.sh, run_povid.sh (where `--report_to wandb` ends the command, so
# that model_max_length is the default of llava/train/train_dpo.py); tool/dpo_trainer.py (beta, and
# the second get_peft_model, which freezes the projector).
POVID = TRAINER | ADAPTERS | {
    "lora.targets": ALL_LINEAR, "optim.lr": 1e-7, "optim.projector_lr": 2e-5,
    "train.trained": ["lora"], "objective.beta": 0.1, "text.max_length": 1048,
    "text.train.system": VICUNA_V1, "train.repeat": 1,
    "train.batch_size": 8,  # ours: 1 on each of 8 devices
}  # fmt: skip
# By recipe, and for each of its runs; the last holds for those that follow.
PUBLISHED = {
    "llava15_7b_seva": [SEVA | {"pairs.newline": "space", "pairs.compare": "clean"}],
    # data/step3/make_pair_ocrvqa.py and make_pair_textvqa.py.
    "llava15_7b_seva_t800": [
        SEVA | {"corrupt.0.step": 800, "pairs.most_per_source": [4300, 6500]},
    ],
    # data/step2/generate_with_aug.py (conv_mode), data/step3/make_pair_*.py.
    "llava15_7b_seva_faithful": [
        SEVA | {"text.generate.system": LLAVA_V1, "pairs.newline": "delete",
                "pairs.compare": "raw"},
    ],
    "apasi": [
        # scripts/rl/dpo.sh, make_data.sh; llava/prepare_data/model_generation.py (answers of up to
        # 1024 tokens) and data_construct_llm.py (completions).
        ADAPTERS | {"optim.lr": 4e-7, "optim.projector_lr": 2e-5, "optim.schedule": "cosine",
                    "optim.warmup_ratio": 0.05, "optim.weight_decay": 0.0, "optim.clip_norm": 0.0,
                    "train.trained": ["lora", "projector"], "text.max_length": 2048,
                    "objective.beta": 0.1, "train.batch_size": 64, "train.repeat": 1,
                    "train.epochs": 3, "train.reference": "cached", "pairs.rate": 0.2,
                    "rollout.sampling.max_new_tokens": 1024, "rollout.sampling.temperature": 0.0,
                    "pairs.most_objects": 10, "pairs.sampling.max_new_tokens": 64,
                    "pairs.sampling.temperature": 0.0, "pairs.sampling.repetition_penalty": 1.1},
    ],
    "gapo": [
        {"objective.weighting": "seva_jax.objectives.ScoreGap",
         "objective.weighting.base": 2.0, "objective.weighting.relative": False},
    ],
    "grape": [
        # TPO-Train/finetune.py; the decay is the default of torch.optim.AdamW.
        {"lora.rank": 32, "lora.alpha": 32.0, "optim.schedule": "constant",
         "optim.warmup_ratio": 0.0, "optim.weight_decay": 0.01, "optim.b2": 0.999,
         "train.epochs": 10, "prompts.stride": 1,
         "optim.lr": 2e-5, "train.batch_size": 1, "objective.window": 8,
         "objective.objective.beta": 0.1, "prompts.window": 8, "prompts.judge.likelihood": 0.01,
         "prompts.judge.cost": 0.01, "prompts.judge.success": 5.0},
    ],
    "mia_dpo": [
        # dpo_scripts/train_dpo_multi.sh; gen_data/gen_chosen_rejected/make_data_*.py and the
        # notebooks of gen_data/gen_instruction.
        ADAPTERS | {"optim.lr": 5e-5, "optim.schedule": "linear", "objective.beta": 0.1,
                    "optim.warmup_ratio": 0.1, "optim.weight_decay": 0.0, "train.batch_size": 64,
                    "text.max_length": 4096, "text.generate.sep": "###",
                    "text.generate.user": "Human", "text.train.user": "USER",
                    "rollout.sampling.max_new_tokens": 512, "rollout.sampling.temperature": 0.0,
                    "prompts.tile_noise": 225.0, "prompts.inset_noise": 49.0,
                    "prompts.source.limit": 62461 + 90000 + 48975,
                    "objective.sft_weight": 0.0, "train.epochs": 1, "train.trained": ["lora"],
                    "prompts.tile": 448, "prompts.inset": 0.7, "pairs.layer": 16,
                    "pairs.max_truth": 512, "pairs.min_perplexity": 1.1},
    ],
    # aiming-lab/MMedPO: scripts/train_dpo_visual-text.sh (4 devices), train_dpo_weighted.py and
    # dpo_trainer_weighted.py (as POVID's) of train/dpo; inference_attention-map_score.py (noise) of
    # curation/Sample_Zero-Shot_Grounding_RSNA.
    "mmedpo": [
        TRAINER | PAD | ADAPTERS | {
            "lora.targets": ALL_LINEAR, "optim.lr": 1e-7, "optim.projector_lr": 2e-5,
            "train.trained": ["lora"], "train.epochs": 3, "train.repeat": 1, "train.batch_size": 4,
            "text.max_length": 1024, "text.train.system": VICUNA_V1,
            "objective.beta": 0.1, "objective.weighting": "seva_jax.objectives.RawScore",
            "prompts.sources.0.field": "weighted_score",
            "prompts.sources.1.noise.noise": "pixels", "prompts.sources.1.noise.std": 10.0,
            "prompts.sources.1.noise.region": "heat", "prompts.sources.1.noise.blur": 2.6,
            "prompts.sources.1.noise.overflow": "wrap"},
    ],
    # Epochs: run_dpo.sh and run_povid.sh. Noise: llava/train/train_dpo_inherent.py.
    "povid": [
        POVID | PAD | {"train.epochs": 3, "objective": "seva_jax.objectives.DPO"},
        POVID | {"train.epochs": 1, "base.merge": True,
                 "objective": "seva_jax.objectives.Inherent",
                 "prompts.change": "seva_jax.corrupt.PixelNoise",
                 "prompts.change.step": 500, "prompts.change.overflow": "wrap"},
    ],
    # taco-group/Re-Align: train_lora_rdpo.sh (2 devices, 8 accumulated), train_rdpo.py (defaults,
    # target_modules), dpo_trainer.py (as POVID's).
    "realign": [
        TRAINER | PAD | ADAPTERS | {
            "lora.targets": ["q_proj", "k_proj", "v_proj", "o_proj"], "optim.lr": 1e-6,
            "optim.projector_lr": 2e-5, "train.trained": ["lora"], "train.epochs": 1,
            "train.repeat": 1, "train.batch_size": 2 * 8, "text.max_length": 1048,
            "text.train.system": VICUNA_V1, "objective.beta": 0.1},
    ],
    "rrpo": [
        # scripts/llavavideo/run.sh and zero3.json, which clips.
        ADAPTERS | {"optim.lr": 5e-6, "objective.beta": 0.1, "objective.alpha": 0.01,
                    "optim.schedule": "cosine", "optim.warmup_ratio": 0.03,
                    "optim.weight_decay": 0.0, "optim.clip_norm": 1.0, "train.batch_size": 32,
                    "train.epochs": 1, "train.repeat": 1, "train.trained": ["lora"]},
    ],
    "rrpo_videochat2": [
        # scripts/videochat2/run.sh, which overrides alpha, beta, warm-up and the batch of
        # config.py; the rest is that of config.py.
        ADAPTERS | {"optim.lr": 2e-5, "objective.beta": 0.9, "objective.alpha": 0.01,
                    "optim.schedule": "cosine", "optim.warmup_ratio": 0.0,
                    "optim.weight_decay": 0.02, "optim.b2": 0.999, "optim.clip_norm": 0.0,
                    "train.batch_size": 32, "train.epochs": 1, "train.trained": ["lora"]},
    ],
    "temple": [
        # train_scripts/*.sh, generate_dpo_data.py, convert_to_swift.py; ms-swift 3.7.0 for decay,
        # the second beta, clipping, and the weight of the likelihood (`rpo_alpha`).
        {"lora.rank": 32, "lora.alpha": 64.0, "optim.lr": 5e-6, "train.batch_size": 16,
         "rollout.sampling.temperature": 0.7, "rollout.sampling.repetition_penalty": 1.05,
         "objective.beta": 0.1, "objective.sft_weight": 1.0,
         "optim.warmup_ratio": 0.05, "optim.schedule": "cosine", "optim.weight_decay": 0.1,
         "optim.b2": 0.95, "optim.clip_norm": 1.0, "train.epochs": 1, "train.trained": ["lora"],
         "pairs.max_ratio": 1.5, "corrupt.0.groups": groups,
         "text.max_length": 16384,
         "prompts.source.fps": 1.0, "prompts.source.max_frames": 600,
         "rollout.sampling.max_new_tokens": 8192}
        | ({"base.max_video_pixels": 9_000_000} if groups == 16 else {})  # later it is the base's
        for groups in (16, 8, 4, 2)
    ] + [{"optim.lr": 1e-4, "optim.warmup_ratio": 0.05, "lora.rank": 32, "lora.alpha": 32.0,
          "lora.vision": True, "lora.connector": False,
          "train.batch_size": 16, "train.epochs": 1}],
}  # fmt: skip

# SeVa's recipe on models that its authors did not train; the recipes say what differs.
WORDS = SEVA["text.max_length"] - 576
_OTHER = {key: value for key, value in SEVA.items() if key not in PAD}
PUBLISHED |= {
    "llava_next_7b_seva": [_OTHER | {"text.max_length": 4096}],
    "llava_onevision_7b_seva": [
        _OTHER | {"text.max_length": 8765 + WORDS, "text.train.system": ""}
    ],
    "internvl3_8b_seva": [_OTHER | {"text.max_length": 3328 + WORDS, "text.train.system": ""}],
}
# With LLaMA-Factory's numbers, from examples/train_lora/qwen2_5vl_lora_dpo.yaml (85b0f31) and
# qwen3vl_lora_dpo.yaml (95ac3f2).
_FACTORY = _OTHER | {
    "base.max_pixels": 262144, "text.max_length": 2048, "lora.rank": 8, "lora.alpha": 16.0,
    "optim.lr": 5e-6, "optim.warmup_ratio": 0.1, "optim.schedule": "cosine", "objective.beta": 0.1,
    "train.trained": ["lora"],
}  # fmt: skip
PUBLISHED |= {
    "qwen2_5_vl_7b_seva": [_FACTORY | {"text.train.system": "You are a helpful assistant."}],
    "qwen3_vl_8b_seva": [_FACTORY | {"text.train.system": ""}],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name):
    """Every run of the recipe has the numbers of the papers and releases."""
    runs = runs_of(read_config(config_directory() / f"{name}.py"))
    published = PUBLISHED[name]
    for number, run in enumerate(runs):
        expected, found = published[min(number, len(published) - 1)], flatten(run)
        assert {key: found.get(key) for key in expected} == expected


def test_the_mixture_of_mia_dpo():
    """The counts of the release's notebooks, to a few percent: arrangements, and sizes of each."""
    prompts = read_config(config_directory() / "mia_dpo.py").prompts
    for found, counts in (
        (prompts.arrangements, {"sequence": 62461, "grid": 90000, "inset": 48975}),
        (prompts.sequence_sizes, {2: 34300, 3: 10050, 4: 9950, 5: 8161}),
        (prompts.grid_sizes, {2: 48000, 3: 14000, 4: 14000, 6: 7000, 9: 7000}),
    ):
        shares = {key: found.count(key) / len(found) for key in counts}
        expected = {key: count / sum(counts.values()) for key, count in counts.items()}
        assert shares == pytest.approx(expected, abs=0.021)
