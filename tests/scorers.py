"""Other projects' own scorers on our answer files: do they read them, and do they count as we do?

The test suite does not run this, because it needs packages that nothing else needs. They go into a
folder of their own; none of their code is in this repository or changed to run here:

    pip install -e '.[test,bench]'
    pip install --no-deps --target ../theirs llava_torch==1.2.2.post1 ms-vlmeval==0.0.20 \
        lmms-eval==0.7.3 loguru sty pytz tabulate validators evaluate openpyxl et-xmlfile
    git clone https://github.com/haotian-liu/LLaVA ../theirs/LLaVA  # scripts/ is in no package
    git clone https://github.com/AoiDragon/POPE ../theirs/POPE
    python tests/scorers.py ../theirs

Small benchmarks are answered with made-up answers, two of three right. Each scorer then reads the
files in a process of its own, and every number it gives is printed next to ours. With --spoil it
gets files of other answers, so that every line has to say DIFFERS, which shows that it can. The
status is 0 if every scorer was found and every line is as expected. It takes a minute.

Read next: `seva_jax/evals/README.md`, where the results are written down.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import importlib
import io
import json
import multiprocessing
import os
import re
import runpy
import shutil
import statistics
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from helpers_suites import every_suite

from seva_jax.evals import Answer
from seva_jax.evals.suite import Benchmark

NUM = 12
_ROUNDED = 1e-4  # some print shares as percentages with two decimals

Numbers = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Task:
    """One benchmark, answered.

    Attributes:
        files: the benchmark's own files.
        ours: our numbers by metric.
        given: the folder of answer files that scorers read, of the suite alone.
        kept: the same of the answers that `ours` counts; another folder with --spoil.
    """

    files: Path
    ours: Numbers
    given: Path
    kept: Path


# Each scorer runs in a process of its own, because each changes sys.path.


def llava_pope(theirs: Path, task: Task) -> Numbers:
    """LLaVA: llava/eval/eval_pope.py on answers.jsonl and questions.jsonl."""
    text = _llava(
        theirs / "llava/eval/eval_pope.py",
        annotation_dir=task.files / "pope",
        question_file=task.given / "questions.jsonl",
        result_file=task.given / "answers.jsonl",
    )
    found = {}
    for part in text.split("Category: ")[1:]:
        found |= {f"{part.split(',')[0]}/{name}": value for name, value in _pope(part).items()}
    return found


def llava_textvqa(theirs: Path, task: Task) -> Numbers:
    """LLaVA: llava/eval/eval_textvqa.py, with its m4c_evaluator.py, on answers.jsonl."""
    text = _llava(
        theirs / "llava/eval/eval_textvqa.py",
        annotation_file=task.files / "textvqa.json",
        result_file=task.given / "answers.jsonl",
    )
    return {"accuracy": _after("Accuracy", text) / 100}


def llava_scienceqa(theirs: Path, task: Task) -> Numbers:
    """LLaVA: llava/eval/eval_science_qa.py on answers.jsonl."""
    ids = list(json.loads((task.files / "problems.json").read_text()))
    (task.files / "pid_splits.json").write_text(json.dumps({"test": ids}))
    text = _llava(
        theirs / "llava/eval/eval_science_qa.py",
        base_dir=task.files,
        result_file=task.given / "answers.jsonl",
        output_file=task.given / "sqa.out",
        output_result=task.given / "sqa.result",
    )
    names = {"accuracy": "Accuracy", "with image/accuracy": "IMG-Accuracy"}
    return {name: _after(printed, text) / 100 for name, printed in names.items()}


def llava_seed(theirs: Path, task: Task) -> Numbers:
    """LLaVA: scripts/convert_seed_for_submission.py on answers.jsonl."""
    text = _llava(
        theirs / "LLaVA/scripts/convert_seed_for_submission.py",
        ZeroDivisionError,  # its next step counts the questions on videos, which we do not ask
        annotation_file=task.files / "seed.json",
        result_file=task.given / "answers.jsonl",
        result_upload_file=task.given / "upload.jsonl",
    )
    return {"accuracy": _after("image accuracy", text) / 100}


def llava_gqa(theirs: Path, task: Task) -> Numbers:
    """LLaVA: scripts/convert_gqa_for_eval.py on answers.jsonl, next to our gqa.json."""
    return _converted(theirs, task, "convert_gqa_for_eval.py", "gqa.json")


def llava_mm_vet(theirs: Path, task: Task) -> Numbers:
    """LLaVA: scripts/convert_mmvet_for_eval.py on answers.jsonl, next to our mm-vet.json."""
    return _converted(theirs, task, "convert_mmvet_for_eval.py", "mm-vet.json")


def llava_mmbench(theirs: Path, task: Task) -> Numbers:
    """LLaVA: scripts/convert_mmbench_for_submission.py on answers.jsonl and submission.tsv."""
    pandas = importlib.import_module("pandas")
    _llava(
        theirs / "LLaVA/scripts/convert_mmbench_for_submission.py",
        annotation_file=task.files / "mmbench.tsv",
        result_dir=task.given,
        upload_dir=task.given,
        experiment="answers",
    )
    columns = ["index", "question", "A", "B", "answer", "prediction"]
    made = pandas.read_excel(task.given / "answers.xlsx")[columns].to_dict("records")
    ours = pandas.read_table(task.kept / "submission.tsv")[columns].to_dict("records")
    return _same(made, ours)


def pope(theirs: Path, task: Task) -> Numbers:
    """POPE: evaluate.py, whose first lines one edits to name the files, on pope_SET.jsonl."""
    found, script = {}, theirs / "POPE/evaluate.py"
    for category in ("random", "popular"):
        label = task.files / f"pope/coco_pope_{category}.json"
        answers = task.given / f"pope_{category}.jsonl"
        text = script.read_text("utf-8").replace("ans_file = ''", f"ans_file = {str(answers)!r}")
        text = text.replace("label_file = ''", f"label_file = {str(label)!r}")
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(text, script, "exec"), {})
        found |= {f"{category}/{name}": n for name, n in _pope(said.getvalue()).items()}
    return found


def lmms_pope(theirs: Path, task: Task) -> Numbers:
    """lmms-eval: its model from_log on lmms_eval.json, and its task pope."""
    labels = [
        json.loads(line)
        for category in ("random", "popular")
        for line in (task.files / f"pope/coco_pope_{category}.json").read_text().splitlines()
    ]
    said = _from_log(theirs, task, "pope", len(labels))
    utils: Any = importlib.import_module("lmms_eval.tasks.pope.utils")
    documents = [{"question_id": line["question_id"], "answer": line["label"]} for line in labels]
    results = [utils.pope_process_results(d, [a]) for d, a in zip(documents, said, strict=True)]
    return {
        name: getattr(utils, f"pope_aggregate_{name}")([r[f"pope_{name}"] for r in results])
        for name in ("accuracy", "precision", "recall")  # its yes_ratio is of the labels
    }


def lmms_textvqa(theirs: Path, task: Task) -> Numbers:
    """lmms-eval: its model from_log on lmms_eval.json, and its task textvqa_val."""
    data = json.loads((task.files / "textvqa.json").read_text())["data"]
    said = _from_log(theirs, task, "textvqa_val", len(data))
    utils: Any = importlib.import_module("lmms_eval.tasks.textvqa.utils")
    scores = [
        utils.textvqa_process_results(document, [answer])["exact_match"]
        for document, answer in zip(data, said, strict=True)
    ]
    return {"accuracy": statistics.mean(scores)}


def vlmeval_pope(theirs: Path, task: Task) -> Numbers:
    """VLMEvalKit: ImageYORNDataset.evaluate, exact matching, on MODEL_POPE.tsv."""
    table = _vlmeval(theirs, task, "image_yorn", "ImageYORNDataset", "POPE")
    found = {}
    for line in table.to_dict("records"):
        if line["split"] != "Overall":
            found[f"words: {line['split']}/accuracy"] = line["acc"] / 100
            found[f"words: {line['split']}/f1"] = line["Overall"] / 100
    return found


def vlmeval_mmbench(theirs: Path, task: Task) -> Numbers:
    """VLMEvalKit: ImageMCQDataset.evaluate, exact matching, on MODEL_MMBench_DEV_EN.tsv."""
    pandas = importlib.import_module("pandas")
    questions = {"data": pandas.read_table(task.files / "mmbench.tsv")}
    table = _vlmeval(theirs, task, "image_mcq", "ImageMCQDataset", "MMBench_DEV_EN", questions)
    return {"circular_accuracy": float(table["Overall"][0])}


def vlmeval_gqa(theirs: Path, task: Task) -> Numbers:
    """VLMEvalKit: ImageVQADataset.evaluate on MODEL_GQA_TestDev_Balanced.tsv."""
    table = _vlmeval(theirs, task, "image_vqa", "ImageVQADataset", "GQA_TestDev_Balanced")
    return {"accuracy": float(table["Overall"][0]) / 100}


SCORERS: tuple[tuple[Callable[[Path, Task], Numbers], str], ...] = (
    (llava_pope, "pope"),
    (llava_textvqa, "textvqa"),
    (llava_scienceqa, "scienceqa"),
    (llava_seed, "seed"),
    (llava_gqa, "gqa"),
    (llava_mm_vet, "mm-vet"),
    (llava_mmbench, "mmbench"),
    (pope, "pope"),
    (lmms_pope, "pope"),
    (lmms_textvqa, "textvqa"),
    (vlmeval_pope, "pope"),
    (vlmeval_mmbench, "mmbench"),
    (vlmeval_gqa, "gqa"),
)
"""Each scorer and the suite whose files it reads."""


def _llava(script: Path, *expected: type[Exception], **options: object) -> str:
    """Returns what one of LLaVA's scripts prints, even if it ends with an expected error."""
    _without_init(script.parents[2], "llava")  # it imports the model, for an old transformers
    sys.argv = [str(script), *(f"--{k.replace('_', '-')}={v}" for k, v in options.items())]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(*expected):
        runpy.run_path(str(script), run_name="__main__")
    return said.getvalue()


