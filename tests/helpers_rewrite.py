"""A model for pair builders that answers with a function and records what it was asked."""

import numpy as np

from seva_jax.pairs import Reply
from seva_jax.types import Prompt, Rollout


class FakeModel:
    """A `PairModel` that needs no model.

    Args:
        say: maps a prompt to the text that follows its start, or to a `Reply`.
        features: image name to its features.
        seed: the run's seed.
    """

    def __init__(self, say=lambda prompt: " over there. And more.", features=None, seed=0):
        self.seed = seed
        self._say, self._features = say, features
        self.calls = []  # (name, prompts, sampling)

    def answer(self, name, prompts, sampling):
        assert name not in [call[0] for call in self.calls]
        self.calls.append((name, list(prompts), sampling))
        said = [self._say(prompt) for prompt in prompts]
        return [x if isinstance(x, Reply) else Reply(x) for x in said]

    def measure(self, name, views, layer=None, targets=()):
        """Raises: no test measures."""
        raise NotImplementedError

    def features(self, name, images):
        assert self._features is not None
        return np.stack([self._features[image] for image in images]).astype(np.float32)


def rollout(id_, clean, images=("a.png",), question="Describe it.", **meta):
    """Makes a rollout of one answer."""
    return Rollout(Prompt(id_, question, images, meta), clean, ())
