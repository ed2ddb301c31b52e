"""Reads checkpoints of other libraries, and writes results for them.

What lives here. Reading: `hf_config` reads config.json and `hf_text` the language model in it,
`table` maps their tensors to our parameters, `load` checks the files against the model and reads
them onto devices, `adapters` reads LoRA adapters (and `adapter_config` what peft says of them),
`continued` those that a run trains further.
Writing (`python -m seva_jax.convert`): `export` writes whole models in the layout of their
checkpoint, `rewrite` in the other layout, `processor` writes how images and chats are prepared,
`peft` writes adapters, `pickles` turns .bin files into safetensors. `original_config` knows
config.json of LLaVA's own code, whose layout differs. What does not: training checkpoints
(`seva_jax/training/checkpoint.py`), and starting from an earlier run
(`seva_jax/config/prior_run.py`, `seva_jax/run/weights.py`). Read next: `table.py`.

`families` has a file for each model family, which says what of the above differs in it.
`seva_jax/models/README.md` says how to add one.
"""

from seva_jax.convert.adapters import Adapter, read_adapter
from seva_jax.convert.continued import lora_of, read_lora
from seva_jax.convert.hf_config import SpecialTokens, read_llava_config, read_special_tokens
from seva_jax.convert.load import load_params
from seva_jax.convert.original_config import tower_directory
