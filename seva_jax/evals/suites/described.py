"""CHAIR on COCO and SHR on Visual Genome: hallucinations in free descriptions.

What lives here: reading the annotations they need, which the user provides, as well as CHAIR's list
of synonyms. What does not: counting mentions (`seva_jax/evals/chair.py`). Read next: nothing; these
are the last suites.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated

import numpy as np
from typing_extensions import override

from seva_jax.evals.answers import Answer
from seva_jax.evals.base import Ratio, Record
from seva_jax.evals.chair import Chair
from seva_jax.evals.files import read_json, read_objects, read_text
from seva_jax.evals.judge import Judge, Judged, Verdict
from seva_jax.evals.suite import Benchmark, Questions, require
from seva_jax.evals.suites.judged import NoJudge, scored_if_judged
from seva_jax.ranges import FROM_0, FROM_1
from seva_jax.runtime.files import write_lines
from seva_jax.runtime.stores import as_path
from seva_jax.text.mentions import with_plurals
from seva_jax.types import DataError, Prompt

SHR_INSTRUCTIONS = """\
Somebody described an image that you cannot see; each answer below is one sentence of the
description. The reference lists what people noted in the image, with places as x, y, width and
height in pixels, and further facts. Score each sentence: 1 if it claims something that the
reference contradicts or that is not there as far as the reference can tell, 0 if it is right or
only opinion. The reference is not complete: details that fit it are no error."""


def read_synonyms(path: str) -> tuple[tuple[str, str], ...]:
    """Reads a list of synonyms: one object per line, its name first, separated by commas.

    Every phrase also stands for its plural (ending in s, es, ies or men), unless the list gives
    that word a meaning of its own.

    Returns:
        Pairs (phrase, name) for `Chair`.

    Raises:
        DataError: the file cannot be read, is empty, or gives a phrase two names.
    """
    return with_plurals(path, read_text(path).splitlines())


@dataclasses.dataclass(frozen=True)
class CocoChair(Benchmark):
    """CHAIR: objects that a description of a COCO image mentions although they are not there.

    The true objects are those of COCO's instance annotations and, with `captions`, those mentioned
    in the reference captions, as in the paper. Answer file: `captions.jsonl` (`image_id, caption`).

    Attributes:
        instances: instances_val2014.json.
        synonyms: list of synonyms: one object per line, its name first, separated by commas.
        captions: captions_val2014.json; empty ignores the reference captions.
        question: the question asked about every image.
        num_images: number of images, drawn at random; 0 uses all.
        seed: seed of the draw.
    """

    name: str = "chair"
    instances: str = ""
    synonyms: str = ""
    captions: str = ""
    question: str = "Describe this image in detail."
    num_images: Annotated[int, FROM_0] = 500
    seed: Annotated[int, FROM_0] = 0
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=512, kw_only=True)

    @override
    def open(self) -> Questions:
        evaluator = Chair(self.name, synonyms=read_synonyms(self.synonyms))
        data = read_json(self.instances, dict)
        field = functools.partial(require, self.instances)
        names = {}
        for record in field(data, "categories", list):
            name = field(record, "name")
            mentions = evaluator.mentions(name)
            if len(mentions) != 1:
                raise DataError(f"{self.synonyms}: COCO's category {name!r} is not in it; add it")
            names[field(record, "id", int)] = mentions[0]
        images = field(data, "images", list)
        if 0 < self.num_images < len(images):
            drawn = np.random.default_rng(self.seed).permutation(len(images))[: self.num_images]
            images = [images[i] for i in sorted(drawn.tolist())]
        objects: dict[int, set[str]] = {field(image, "id", int): set() for image in images}
        for record in field(data, "annotations", list):
            id_, category = field(record, "image_id", int), field(record, "category_id", int)
            if category not in names:
                raise DataError(f"{self.instances}: category {category} is not in its categories")
            if id_ in objects:
                objects[id_].add(names[category])
        if self.captions:
            captions = require(self.captions, read_json(self.captions, dict), "annotations", list)
            for record in captions:
                id_ = require(self.captions, record, "image_id", int)
                if id_ in objects:
                    caption = require(self.captions, record, "caption")
                    objects[id_].update(evaluator.mentions(caption))
        prompts = []
        for image in images:
            shown = [name.split() for name in sorted(objects[image["id"]])]
            meta = {"question_id": image["id"], "objects": shown}
            file, question = field(image, "file_name"), self.question + self.suffix
            prompts.append(Prompt(str(image["id"]), question, (file,), meta))
        return self.questions(prompts, evaluator, [self.instances, self.synonyms, self.captions])

    @override
    def write_answers(self, folder: Path, model_id: str, answers: Sequence[Answer]) -> None:
        super().write_answers(folder, model_id, answers)
        lines = ({"image_id": a.question_id, "caption": a.text} for a in answers)
        write_lines(folder / "captions.jsonl", lines)


@dataclasses.dataclass(frozen=True)
class SentenceHallucination(Judged):
    """The share of sentences that a judge finds hallucinated; lower is better."""

    @override
    def ratio(self) -> Ratio:
        """Returns hallucinated sentences over all sentences."""
        return Ratio("lower", ("hallucinated",), ("sentences",))

    @override
    def answers(self, prompt: Prompt, answer: str) -> tuple[str, ...]:
        """Returns the sentences, which end with a full stop, exclamation mark or question mark."""
        return tuple(s for s in re.split(r"(?<=[.!?])\s+", answer.strip()) if s)

    @override
    def record(self, verdict: Verdict) -> Record:
        wrong = sum(score >= 0.5 for score in verdict.scores)
        return {"hallucinated": wrong, "sentences": len(verdict.scores)}


@dataclasses.dataclass(frozen=True)
class Shr(Benchmark):
    """SHR: the share of hallucinated sentences in descriptions of 200 Visual Genome images.

    Zhao et al., "Beyond Hallucinations: Enhancing LVLMs through Hallucination-Aware Direct
    Preference Optimization" (arXiv 2311.16839). Metric with a judge: `score`. Answers are greedy,
    whereas the paper used beam search with five beams. `image_root` is Visual Genome's folder,
    which holds VG_100K and VG_100K_2.

    Attributes:
        folder: holds val_images_final.json, shr_factual_part1.jsonl and shr_factual_part2.jsonl.
        vg_folder: holds Visual Genome's image_data.json and region_descriptions.json.
        judge: scores the sentences; by default descriptions are only written.
        instructions: tells the judge how to score.
        question: the question asked about every image.
    """

    name: str = "shr"
    folder: str = ""
    vg_folder: str = ""
    judge: Judge = NoJudge()
    instructions: str = SHR_INSTRUCTIONS
    question: str = "Describe this image in detail."
    max_new_tokens: Annotated[int, FROM_1] = dataclasses.field(default=512, kw_only=True)

    @override
    def open(self) -> Questions:
        folder, genome = as_path(self.folder), as_path(self.vg_folder)
        chosen = str(folder / "val_images_final.json")
        facts_files = [str(folder / f"shr_factual_part{part}.jsonl") for part in (1, 2)]
        data, regions = (str(genome / f"{x}.json") for x in ("image_data", "region_descriptions"))
        paths = {}
        for record in read_json(data, list):
            url = PurePosixPath(require(data, record, "url"))
            paths[require(data, record, "image_id", int)] = f"{url.parent.name}/{url.name}"
        ids = [int(require(chosen, r, "image_id", (int, str))) for r in read_json(chosen, list)]
        noted: dict[int, list[str]] = {id_: [] for id_ in ids}
        for record in read_json(regions, list):
            for region in require(regions, record, "regions", list):
                if region.get("image_id") in noted:
                    x, y, width, height = (region.get(k) for k in ("x", "y", "width", "height"))
                    line = f"{require(regions, region, 'phrase')} ({x}, {y}, {width}, {height})"
                    noted[region["image_id"]].append(line)
        facts: dict[str, list[str]] = {}
        for path in facts_files:
            for _, line in read_objects(path):
                facts |= {id_: list(map(str, texts)) for id_, texts in line.items()}
        prompts = []
        for id_ in ids:
            if id_ not in paths:
                raise DataError(f"{chosen}: image {id_} is not in {data}")
            known = [*noted[id_], *facts.get(str(id_), [])]
            meta = {"question_id": id_, "reference": "\n".join(known)}
            prompts.append(Prompt(str(id_), self.question + self.suffix, (paths[id_],), meta))
        judged = SentenceHallucination(self.name, self.judge, self.instructions)
        files = [chosen, *facts_files, data, regions]
        return self.questions(prompts, scored_if_judged(judged), files)
