"""From comparisons to batches of packed trees.

What lives here: rows, their shapes and the pipeline that reads them. What does not: file formats
(`seva_jax/data`), text to tokens (`seva_jax/text`). Read next: `trees.py`.
"""
