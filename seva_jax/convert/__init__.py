"""Checkpoints of other libraries: today, reading Hugging Face LLaVA directories.

`hf_config` reads config.json, `table` says which of their tensors is which of ours, `load` checks
a directory against the model and reads it. Training checkpoints are not here but in
`seva_jax/checkpoint.py`. Read next: `table.py`.

Another model family is one file in `seva_jax/models` and, here, one reader of its config and one
table. `load` only needs the table, its name aliases and its list of unused tensors.
"""

from seva_jax.convert.hf_config import SpecialTokens, read_llava_config, read_special_tokens
from seva_jax.convert.load import load_params

__all__ = [
    "SpecialTokens",
    "load_params",
    "read_llava_config",
    "read_special_tokens",
]
