"""What every stage of a run shares: its config, devices, model and work directory.

What lives here: `RunContext`, a plain value. What does not: what stages make (`outputs.py`), and
the stages themselves, which `seva_jax/train.py` lists.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np

from seva_jax.batches.encoded import EncodedComparisons
from seva_jax.batches.image_inputs import ImageInput, Pixels
from seva_jax.batches.pipeline import ComparisonRows, RowShapes
from seva_jax.batches.trees import RowShape
from seva_jax.config import Assets, Experiment, check, make_model
from seva_jax.data import PreferenceSet, PromptSet
from seva_jax.inference.passes import PassLayout
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import Llava, attention_problem
from seva_jax.objectives import Objective
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.processes import say
from seva_jax.runtime.profiler import profiler, traced_steps
from seva_jax.runtime.run_records import PROFILES
from seva_jax.text import Encoder, Template
from seva_jax.training.flops import forward, model_flops
from seva_jax.training.memory import bytes_on_a_device
from seva_jax.training.step import StepOptions, Variables
from seva_jax.types import DataError, Prompt, Size


def rollout_engine(
    config: Experiment,
    assets: Assets,
    model: Llava,
    variables: Variables,
    mesh: jax.sharding.Mesh,
    beside: Variables,
) -> RolloutEngine:
    """Returns the engine that answers prompts as a run does.

    Args:
        config: the run's config.
        assets: what comes with the weights.
        model: the module that the variables belong to.
        variables: those of the model that answers.
        mesh: where they are.
        beside: variables of another model that stay on the devices; those that it shares with the
            first are counted once.
    """
    own = set(map(id, jax.tree.leaves(variables)))
    others = [leaf for leaf in jax.tree.leaves(beside) if id(leaf) not in own]
    return RolloutEngine(
        model=model,
        variables=variables,
        encoder=assets.encoder(config.text.generate, config.text.max_length),
        processing=assets.processing,
        mesh=mesh,
        batch_size=config.rollout.batch_size,
        seed=config.seed,
        refill=config.rollout.refill,
        cache=config.rollout.cache,
        tensor=config.rollout.tensor,
        resident=bytes_on_a_device(others),
    )


@dataclasses.dataclass(frozen=True)
class RunContext:
    """One run in its work directory.

    Attributes:
        config: the run's config.
        mesh: its devices.
        assets: what comes with the weights: architecture, tokenizer, image pipeline.
        workdir: where it writes.
        base_model: the module without adapters.
        policy_model: the module with the adapters that are trained, if any.
    """

    config: Experiment
    mesh: jax.sharding.Mesh
    assets: Assets
    workdir: Workdir
    base_model: Llava
    policy_model: Llava

    @classmethod
    def open(cls, config: Experiment, siblings: Sequence[Path] = ()) -> RunContext:
        """Opens the work directory of a run and reads the assets of its base model.

        Args:
            config: the run's config.
            siblings: work directories of runs whose finished stages may serve this one.

        Raises:
            DataError: see `of` and `begin`.
        """
        ctx = cls.of(config, siblings)
        ctx.begin()
        return ctx

    @classmethod
    def of(
        cls,
        config: Experiment,
        siblings: Sequence[Path] = (),
        workdir: Workdir | None = None,
    ) -> RunContext:
        """Looks at the work directory of a run and reads the assets of its base; writes nothing.

        Args:
            config: see `open`.
            siblings: see `open`.
            workdir: what `Workdir.of` returned for the config, if that was asked before.

        Raises:
            DataError: see `Workdir.of` and `BaseModel.assets`; or the devices do not suit the
                config.
        """
        mesh = config.mesh.make()
        assets = config.base.assets()
        attention, width = config.compute.attention, assets.config.text.head_dim
        if problem := attention_problem(attention, mesh.devices.flat[0], width):
            raise DataError(f"compute.attention {problem}: set --compute.attention auto")
        adapters = config.base.lora(config.lora)
        if adapters != config.lora:
            say(f"the base's own adapters are trained further, so lora is theirs: {adapters}")
            config = dataclasses.replace(config, lora=adapters)
            check(config)
        lora = config.lora if config.lora.rank else None
        return cls(
            config,
            mesh,
            assets,
            workdir or Workdir.of(config, siblings),
            make_model(assets.config, config.compute),
            make_model(assets.config, config.compute, lora),
        )

    def begin(self) -> None:
        """Creates and claims the work directory; see `Workdir.begin`."""
        self.workdir.begin(self.config)
        profiler.use(self.workdir.path / PROFILES, traced_steps(self.config.profile))

    def model_of(self, variables: Variables) -> Llava:
        """Returns the module that variables belong to."""
        return self.policy_model if "lora" in variables else self.base_model

    @property
    def step_options(self) -> StepOptions:
        """How every step computes."""
        return StepOptions(head_chunk=self.config.compute.head_chunk)

    @property
    def row_shapes(self) -> RowShapes:
        """How the shapes of rows are chosen: a row costs what training on it costs."""
        config, model = self.config, self.assets.config

        def cost(shape: RowShape) -> float:
            return model_flops(forward(model, config.lora, shape), config.train.trained)

        return RowShapes(config.compute.row_shapes, cost)

    @property
    def pass_layout(self) -> PassLayout:
        """The layout of passes that do not train: a micro-batch at a time."""
        train = self.config.train
        return PassLayout(self.mesh, train.batch_size // train.micro_batches, self.row_shapes)

    def encoder(
        self, template: Template, image_size: Callable[[str], Size] | None = None
    ) -> Encoder:
        """Returns the encoder of text with one of the run's templates.

        Args:
            template: the template.
            image_size: see `Assets.encoder`.
        """
        return self.assets.encoder(template, self.config.text.max_length, image_size)

    def engine(self, variables: Variables, reference: Variables) -> RolloutEngine:
        """Returns the engine that answers prompts with a model of this run.

        It copies the model to another layout when it is first asked; the copy is freed with it. If
        a single device has no room for that, `variables` are without their layers while it answers.

        Args:
            variables: those of the model.
            reference: those of the reference policy, which stay on the devices meanwhile.
        """
        model = self.model_of(variables)
        return rollout_engine(self.config, self.assets, model, variables, self.mesh, reference)

    def pixels(self, data: PromptSet) -> Pixels:
        """Returns the images of prompts, decoded and preprocessed when they are asked for."""
        prompts: Iterable[Prompt] = data.prompts
        if isinstance(data, PreferenceSet):
            prompts = (view.prompt for pair in data.comparisons for view in pair.views)
        processing = self.assets.processing.of_prompts(prompts)
        return Pixels(data.load_image, processing, data.remote)

    def rows(
        self,
        encoded: EncodedComparisons,
        images: ImageInput,
        objective: Objective,
        reference: Sequence[tuple[np.ndarray, ...]] | None = None,
    ) -> ComparisonRows:
        """Returns comparisons as rows, with everything that an objective needs of the data.

        Raises:
            DataError: some comparisons did not fit the model, or lack what the objective needs.
        """
        if encoded.shape is None or encoded.drops:
            raise DataError(f"examples that do not fit the model: {dict(encoded.drops)}")
        objective.check(encoded.comparisons)
        return ComparisonRows(encoded, images, reference, "spans" in objective.needs)
