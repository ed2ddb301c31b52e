"""Files of every benchmark, about images of the procedural world, in words its model knows."""

import base64
import csv
import json

from PIL import Image

from seva_jax.evals import suites
from seva_jax.evals.judge import Case, LocalJudge, Verdict
from seva_jax.worlds import ShapeWorld

NUM = 2
_WORLD = ShapeWorld()


def by_words(case: Case) -> Verdict:
    """Judges answers by whether they have words."""
    return Verdict(tuple(min(float(len(a.split())), 1.0) for a in case.answers), "by length")


def every_suite(folder, num=NUM):
    """Writes files into a folder and returns one suite of each kind, with `num` questions each.

    POPE has them in two sets, MMBench also with rotated options.
    """

    def dump(name, value):
        (folder / name).write_text(json.dumps(value))
        return str(folder / name)

    def lines(name, records):
        (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(folder / name)

    images = folder / "images"
    (images / "VG_100K").mkdir(parents=True)
    (folder / "pope").mkdir()
    for i in range(num):
        for name in (f"{i}.jpg", f"VG_100K/{i}.jpg"):
            Image.fromarray(_WORLD.draw("e", i, False)).save(images / name, "PNG")
    asked = [_WORLD.prompt("e", i, False, "color") for i in range(num)]
    texts, truths = [p.question for p in asked], [p.meta["answer"] for p in asked]
    short = {"image_root": str(images), "suffix": "", "max_new_tokens": 4}
    long = {"image_root": str(images), "max_new_tokens": 8}
    ids = range(num)

    there = [_WORLD.prompt("e", i, False, "presence") for i in ids]
    for category in ("random", "popular"):
        lines(
            f"pope/coco_pope_{category}.json",
            [
                {
                    "question_id": i,
                    "image": f"{i}.jpg",
                    "text": there[i].question,
                    "label": there[i].meta["answer"],
                }
                for i in ids
            ],
        )
    gqa = dump(
        "gqa.json",
        {
            f"g{i}": {"imageId": str(i), "question": texts[i], "answer": truths[i], "types": {}}
            for i in ids
        },
    )
    textvqa = dump(
        "textvqa.json",
        {
            "data": [
                {
                    "question": texts[i],
                    "image_id": str(i),
                    "question_id": i,
                    "answers": [truths[i]] * (10 - i % 9) + ["gray"] * (i % 9),
                }
                for i in ids
            ]
        },
    )
    with (folder / "mmbench.tsv").open("w", newline="") as file:
        table = csv.writer(file, dialect="excel-tab", lineterminator="\n")
        columns = ["index", "question", "hint", "A", "B", "answer", "category", "image", "source"]
        table.writerow([*columns, "l2-category", "comment", "split"])
        for i in ids:
            image = base64.b64encode((images / f"{i}.jpg").read_bytes()).decode()
            more = ["made up", "perception", "", "dev"]
            table.writerow([i, texts[i], "", "red", "blue", "A", "color", image, *more])
            rotated = [i + 1_000_000, texts[i], "", "blue", "red", "B", "color", i]
            table.writerow([*rotated, *more])
    seed = dump(
        "seed.json",
        {
            "question_type": {"Color": 1},
            "questions": [
                {
                    **{"question": texts[i], "choice_a": "red", "choice_b": "blue"},
                    **{"choice_c": "green", "choice_d": "white", "answer": "A"},
                    **{"data_id": str(i), "data_type": "image", "question_id": str(i)},
                    "question_type_id": 1,
                }
                for i in ids
            ],
        },
    )
    science = dump(
        "science.json",
        [
            {
                "id": str(i),
                "image": f"{i}.jpg",
                "conversations": [{"from": "human", "value": f"<image>\n{texts[i]}"}],
            }
            for i in ids
        ],
    )
    problem = {"choices": ["red", "blue"], "answer": 0, "subject": "color", "grade": "grade2"}
    problems = dump("problems.json", {str(i): problem for i in ids})
    instances = dump(
        "instances.json",
        {
            "images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
            "annotations": [{"image_id": i, "category_id": 1} for i in ids],
            "categories": [{"id": 1, "name": "circle"}],
        },
    )
    (folder / "synonyms.txt").write_text("circle, disc\n")
    vet = dump(
        "mm-vet.json",
        {
            f"v1_{i}": {
                "imagename": f"{i}.jpg",
                "question": texts[i],
                "answer": truths[i],
                "capability": ["rec"],
            }
            for i in ids
        },
    )
    lines(
        "questions.jsonl",
        [
            {"question_id": i, "text": texts[i], "image": f"{i}.jpg", "category": "conv"}
            for i in ids
        ],
    )
    lines("context.jsonl", [{"image": f"{i}.jpg", "caption": "a shape"} for i in ids])
    lines("answers_gpt4.jsonl", [{"question_id": i, "text": truths[i]} for i in ids])
    dump("val_images_final.json", [{"image_id": i} for i in ids])
    for part in (1, 2):
        lines(f"shr_factual_part{part}.jsonl", [{str(i): ["a shape"]} for i in ids])
    url = "https://cs.stanford.edu/people/rak248/VG_100K/{}.jpg"
    dump("image_data.json", [{"image_id": i, "url": url.format(i)} for i in ids])
    dump("region_descriptions.json", [{"id": i, "regions": []} for i in ids])

    judge = LocalJudge(by_words)
    return [
        suites.PopeSets(
            folder=str(folder / "pope"), sets=("random", "popular"), lmms_task="pope", **short
        ),
        suites.GQA(path=gqa, vlmeval_dataset="GQA_TestDev_Balanced", **short),
        suites.TextVQA(path=textvqa, lmms_task="textvqa_val", **short),
        suites.MMBench(path=str(folder / "mmbench.tsv"), vlmeval_dataset="MMBench_DEV_EN", **short),
        suites.SeedBench(path=seed, **short),
        suites.ScienceQA(path=science, problems=problems, **short),
        suites.CocoChair(
            instances=instances, synonyms=str(folder / "synonyms.txt"), num_images=2, **long
        ),
        suites.MMVet(path=vet, judge=judge, **long),
        suites.LlavaBench(folder=str(folder), judge=judge, **long),
        suites.Shr(folder=str(folder), vg_folder=str(folder), judge=judge, **long),
    ]
