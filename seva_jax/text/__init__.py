"""From text to token ids and back.

What lives here: conversation templates (`templates.py`), loading and checking tokenizers
(`tokenizer.py`, and `llama.py` for the original LLaVA's), encoding a question with its answers as a
trunk and branches (`encode.py`, `words.py`), refusing special tokens in texts (`specials.py`), the
options of sampling (`sampling.py`), and finding the objects that a text mentions (`mentions.py`).
What does not: packing trunks and branches into rows (`seva_jax/batches`). Read next: `encode.py`.
"""

from seva_jax.text.encode import EncodedTree, Encoder, expand_images
from seva_jax.text.sampling import Sampling
from seva_jax.text.templates import (
    CHATML,
    INTERNVL3,
    LLAMA_3,
    LLAVA_V0,
    LLAVA_V1,
    MISTRAL,
    ONEVISION,
    PLAIN,
    QWEN2_VL,
    QWEN3_VL,
    QWEN_1_5,
    VICUNA_V1,
    Template,
)