def _converted(theirs: Path, task: Task, script: str, ours: str) -> Numbers:
    """Compares what one of LLaVA's scripts makes of answers.jsonl with a file of ours."""
    made = task.given / "converted.json"
    _llava(theirs / "LLaVA/scripts" / script, src=task.given / "answers.jsonl", dst=made)
    both = [json.loads(path.read_text()) for path in (made, task.kept / ours)]
    return _same(*(list(one.items()) if isinstance(one, dict) else one for one in both))


def _from_log(theirs: Path, task: Task, name: str, num: int) -> list[str]:
    """Returns the answers that lmms-eval takes from the folder of all suites."""
    _without_init(theirs, "lmms_eval.tasks")  # it imports every task
    instance: Any = importlib.import_module("lmms_eval.api.instance")
    model: Any = importlib.import_module("lmms_eval.models.simple.from_log")
    requests = [
        instance.Instance(
            "generate_until", ("", {}, None, i, name, "test"), i,
            {"task": name, "doc_id": i, "repeats": 1},
        )
        for i in range(num)
    ]  # fmt: skip
    return model.FromLog(logs=str(task.given.parent)).generate_until(requests)


def _vlmeval(
    theirs: Path, task: Task, module: str, kind: str, name: str, fields: Mapping[str, Any] = {}
) -> Any:
    """Returns the table of a data set of VLMEvalKit, without its constructor's download."""
    _without_init(theirs, "vlmeval", "vlmeval.dataset")  # they import every model and data set
    os.environ["PRED_FORMAT"] = "tsv"
    multiprocessing.set_start_method("fork", force=True)  # its workers are to know these modules
    made: Any = importlib.import_module(f"vlmeval.dataset.{module}")
    dataset = object.__new__(getattr(made, kind))
    vars(dataset).update({"dataset_name": name, **fields})
    table = shutil.copy(task.given / f"tiny_{name}.tsv", tempfile.mkdtemp(dir=task.files))
    return dataset.evaluate(str(table), model="exact_matching")


