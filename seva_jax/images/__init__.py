"""From image files to normalised pixels.

What lives here: finding and decoding image files (`load.py`), padding, resizing and normalising
them as the vision tower expects (`preprocess.py`; in tiles, `tiled.py`), and composing several into
one (`compose.py`). What does not: corruptions (`seva_jax/corrupt`). Read next: `preprocess.py`.
"""

from seva_jax.images.internvl import InternvlProcessing
from seva_jax.images.llava_next import LlavaNextProcessing
from seva_jax.images.llava_onevision import LlavaOnevisionProcessing
from seva_jax.images.preprocess import ImageLayouts, ImageProcessing
from seva_jax.images.qwen import QwenProcessing

PROCESSINGS = (
    ImageProcessing,
    LlavaNextProcessing,
    LlavaOnevisionProcessing,
    InternvlProcessing,
    QwenProcessing,
)
