"""Every format of data: a good record of each, and files with two examples of each."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from helpers_tokenizer import one_layout
from PIL import Image

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.batches.image_inputs import Pixels
from seva_jax.batches.pipeline import Batches, ComparisonRows, RowShapes, shuffled
from seva_jax.config.command_line import load_experiment
from seva_jax.data.columns import Columns
from seva_jax.data.embedded import HfParquet, TfdsPrompts
from seva_jax.data.files import ImageFolder, LlavaJson, QuestionsJsonl, SevaJson
from seva_jax.data.llamafactory import LlamaFactoryPairs
from seva_jax.data.messages import SwiftPairs, TrlPairs
from seva_jax.data.mixed import Concatenated, Mixture
from seva_jax.data.preferences import (
    HaDpoPairs,
    PovidPairs,
    RlaifVPairs,
    SevaPairs,
    VLFeedbackPairs,
)
from seva_jax.data.records import ArrayRecordPairs, ArrayRecordPrompts, build
from seva_jax.text.encode import Encoder

QUESTION = "What color is the circle ?"
ANSWERS = {"chosen": "a red circle", "rejected": "a blue ring"}

# One good record for each format of JSON.
GOOD_TURNS = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "yes"}]
BAD_TURNS = [{"from": "human", "value": "<image>\nQ?"}, {"from": "gpt", "value": "no"}]
SAID = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "yes"}]
RATED = {"annotations": {"Helpfulness": {"Rating": "4"}}, "response": "yes"}
WORSE = {"annotations": {"Helpfulness": {"Rating": "1"}}, "response": "no"}
FORMATS = {
    SevaPairs: {"image_id": "a", "question": "Q?", "chosen": "yes", "reject": "no"},
    RlaifVPairs: {"image": "a", "question": "Q?", "chosen": "yes", "rejected": "no"},
    PovidPairs: {
        "id": "1", "image": "a", "conversations": GOOD_TURNS, "rejected_conversations": BAD_TURNS,
    },
    HaDpoPairs: {"image_id": 1, "chosen": ["yes"], "rejected": ["no"]},
    VLFeedbackPairs: {
        "id": "a", "prompt": "Q?", "completions": [RATED, WORSE],
    },
    TrlPairs: {"images": ["a"], "prompt": "Q?", "chosen": "yes", "rejected": "no"},
    SwiftPairs: {"messages": SAID, "images": ["a"], "rejected_response": "no"},
    LlavaJson: {"id": "1", "image": "a", "conversations": GOOD_TURNS},
    QuestionsJsonl: {"id": "1", "image": "a", "question": "Q?"},
    SevaJson: {"image_id": "a", "question": "Q?"},
    LlamaFactoryPairs: {
        "conversations": GOOD_TURNS[:1], "chosen": GOOD_TURNS[1], "rejected": BAD_TURNS[1],
        "images": ["a"],
    },
    Columns: {"image": "a", "question": "Q?", "answer": "yes"},
}  # fmt: skip
LISTS = (LlavaJson, SevaJson)  # a JSON list; the others come as JSON lines too


def encoded(level):
    """Returns a grey PNG."""
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (level,) * 3).save(file, "PNG")
    return file.getvalue()


def _write(folder, name, records):
    path = folder / name
    lines = name.endswith(".jsonl")
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
    return str(path)


def _parquet(folder, name, rows):
    pq.write_table(pa.Table.from_pylist(rows), folder / name)
    return str(folder / name)


def _turns(answer):
    return [
        {"from": "human", "value": f"<image>\n{QUESTION}"},
        {"from": "gpt", "value": answer},
    ]


def _images(folder):
    images = folder / "images"
    (images / "VG_100K").mkdir(parents=True, exist_ok=True)
    for i in range(2):
        (images / f"{i}.png").write_bytes(encoded(100 * i))
        (images / "VG_100K" / f"{i}.jpg").write_bytes(encoded(50 + 100 * i))
    return str(images)


def pair_sources(folder):
    """Writes files and returns one source for each format of pairs."""
    root, chosen, rejected = _images(folder), ANSWERS["chosen"], ANSWERS["rejected"]
    inside = [{"bytes": encoded(90 + i), "path": f"{i}.png"} for i in range(2)]
    words = {"type": "text", "text": QUESTION}
    said = {k: [{"role": "assistant", "content": text}] for k, text in ANSWERS.items()}
    messages = [{"role": "user", "content": f"<image>{QUESTION}"}, *said["chosen"]]
    aspects = ("Helpfulness", "Visual Faithfulness", "Ethical Considerations")
    rated = [
        {"response": text, "annotations": {a: {"Rating": rating} for a in aspects}}
        for text, rating in ((rejected, "1"), (chosen, "5"))
    ]
    seva = [
        {"chosen": chosen, "reject": rejected, "question": QUESTION, "image_id": f"{i}.jpg"}
        for i in range(2)
    ]
    rlaif = [{"image": image, "question": QUESTION, **ANSWERS} for image in inside]
    rlhf = [{"image": image, "text": json.dumps({"question": QUESTION, **ANSWERS})}
            for image in inside]  # fmt: skip
    povid = [
        {"id": i, "image": f"{i}.png", "conversations": _turns(chosen),
         "rejected_conversations": _turns(rejected)} for i in range(2)
    ]  # fmt: skip
    ha_dpo = [{"image_id": i, "chosen": [chosen], "rejected": [rejected]} for i in range(2)]
    feedback = [{"id": str(i), "prompt": QUESTION, "completions": rated, "img_path": f"{i}.png"}
                for i in range(2)]  # fmt: skip
    trl = [
        {
            "images": [f"{i}.png", "0.png"][: 1 + i],
            "prompt": [{"role": "user", "content": [{"type": "image"}] * (1 + i) + [words]}],
            **said,
        }
        for i in range(2)
    ]
    swift = [{"messages": messages, "rejected_response": rejected, "images": [f"{i}.png"],
              "rejected_images": ["1.png"]} for i in range(2)]  # fmt: skip
    built = SevaPairs(_write(folder, "seva.json", seva), root)
    build(built.open(), folder / "built", "", lambda n: None)
    return (
        built,
        RlaifVPairs(_parquet(folder, "rlaif.parquet", rlaif)),
        RlaifVPairs(_parquet(folder, "rlhf.parquet", rlhf)),
        PovidPairs(_write(folder, "povid.json", povid), root),
        HaDpoPairs(_write(folder, "desc_data.json", ha_dpo), root),
        VLFeedbackPairs(_write(folder, "vlf.jsonl", feedback), root),
        TrlPairs(_write(folder, "trl.jsonl", trl), root),
        SwiftPairs(_write(folder, "swift.jsonl", swift), root),
        ArrayRecordPairs(str(folder / "built")),
    )


def prompt_sources(folder, tfds_folder):
    """Writes files and returns one source for each format of prompts.

    The TFDS data set `pictures` has to exist in `tfds_folder`.
    """
    root = _images(folder)
    llava = [{"id": "r", "image": f"{i}.png", "conversations": _turns("red")} for i in range(2)]
    lines = [{"id": i, "question": QUESTION, "images": [f"{i}.png"] * (1 + i)} for i in range(2)]
    seva = [{"question": QUESTION, "image_id": f"{i}.png"} for i in range(2)]
    rows = [{"image": {"bytes": encoded(i), "path": None}, "question": QUESTION} for i in range(2)]
    path = _parquet(folder, "hub.parquet", rows)
    build(HfParquet(path).open(), folder / "built_prompts", "", lambda n: None)
    return (
        ImageFolder(root, questions=(QUESTION,), limit=2),
        LlavaJson(_write(folder, "llava.json", llava), root),
        QuestionsJsonl(_write(folder, "lines.jsonl", lines), root),
        SevaJson(_write(folder, "step3.json", seva), root),
        HfParquet(path),
        TfdsPrompts("pictures", data_dir=tfds_folder, questions=(QUESTION,), limit=2),
        ArrayRecordPrompts(str(folder / "built_prompts")),
    )


def all_pairs(folder):
    """Returns all formats of pairs as one source."""
    sources = pair_sources(folder)
    half = len(sources) // 2
    return Concatenated((Concatenated(sources[:half]), Mixture(sources[half:], (1,) * 5)))


def prepare_pictures(folder):
    """Makes a TFDS data set of three grey images (0, 10, 20) without TensorFlow."""
    import tensorflow_datasets as tfds

    class Pictures(tfds.core.GeneratorBasedBuilder):
        """Grey images with questions."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(),
                "question": tfds.features.Text(),
                "asked": tfds.features.Sequence(tfds.features.Text()),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
                "unused": tfds.features.Sequence(tfds.features.Image()),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, {
                    "image": encoded(10 * i), "question": f"Wie groß ist {i}?",
                    "asked": [f"{i}a?", f"{i}b?"], "label": i % 2,
                    "unused": [b"<html>"],  # TFDS stores what it is given
                }  # fmt: skip

    Pictures(data_dir=str(folder), file_format="array_record").download_and_prepare()
    return str(folder)


def all_batches(folder, moved=lambda source: source):
    """Packs pairs of every format into batches; `moved` may put the source elsewhere.

    A process that reads them is sent sources of parquet, ArrayRecord and folders.
    """
    experiment, _ = load_experiment("test", [])
    assets, data = experiment.base.assets(), moved(all_pairs(folder)).open()
    image, patches = assets.config.image_token_id, assets.config.tile_features
    encoder = Encoder(assets.tokenizer, experiment.text.train, image, one_layout(patches), 96)
    encoded = encode_comparisons(data.comparisons, encoder)
    rows = ComparisonRows(encoded, Pixels(data.load_image, assets.processing, data.remote))
    shapes = RowShapes(2, lambda shape: shape.length)
    return Batches.chosen(rows, shuffled(rows, 4, 8, 2, 1, 5), 4, (0, 1), 1, shapes)
