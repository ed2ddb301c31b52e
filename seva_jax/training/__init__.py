"""From batches of trees to a trained model.

What lives here: the step with its maths, the loop, checkpoints. What does not: which losses there
are (`seva_jax/objectives`), how rows are made (`seva_jax/batches`). Read next: `step.py`.
"""

from seva_jax.training.optimizer import Optim
from seva_jax.training.options import TrainOptions