def _without_init(theirs: Path, *packages: str) -> None:
    """Makes modules of packages importable without what the packages themselves import."""
    sys.path.append(str(theirs))
    for package in packages:
        module = types.ModuleType(package)
        module.__path__ = [str(theirs.joinpath(*package.split(".")))]
        sys.modules[package] = module


def _after(name: str, text: str) -> float:
    """Returns the number that is printed after a name."""
    match = re.search(rf"(?<![\w-]){name}: ([\d.]+)", text)
    assert match, f"no {name} in: {text}"
    return float(match[1])


def _pope(text: str) -> Numbers:
    """Returns what LLaVA's and POPE's own scorers print about one set."""
    names = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall"}
    names |= {"f1": "F1 score", "yes_ratio": "Yes ratio"}
    return {name: _after(printed, text) for name, printed in names.items()}


def _same(theirs: Sequence[Any], ours: Sequence[Any]) -> Numbers:
    """Returns the share of equal lines in two files of equal length."""
    return {"same lines": statistics.mean(a == b for a, b in zip(theirs, ours, strict=True))}


def answered(suite: Benchmark, files: Path, spoil: bool) -> Task:
    """Answers a benchmark's questions, two of three right, and writes the answer files.

    Args:
        suite: the benchmark.
        files: of the benchmark; the answers go into folders below it.
        spoil: whether scorers are given other answers: the right ones wrong, the wrong ones right.
    """
    default = type(suite)().suffix  # LLaVA's scorers look for it in the question
    questions = dataclasses.replace(suite, suffix=default).open()
    prompts = list(questions.prompts)

    def write(folder: str, inverted: bool) -> tuple[Path, list[str]]:
        texts = []
        for i, prompt in enumerate(prompts):
            truth = prompt.meta.get("answer") or prompt.meta["people"][0]
            wrong = {"yes": "no", "no": "yes", "A": "B", "B": "A"}.get(truth, "none of it")
            texts.append(wrong if (i % 3 == 0) != inverted else truth)
        path = files / folder / suite.name
        path.mkdir(parents=True)
        answers = [Answer(p, t) for p, t in zip(prompts, texts, strict=True)]
        suite.write_answers(path, "tiny", answers)
        return path, texts

    kept, texts = write("kept", False)
    given, _ = write("given", spoil)
    metrics = questions.evaluator(lambda _: texts, prompts).metrics
    ours = {name: metric.value for name, metric in metrics.items()}
    return Task(files, {"same lines": 1.0, **ours}, given, kept)


