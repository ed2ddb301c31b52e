"""Checkpoints of other libraries, in and out.

In: `hf_config` reads config.json, `table` says which of their tensors is which of ours, `load`
checks the files against the model and reads them onto devices. Out (`python -m
seva_jax.convert`): `export` writes whole models, `peft` adapters, `pickles` turns .bin files into
safetensors. `original` knows what is different in the original LLaVA's layout. Training
checkpoints are not here but in `seva_jax/training/checkpoint.py`. Read next: `table.py`.

Another model family (LLaVA-NeXT, LLaVA-OneVision, ...) takes one file in `seva_jax/models` with
its modules, and one file here with what `table.py` holds for LLaVA-1.5: rows of (their name, our
path, transform), the spellings in circulation, the tensors nobody reads; and a function like
`read_llava_config` that refuses, by field and value, what the modules do not do. `load` and
`export` work from the rows alone.
"""

from seva_jax.convert.hf_config import SpecialTokens, read_llava_config, read_special_tokens
from seva_jax.convert.load import load_params
from seva_jax.convert.original import tower_directory

__all__ = [
    "SpecialTokens",
    "load_params",
    "read_llava_config",
    "read_special_tokens",
    "tower_directory",
]
