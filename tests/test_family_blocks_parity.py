"""The towers and connectors of the families against transformers' within 1e-5, in float32."""

import numpy as np
import pytest

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")

from helpers_families import SIDE, random_model  # noqa: E402
from helpers_llava import save  # noqa: E402

from seva_jax.convert import load_params, read_llava_config  # noqa: E402
from seva_jax.models import Llava  # noqa: E402

TOLERANCE = {"rtol": 0, "atol": 1e-5}
CASES = {
    "clip": ("llava_next", {}),
    "siglip": ("llava_onevision", {}),
    "siglip, layer 2, exact gelu": (
        "llava_onevision",
        {"vision": {"hidden_act": "gelu"}, "vision_feature_layer": -2},
    ),
    "intern": ("internvl", {}),
    "intern, qk norm": (
        "internvl",
        {"vision": {"use_qk_norm": True, "attention_bias": False}, "vision_feature_layer": -2},
    ),
    "intern, 4 x 4 patches": ("internvl", {"downsample_ratio": 0.25}),
}


@pytest.mark.parametrize("name", CASES)
def test_tower_and_connector(tmp_path, name):
    family, options = CASES[name]
    theirs = random_model(family, **options)
    directory = save(theirs, tmp_path)
    config = read_llava_config(directory)
    params, model = load_params(directory, config), Llava(config)
    rng = np.random.default_rng(0)
    pixels = rng.standard_normal((3, 3, SIDE, SIDE)).astype(np.float32)
    with torch.no_grad():
        out = theirs.model.vision_tower(torch.tensor(pixels), output_hidden_states=True)
        hidden = out.hidden_states[theirs.config.vision_feature_layer]
        if family != "llava_onevision":
            hidden = hidden[:, 1:]
        if family == "internvl":
            square = hidden.reshape(3, SIDE // 14, SIDE // 14, -1)
            hidden = theirs.model.pixel_shuffle(square, theirs.config.downsample_ratio)
            hidden = hidden.flatten(1, 2)
        projected = theirs.model.multi_modal_projector(hidden).numpy()
    features = model.apply(
        {"params": params}, pixels.transpose(0, 2, 3, 1)[:, None], method="features"
    )
    assert features.shape == (3, *model.feature_kind[0]) == hidden.shape
    np.testing.assert_allclose(features, hidden, **TOLERANCE)

    def connect(model, x):
        return model.projector(x)

    ours = model.apply({"params": params}, hidden.numpy(), method=connect)
    np.testing.assert_allclose(ours, projected, **TOLERANCE)
