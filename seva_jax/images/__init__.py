"""From image files to normalised pixels.

What lives here: finding and decoding image files (`load.py`), padding, resizing and normalising
them as the vision tower expects (`preprocess.py`), and composing several into one (`compose.py`).
What does not: corruptions (`seva_jax/corrupt`). Read next: `preprocess.py`.
"""

from seva_jax.images.preprocess import ImageProcessing