def main() -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("theirs", type=Path, help="the folder their packages were installed into")
    parser.add_argument("--spoil", action="store_true", help="give them files of other answers")
    flags = parser.parse_args()
    wanted, surprises = "DIFFERS" if flags.spoil else "equal", 0
    with tempfile.TemporaryDirectory() as folder:
        suites = {suite.name: suite for suite in every_suite(Path(folder), NUM)}
        tasks = {
            name: answered(suites[name], Path(folder), flags.spoil)
            for name in dict.fromkeys(name for _, name in SCORERS)
        }
        with concurrent.futures.ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), max_tasks_per_child=1
        ) as pool:
            for scorer, name in SCORERS:
                print(scorer.__doc__)
                try:
                    found = pool.submit(scorer, flags.theirs.resolve(), tasks[name]).result()
                except Exception as error:
                    surprises += 1
                    missing = isinstance(error, ImportError | FileNotFoundError)
                    print(f"  {'NOT THERE (see -h)' if missing else 'REFUSED'}: {error!r}")
                    continue
                for metric, value in found.items():
                    ours = tasks[name].ours[metric]
                    verdict = "equal" if abs(value - ours) < _ROUNDED else "DIFFERS"
                    surprises += verdict != wanted
                    print(f"  {metric:25} theirs {value:.4f}  ours {ours:.4f}  {verdict}")
    print(f"{surprises} lines are not {wanted}" if surprises else f"all {wanted}")
    return int(surprises > 0)


if __name__ == "__main__":
    sys.exit(main())
