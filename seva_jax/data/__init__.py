"""The data formats that a config can name, as sources of prompts or of preferences.

What lives here: the formats, and `python -m seva_jax.data`, which checks, shows and converts data.
What does not: batches (`seva_jax/batches`). Read next: `sources.py`, the contract; `README.md`,
a table of the formats.
"""

from seva_jax.data.answered import AnsweredPrompts
from seva_jax.data.captions import CaptionedPrompts
from seva_jax.data.changed import ChangedImages
from seva_jax.data.columns import Columns
from seva_jax.data.composed import Composed
from seva_jax.data.embedded import HfParquet, TfdsPrompts
from seva_jax.data.files import ImageFolder, LlavaJson, QuestionsJsonl, SevaJson
from seva_jax.data.llamafactory import LlamaFactoryPairs
from seva_jax.data.marked import MarkedPhrases
from seva_jax.data.messages import SwiftPairs, TrlPairs
from seva_jax.data.mixed import Concatenated, Mixture
from seva_jax.data.preferences import (
    HaDpoPairs,
    PairsFile,
    PovidPairs,
    RlaifVPairs,
    SevaPairs,
    VLFeedbackPairs,
)
from seva_jax.data.records import ArrayRecordPairs, ArrayRecordPrompts
from seva_jax.data.regions import MapFolder, Maps, NoisedRegions
from seva_jax.data.scores import ClippedZScores, ScoredPairs
from seva_jax.data.sources import PreferenceSet, PreferenceSource, PromptSet, PromptSource
from seva_jax.data.trajectories import Gcpg, TrajectoryPairs
from seva_jax.data.videos import Videos
