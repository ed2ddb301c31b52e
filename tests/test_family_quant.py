"""Quantised bases of the other families: logits of transformers with the same weights."""

import dataclasses

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
qwix = pytest.importorskip("qwix")

from helpers_families import batch, batch_with_videos, random_model  # noqa: E402
from helpers_llava import save  # noqa: E402
from helpers_qwen import QWEN, random_qwen  # noqa: E402
from helpers_qwen import batch as qwen_batch  # noqa: E402

import seva_jax  # noqa: E402
from seva_jax.convert import load_params  # noqa: E402
from seva_jax.models import Llava, unstack  # noqa: E402

KERNELS = {f"self_attn.{x}_proj" for x in "qkvo"} | {
    f"mlp.{x}_proj" for x in ("gate", "up", "down")
}
WIDE, TALL = (61, 200), (333, 47)
ROWS = {
    "llava_next": [[WIDE, TALL], [], [TALL]],
    "llava_onevision": [[WIDE], [WIDE, TALL], []],
    "internvl": [[(3, 1)], [], [(1, 1), (4, 1)]],  # numbers of tiles
}


@pytest.fixture(scope="module", params=[*ROWS, *QWEN])
def pair(request, tmp_path_factory):
    """Returns transformers' model and ours, and batches."""
    if request.param in QWEN:
        theirs = random_qwen(request.param)
        ours = seva_jax.from_pretrained(save(theirs, tmp_path_factory.mktemp("model")))
        return theirs, ours, [qwen_batch(request.param, [[WIDE, TALL], [], [TALL]], [5, 9, 3])]
    options = {"tie_word_embeddings": False} if request.param == "internvl" else {}
    theirs = random_model(request.param, **options)
    ours = seva_jax.from_pretrained(save(theirs, tmp_path_factory.mktemp("model")))
    batches = [batch(theirs, ROWS[request.param], [5, 9, 3])]
    if request.param == "llava_onevision":
        batches.append(batch_with_videos(theirs, [[2, {3}, 4], [3, TALL, 2]]))
    return theirs, ours, batches


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_logits_are_those_of_the_dequantised_weights(pair, kind):
    """Biases, norms, tower, projector and newline are those of the files."""
    theirs, ours, batches = pair
    exact = [ours.logits(**arrays) for arrays in batches]
    params = load_params(ours.directory, ours.config, base_weights=kind)
    _, variables = unstack(Llava(ours.config), {"params": params})
    quantised = dataclasses.replace(ours, params=variables["params"])
    state = theirs.state_dict()
    kept = {name: x.clone() for name, x in state.items()}
    for layer in range(ours.config.text.num_layers):
        for name in KERNELS:
            kernel = params["language"]["layers"][name.split(".")[1]]["kernel"]
            weight = np.asarray(qwix.dequantize(kernel))[layer].T
            state[f"model.language_model.layers.{layer}.{name}.weight"] = torch.tensor(weight)
    theirs.load_state_dict(state)
    try:
        for arrays, without in zip(batches, exact, strict=True):
            tensors = {name: torch.tensor(x) for name, x in arrays.items()}
            with torch.no_grad():
                expected = theirs(**tensors).logits.numpy()
            real = arrays["attention_mask"].astype(bool)
            got = quantised.logits(**arrays)[real]
            np.testing.assert_allclose(got, expected[real], rtol=0, atol=1e-4)
            assert np.abs(got - without[real]).max() > 1e-2  # they were quantised
    finally:
        theirs.load_state_dict(kept)
