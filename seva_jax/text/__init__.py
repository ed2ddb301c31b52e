"""From words to token ids and back.

What lives here: conversation templates (`templates`), loading and checking tokenizers
(`tokenizer`), and turning one question with its answers into a trunk and branches (`encode`).
What does not: packing trunks and branches into rows (`seva_jax/data`). Read next: `encode.py`.
"""
