"""From image files to normalised pixels.

What lives here: finding and decoding image files (`load.py`, `folder.py`); padding, resizing and
normalising them as the vision tower expects (`preprocess.py`), or cutting them into tiles
(`tiled.py` and a file for each family); and composing several into one (`compose.py`). What does
not: corruptions (`seva_jax/corrupt`). Read next: `preprocess.py`.
"""

from seva_jax.images.internvl import InternvlProcessing
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.images.preprocess import ImageProcessing
