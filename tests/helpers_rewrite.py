"""A model for pair builders that says what a function says, and remembers what it was asked."""

import numpy as np

from seva_jax.pairs import Reply
from seva_jax.types import Prompt, Rollout


class FakeModel:
    """See `PairModel`.

    Args:
        say: prompt to the text that follows its start, or a `Reply`.
        features: image name to its features.
        seed: of the run.
    """

    def __init__(self, say=lambda prompt: " over there. And more.", features=None, seed=0):
        self.seed = seed
        self._say, self._features = say, features
        self.calls = []  # (name, prompts, sampling)

    def answer(self, name, prompts, sampling):
        """See `PairModel.answer`."""
        assert name not in [call[0] for call in self.calls]
        self.calls.append((name, list(prompts), sampling))
        said = [self._say(prompt) for prompt in prompts]
        return [x if isinstance(x, Reply) else Reply(x) for x in said]

    def measure(self, name, views, layer=None, targets=()):
        """Nobody asks."""
        raise NotImplementedError

    def features(self, name, images):
        """See `PairModel.features`."""
        assert self._features is not None
        return np.stack([self._features[image] for image in images]).astype(np.float32)


def rollout(id_, clean, images=("a.png",), question="Describe it.", **meta):
    """What a model said."""
    return Rollout(Prompt(id_, question, images, meta), clean, ())
