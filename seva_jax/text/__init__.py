"""From words to token ids and back.

What lives here: conversation templates (`templates`), loading and checking tokenizers
(`tokenizer`), turning one question with its answers into a trunk and branches (`encode`), and how
the tokens of an answer are chosen (`sampling`). What does not: packing trunks and branches into
rows (`seva_jax/batches`). Read next: `encode.py`.
"""

from seva_jax.text.encode import EncodedTree, Encoder
from seva_jax.text.sampling import Sampling
from seva_jax.text.templates import LLAVA_V1, PLAIN, VICUNA_V1, Template

__all__ = ["LLAVA_V1", "PLAIN", "VICUNA_V1", "EncodedTree", "Encoder", "Sampling", "Template"]
