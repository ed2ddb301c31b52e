"""One run in its work directory: its context, its stages and their files.

What lives here: what `seva_jax/train.py` lists, stage by stage. What does not: the passes
themselves (`seva_jax/training`, `seva_jax/inference`). Read next: `context.py`.
"""
