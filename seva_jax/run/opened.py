"""A path as a model that can answer: a run, a checkpoint, an export or an adapter.

What lives here: `find_model`, which says what a path names and checks it, and loading it. Nothing
is written, no lock is taken, and of a run only what concerns the model has to be there: it may be
training, and its images may be elsewhere. What does not live here: asking the model
(`seva_jax/notebook.py`), reading weights (`weights.py`).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax

from seva_jax.config import (
    Assets,
    Checkpoint,
    ComputeOptions,
    Experiment,
    TextOptions,
    TrainedBase,
    fingerprint,
    make_model,
    read_config,
)
from seva_jax.convert import read_llava_config, tower_directory
from seva_jax.convert.chat_template import read_template
from seva_jax.convert.hf_config import read_context_length, read_family
from seva_jax.convert.original import ADAPTER_CONFIG, is_adapter, read_json
from seva_jax.inference.answering_layout import require_tensor
from seva_jax.inference.rollouts import RolloutEngine
from seva_jax.models import Llava, LoraConfig, attention_problem
from seva_jax.run.abstract_state import abstract_base
from seva_jax.run.context import rollout_engine
from seva_jax.run.weights import (
    Step,
    aligned_checkpoint,
    alignment_checkpoints,
    reference_adapters,
    reference_params,
    require_same_prior,
    require_trained_on,
    start_variables,
    variables_of,
)
from seva_jax.run.workdir import instead_of
from seva_jax.runtime.run_records import read_stages
from seva_jax.runtime.stores import as_path
from seva_jax.sharding import MeshShape
from seva_jax.text import Template
from seva_jax.text.tokenizer import tokenizer_facts
from seva_jax.training.checkpoint import read_facts
from seva_jax.training.step import Variables, merge
from seva_jax.types import DataError

Which = Literal["base", "aligned"]

WANTED = (
    "give the work directory of a run, a directory with a LLaVA-1.5 model, or a LoRA adapter's "
    "directory"
)


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """How the model that a path names is opened. A run needs none: its config says how.

    Attributes:
        base: of an adapter, the directory of the model that it was trained on; empty takes the one
            that its adapter_config.json names.
        vision_tower: the CLIP directory that a model in the original LLaVA's layout needs; empty
            takes the one that its config.json names.
        template: the words around questions and answers; None takes those of the run, or of the
            checkpoint, see `read_template`.
        pad_to_square: of a checkpoint, whether images are padded to a square; None does what the
            checkpoint's processor says.
        compute: precision of a checkpoint or an adapter; a run has its own.
        same_base: of a run, do not compare the weights of its base with its record of them. For a
            quantised base, which another kind of processor may round differently.
    """

    base: str = ""
    vision_tower: str = ""
    template: Template | None = None
    pad_to_square: bool | None = None
    compute: ComputeOptions = ComputeOptions()
    same_base: bool = False


@dataclasses.dataclass(frozen=True)
class FoundModel:
    """A model that a path names, not loaded yet.

    Attributes:
        label: its name in tables and in the terminal.
        path: the path.
        is_run: whether it is the work directory of a run.
        which: the model of the run; "base" for everything else.
        step: the training step whose checkpoint is read, or the "best" by held-out loss; None takes
            the one whose model is the aligned one.
        config: the run's config. Of anything else, only its base, text, compute and seed mean
            something.
        assets: what comes with the weights.
        same_base: see `ModelOptions`.
    """

    label: str
    path: Path
    is_run: bool
    which: Which
    step: Step | None
    config: Experiment
    assets: Assets
    same_base: bool

    def aligned(self, step: Step | None = None) -> FoundModel:
        """Returns the aligned model of the same run, which need not be there before it is loaded.

        Args:
            step: see the attribute.
        """
        label = _label(self.path, "aligned", step)
        return dataclasses.replace(self, label=label, which="aligned", step=step)

    def require_finished(self) -> None:
        """Checks that the model of a run has been trained.

        Raises:
            DataError: it has not, and what can be opened instead.
        """
        if self.is_run:
            _require_finished(self.config, self.path, self.which, self.step)

    def load(
        self,
        mesh: jax.sharding.Mesh | None = None,
        beside: OpenedModel | None = None,
        tensor: int | None = None,
    ) -> OpenedModel:
        """Reads the weights.

        Args:
            mesh: where they go; None takes the first device.
            beside: another model of the same run on the same mesh, whose frozen weights are shared.
            tensor: devices that share the weights while it answers; None takes what the config
                says of these devices, `rollout.tensor`.

        Raises:
            DataError: a file is missing or damaged, the run is not finished or was trained on
                another base or with another tokenizer, or the mesh cannot split the model.
        """
        self.require_finished()
        config, model = self.config, self.assets.config
        if mesh is None:
            mesh, tensor = first_devices(1), 1
        if tensor is not None:
            rollout = dataclasses.replace(config.rollout, tensor=tensor)
            config = dataclasses.replace(config, rollout=rollout)
        if config.rollout.tensor > 1:
            shapes = {"params": abstract_base(config, model, mesh)}
            require_tensor(make_model(model, config.compute), shapes, mesh, config.rollout.tensor)
        width, device = model.text.head_dim, mesh.devices.flat[0]
        if attention_problem(config.compute.attention, device, width):
            compute = dataclasses.replace(config.compute, attention="auto")
            config = dataclasses.replace(config, compute=compute)
        if beside is not None:
            assert (beside.found.path, beside.mesh) == (self.path, mesh), "they share no weights"
            reference = beside.reference
        else:
            require_same_prior(config)
            adapters = reference_adapters(config, model, mesh)
            reference = {"params": reference_params(config, model, mesh)}
            reference |= {"lora": adapters} if adapters else {}
        if self.which == "base":
            variables = start_variables(config, model, mesh, reference)
        else:
            variables = merge(reference, self._trained(config, mesh, reference))
        lora = config.lora if "lora" in variables else None
        module = make_model(model, config.compute, lora)
        return OpenedModel(self, config, mesh, module, variables, reference)

    def _trained(
        self, config: Experiment, mesh: jax.sharding.Mesh, reference: Variables
    ) -> Variables:
        """Reads what the run has trained, after checking what it was trained on."""
        checkpoint = aligned_checkpoint(config, self.step)
        tokenizer = fingerprint(*tokenizer_facts(self.assets.tokenizer))
        if read_facts(checkpoint).get("tokenizer", tokenizer) != tokenizer:
            raise DataError(
                f"{self.path} was trained with another tokenizer than its base has now; put the "
                "files of the base's tokenizer back"
            )
        if not self.same_base:
            require_trained_on(config, checkpoint, reference)
        return variables_of(config, self.assets.config, mesh, checkpoint)


@dataclasses.dataclass(frozen=True)
class OpenedModel:
    """A model that can answer.

    Attributes:
        found: what it was read from.
        config: see `FoundModel.config`, with what these devices cannot do replaced.
        mesh: where it lives.
        model: the module.
        variables: its variables.
        reference: the variables of the run's reference policy; its own for everything else.
    """

    found: FoundModel
    config: Experiment
    mesh: jax.sharding.Mesh
    model: Llava
    variables: Variables
    reference: Variables

    @property
    def label(self) -> str:
        """Its name in tables and in the terminal."""
        return self.found.label

    @property
    def assets(self) -> Assets:
        """What comes with the weights: architecture, tokenizer, image pipeline."""
        return self.found.assets

    def engine(self, batch_size: int, seed: int | None = None) -> RolloutEngine:
        """Returns the engine that answers prompts, as a run's stages use it.

        Args:
            batch_size: rows answered together, over all devices.
            seed: of sampling; None takes the run's.
        """
        engine = rollout_engine(
            self.config, self.assets, self.model, self.variables, self.mesh, self.reference
        )
        seed = engine.seed if seed is None else seed
        return dataclasses.replace(engine, batch_size=batch_size, seed=seed)


def first_devices(num: int | None) -> jax.sharding.Mesh:
    """Returns a mesh that splits a model over the first devices; None takes all of them.

    Raises:
        DataError: there are not that many.
    """
    devices = jax.devices()
    num = len(devices) if num is None else num
    if not 1 <= num <= len(devices):
        raise DataError(f"{num} devices are wanted, and there are {len(devices)}")
    return MeshShape(data=1, tensor=num).make(devices[:num])


def is_run(path: Path) -> bool:
    """Returns whether a path is the work directory of a run."""
    return (path / "config.py").is_file()


def find_model(
    path: str | Path,
    which: Which | None = None,
    step: Step | None = None,
    options: ModelOptions | None = None,
    label: str = "",
) -> FoundModel:
    """Returns the model that a path names, after checking everything but the weights.

    Args:
        path: work directory of a run; directory of a model in Hugging Face's or the original
            LLaVA's layout; or directory of a LoRA adapter, peft's or LLaVA's.
        which: the model of a run; None takes the aligned one.
        step: the training step of a run's aligned model, of those that are kept, also while it is
            training; or the "best" or "last" one of a finished run.
        options: how it is opened.
        label: its name in tables and in the terminal; empty makes one from the path.

    Raises:
        DataError: it is none of these, and what it is instead; the model of the run is not
            finished; an adapter's base is not known; or an option is for something else.
    """
    options = options or ModelOptions()
    if not str(path):
        raise DataError(f"the path of the model is empty; {WANTED}")
    path = as_path(path).expanduser()
    if is_run(path):
        return _run(path, which, step, options, label)
    if which is not None or step is not None:
        wanted = f"base model of {path}" if step is None else f"{_named(step)} of {path}"
        if (path / "config.json").is_file() or is_adapter(path):
            raise DataError(f"{path} is not the work directory of a run, so there is no {wanted}")
    return _checkpoint(path, options, label)


def _run(
    path: Path, which: Which | None, step: Step | None, options: ModelOptions, label: str
) -> FoundModel:
    names = {
        "base": options.base, "vision_tower": options.vision_tower,
        "pad_to_square": options.pad_to_square is not None,
    }  # fmt: skip
    if given := [name for name, value in names.items() if value]:
        raise DataError(
            f"{path} is a run, whose config.py says where its model is and how its images are "
            f"prepared; leave out {', '.join(given)}, or change base in that file"
        )
    config = dataclasses.replace(read_config(path / "config.py"), workdir=str(path))
    config = dataclasses.replace(config, lora=config.base.lora(config.lora))
    if options.template is not None:
        text = dataclasses.replace(config.text, generate=options.template, train=options.template)
        config = dataclasses.replace(config, text=text)
    which = "aligned" if which is None else which
    if which == "base" and step is not None:
        raise DataError(
            f"the {_named(step)} is of the aligned model, but the base of {path} is wanted"
        )
    found = FoundModel(
        label or _label(path, which, step), path, True, which, step, config, config.base.assets(),
        options.same_base,
    )  # fmt: skip
    found.require_finished()
    return found


def _label(path: Path, which: Which, step: Step | None) -> str:
    """Returns the name of a model of a run."""
    if which == "base":
        return f"{path} (base)"
    return str(path) if step is None else f"{path} ({_named(step)})"


def _named(step: Step) -> str:
    """Returns how people call a step: step 4, or the best step."""
    return f"step {step}" if isinstance(step, int) else f"{step} step"


def _require_finished(config: Experiment, path: Path, which: Which, step: Step | None) -> None:
    stages = read_stages(path)
    if isinstance(config.base, TrainedBase) and "base" not in stages:
        raise DataError(
            f"{path}: its base model is not trained yet, so there is no model; run seva_jax.train "
            "with its config first, or wait until the stage base is finished"
        )
    if which == "aligned" and not isinstance(step, int) and "align" not in stages:
        raise DataError(f"{path}: its alignment is not finished{_saved(config)}")


def _saved(config: Experiment) -> str:
    """Returns what can be opened of a run whose alignment is not finished."""
    folder = alignment_checkpoints(config)
    steps = sorted(int(p.name) for p in folder.glob("*") if p.name.isdecimal())
    kept = f", or a saved step ({', '.join(map(str, steps))})" if steps else ""
    return f"; finish it with seva_jax.train, or open its base{kept}"


def _checkpoint(path: Path, options: ModelOptions, label: str) -> FoundModel:
    directory, adapter = path, ""
    if is_adapter(path):
        directory, adapter = _base_of(path, options.base), str(path)
    elif not (path / "config.json").is_file():
        raise DataError(_instead(path))
    elif options.base:
        raise DataError(f"{path} is a whole model, not an adapter; leave out its base")
    base = Checkpoint(
        str(directory), options.vision_tower, options.pad_to_square, adapter, merge=True
    )
    tower = tower_directory(directory, options.vision_tower)
    read_llava_config(directory, options.vision_tower)  # says what it is, if it is no LLaVA
    assets = base.assets()
    template = options.template or read_template(
        directory, assets.tokenizer, tower is not None, read_family(directory).chat_image
    )
    longest = read_context_length(directory, tower)
    config = Experiment(
        base=base,
        text=TextOptions(template, template, longest),
        lora=LoraConfig(rank=0),
        compute=options.compute,
    )
    return FoundModel(label or str(path), path, False, "base", None, config, assets, True)


def _base_of(adapter: Path, given: str) -> Path:
    """Returns the directory of the model that an adapter was trained on."""
    if given:
        return as_path(given).expanduser()
    file = adapter / ADAPTER_CONFIG
    named = read_json(file).get("base_model_name_or_path") if file.is_file() else None
    if isinstance(named, str) and named and (as_path(named) / "config.json").is_file():
        return as_path(named)
    names = f"names {named!r}, which is not here" if named else "names none"
    raise DataError(
        f"{adapter} is a LoRA adapter, and its {ADAPTER_CONFIG} {names}: give the directory of the "
        "model that it was trained on, --base DIR (base=DIR in Python)"
    )


def _instead(path: Path) -> str:
    """Returns what a path is that names no model, and what to give."""
    if not path.exists():
        return f"{path} does not exist; {WANTED}"
    if several := instead_of(path):
        return f"{path} is not a run{several}"
    if runs := sorted(p.name for p in path.glob("*") if is_run(p)):
        more = " (and others)" if len(runs) > 1 else ""
        return f"{path} holds runs; give one, such as {path / runs[0]}{more}"
    for parent in path.absolute().parents:
        if is_run(parent) and (parent / "stages.json").is_file():
            return f"{path} is a part of a run; give its work directory, {parent}"
    if path.is_file():
        return f"{path} is a file; {WANTED}"
    return f"{path} holds no model (neither config.py nor config.json); {WANTED}"
