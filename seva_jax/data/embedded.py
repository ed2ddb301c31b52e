"""Prompts whose images are not files: parquet of the Hugging Face Hub, and TFDS data sets.

What lives here: both sources; TensorFlow is not needed and not imported. What does not: reading
parquet (`tables.py`) and our own ArrayRecord (`records.py`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
from typing_extensions import override

from seva_jax.data.collect import Images, as_object, images_of, meta_of, prompt_set, text_of
from seva_jax.data.sources import PromptSet, PromptSource
from seva_jax.data.tables import open_table
from seva_jax.images.load import FollowsLinks
from seva_jax.ranges import FROM_0
from seva_jax.types import DataError, ExampleError, Prompt


@dataclasses.dataclass(frozen=True)
class HfParquet(FollowsLinks, PromptSource):
    """Parquet in the Hub's layout: a column of images, and perhaps one of questions.

    An image cell is a struct `{bytes, path}`, the bytes alone, the name of a file, or a list of
    those. A prompt's id is the number of its row, "#" and the number of the question, both from 0.
    Strings, numbers and lists in other columns become its `meta`; columns of other types, such as
    times, are not read.

    Attributes:
        path: a parquet file, or a folder of them, read in the order of their names.
        image: column with the images.
        question: column with the questions; empty to ask `questions` about every row.
        questions: questions to ask about every row, if `question` is empty.
        image_root: folder of the images, if the cells hold file names.
        limit: use the first N usable rows; 0 means all.
        split: the split to read of a folder that holds several, such as "train".
    """

    path: str = ""
    image: str = "image"
    question: str = "question"
    questions: tuple[str, ...] = ()
    image_root: str = ""
    limit: Annotated[int, FROM_0] = 0
    split: str = dataclasses.field(default="", kw_only=True)

    @override
    def open(self) -> PromptSet:
        _check_questions(self.path, self.question, self.questions)
        table = open_table(self.path, self.image_root, self.split, self.link_roots)
        rows = ((where, self._parse(i, row)) for i, (where, row) in enumerate(table.records))
        return prompt_set(self.path, table.images, rows, self.limit)

    def _parse(self, index: int, row: Any) -> Iterator[Prompt]:
        row = as_object(row)
        _require(f"{self.path}: no column", (self.image, self.question), row)
        names = images_of(row, self.image, self.image)
        asked = [text_of(row, self.question)] if self.question else self.questions
        meta = meta_of(row, (self.image, self.question))
        for number, question in enumerate(asked):
            yield Prompt(f"{index}#{number}", question, names, meta)


@dataclasses.dataclass(frozen=True)
class TfdsPrompts(PromptSource):
    """A TFDS data set with an image feature, prepared as ArrayRecord.

    Prepare it with `tfds.builder(NAME, file_format="array_record").download_and_prepare()`. A
    prompt's id is the number of its example, "#" and the number of the question, both from 0. With
    `questions`, nothing is read before an image is needed; with `question`, all examples are read
    once.

    Attributes:
        name: name of the data set, as in `tfds.load`: "coco/2017", "oxford_iiit_pet:4.0.0".
        split: the split, such as "train" or "train[:10%]".
        data_dir: folder it was prepared in, on a local disk; empty for TFDS's default.
        image: feature with the image.
        question: feature with one question or several; empty to ask `questions` about every image.
        questions: questions to ask about every image, if `question` is empty.
        limit: use the first N usable examples; 0 means all.
    """

    name: str = ""
    split: str = "train"
    data_dir: str = ""
    image: str = "image"
    question: str = ""
    questions: tuple[str, ...] = ("Describe this image in detail.",)
    limit: Annotated[int, FROM_0] = 0

    @override
    def open(self) -> PromptSet:
        where = f"TFDS {self.name} {self.split}"
        _check_questions(where, self.question, self.questions)
        images = self._open()
        examples = (
            (f"example {index}", self._parse(index, images)) for index in range(len(images.source))
        )
        return prompt_set(where, images, examples, self.limit)

    def _open(self) -> TfdsImages:
        if "://" in self.data_dir:
            raise DataError(
                f"TFDS {self.name}: data_dir {self.data_dir} is in an object store, which TFDS "
                "cannot read ArrayRecord from; copy it to a local disk: "
                f"gcloud storage cp -r {self.data_dir} DIR"
            )
        import tensorflow_datasets as tfds  # takes seconds

        try:
            builder = tfds.builder(self.name, data_dir=self.data_dir or None)
            features = builder.info.features
            if not isinstance(features, tfds.features.FeaturesDict):
                raise DataError(f"TFDS {self.name}: its examples have no named features")
            _require(f"TFDS {self.name}: no feature", (self.image, self.question), features)
            if not isinstance(features[self.image], tfds.features.Image):
                raise DataError(f"TFDS {self.name}: {self.image!r} is not an image but "
                                f"{features[self.image]}")  # fmt: skip
            used = [name for name in (self.image, self.question) if name]
            stored = tfds.decode.DeserializeMethod.RAW_BYTES
            source = builder.as_data_source(self.split, deserialize_method=stored)  # pyright: ignore
            # Only the features that are used: TFDS would decode all, other images too.
            read = tfds.features.FeaturesDict({name: features[name] for name in used})
            # Encoded bytes: we decode by content, and TFDS's decoder warns without OpenCV.
            decoders = {self.image: tfds.decode.SkipDecoding()}
            return TfdsImages(source, read, self.image, decoders)
        except DataError:
            raise
        # TFDS raises nearly anything for unknown names, versions, splits and formats.
        except Exception as error:
            what = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"TFDS {self.name or '(no name)'}, split {self.split}: {what}; the data set must "
                'be prepared, with file_format="array_record"'
            ) from error

    def _parse(self, index: int, images: TfdsImages) -> Iterator[Prompt]:
        asked: Sequence[Any] = self.questions
        if self.question:
            value = images.example(index)[self.question]
            asked = list(value) if isinstance(value, list | np.ndarray) else [value]
        for number, question in enumerate(asked):
            if isinstance(question, bytes):  # TFDS returns texts as bytes
                question = question.decode("utf-8", "surrogateescape")
            if not isinstance(question, str):
                raise ExampleError(f"{self.question} must be a text", "no question")
            yield Prompt(f"{index}#{number}", question, (str(index),))


@dataclasses.dataclass(frozen=True)
class TfdsImages(Images):
    """The images of a TFDS data source; a name is the number of an example.

    Attributes:
        source: serialised examples.
        features: the features that are used.
        feature: name of the one with the image.
        decoders: how TFDS decodes them, where not as usual.
    """

    source: Sequence[bytes]
    features: Any
    feature: str
    decoders: dict[str, Any]

    def example(self, index: int) -> dict[str, Any]:
        """Returns the used features of an example, with the encoded image."""
        return self.features.deserialize_example_np(self.source[index], decoders=self.decoders)

    @override
    def read(self, name: str) -> bytes:
        if not name.isdigit() or int(name) >= len(self.source):
            raise ExampleError(f"{name!r}: there is no such example", "missing image")
        return self.example(int(name))[self.feature]


def _check_questions(source: str, field: str, questions: tuple[str, ...]) -> None:
    if not field and not questions:
        raise DataError(f"{source}: there are no questions; set question or questions")


def _require(lack: str, fields: tuple[str, ...], present: Collection[str]) -> None:
    for field in filter(None, fields):
        if field not in present:
            raise DataError(f"{lack} {field!r}; it has {', '.join(present)}")
