"""Attention of answers on image tokens against transformers' eager attention, within 1e-5."""

import functools

import jax
import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_llava import IMAGE_TOKEN, random_llava, save  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.batches.trees import RowShape, TreeExample, pack_row, stack_rows  # noqa: E402
from seva_jax.inference.answer_stats import _compute, _split  # noqa: E402
from seva_jax.training.step import StepOptions  # noqa: E402

PATCHES = 4


def example(index, images, text, answer):
    """Returns pixels as transformers has them, channels first, and a tree with images and text."""
    rng = np.random.default_rng(index)
    parts = np.array_split(rng.integers(3, IMAGE_TOKEN, text), images + 1)
    row = list(parts[0])
    for part in parts[1:]:
        row += [IMAGE_TOKEN] * PATCHES + list(part)
    pixels = rng.standard_normal((images, 3, 28, 28)).astype(np.float32)
    branch = rng.integers(3, IMAGE_TOKEN, answer).astype(np.int32)
    return pixels, TreeExample(
        np.array(row, np.int32), (branch,), pixels.transpose(0, 2, 3, 1), index=index
    )


@pytest.mark.parametrize("heads", [4, 2])
def test_attention_and_log_probs_equal_theirs(tmp_path, heads):
    theirs = random_llava(text={"num_key_value_heads": heads, "num_hidden_layers": 3})
    ours = seva_jax.from_pretrained(save(theirs, tmp_path))
    theirs.set_attn_implementation("eager")
    made = [example(0, 1, 7, 40), example(1, 3, 9, 5), example(2, 2, 4, 1)]
    examples = [e for _, e in made]
    shape = RowShape.covering(examples)
    shape = RowShape(
        sum(e.length for e in examples), 3, 1, shape.answer, 6, sum(e.num_targets for e in examples)
    )
    batch = stack_rows(
        [
            pack_row(
                examples, shape, image_shape=(28, 28, 3), tile_features=PATCHES,
                image_token_id=IMAGE_TOKEN, pad_id=0,
            )
        ]
    )  # fmt: skip
    for layer in range(3):
        one = jax.jit(functools.partial(_compute, ours.model, StepOptions(), layer))
        out = jax.device_get(one({"params": ours.params}, batch))
        for (pixels, e), reading in zip(made, _split(*out), strict=True):
            tokens = np.concatenate([e.trunk, e.branches[0]])
            with torch.no_grad():
                their = theirs(
                    torch.tensor(tokens[None], dtype=torch.long), torch.tensor(pixels),
                    output_attentions=True,
                )  # fmt: skip
            weight_HSS = their.attentions[layer][0].numpy()
            assert weight_HSS.std() > 0.01  # not uniform
            mean_AS = weight_HSS[:, len(e.trunk) :].mean(0)
            images = tokens == IMAGE_TOKEN
            expected = mean_AS[:-1].sum(0)[images]  # the end token does not ask
            np.testing.assert_allclose(reading.attention_P, expected, rtol=0, atol=1e-5)
            logps = torch.log_softmax(their.logits[0, len(e.trunk) - 1 : -1], -1).numpy()
            np.testing.assert_allclose(
                reading.logp_T, logps[np.arange(len(logps)), e.branches[0]], rtol=0, atol=1e-4
            )
            np.testing.assert_allclose(reading.best_logp_T, logps.max(-1), rtol=0, atol=1e-4)
