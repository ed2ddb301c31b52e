"""Every pass over prompts or answers that does not train.

What lives here: sampling and rollouts, log-probs and statistics of given answers, image features.
What does not: what they are for (`seva_jax/pairs`, `seva_jax/run`). Read next: `rollouts.py`.
"""
