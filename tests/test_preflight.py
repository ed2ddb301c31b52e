"""What is checked before the first stage of a run, and before its work directory is claimed."""

import dataclasses
import json

import pytest
from helpers_first import beginner, write_questions

from seva_jax import train
from seva_jax.config import Evaluation, TextOptions
from seva_jax.data import QuestionsJsonl, TrlPairs
from seva_jax.evals import ExactAnswer
from seva_jax.objectives import DPO
from seva_jax.run import enough_memory, preflight
from seva_jax.run.preflight import prepared
from seva_jax.run.workdir import Workdir
from seva_jax.runtime.files import write_json
from seva_jax.runtime.processes import require_none
from seva_jax.text import PLAIN, Template
from seva_jax.types import DataError

pytestmark = pytest.mark.usefixtures("one_device")

# Start token, USER, ":", four tokens of the image, four words, ASSISTANT, ":".
IMAGE, TRUNK = 4, 13


@pytest.fixture
def experiment(tmp_path):
    """Returns a config that could be run."""
    return beginner(tmp_path)


def refused(experiment):
    """Returns why a run is refused, whose work directory has not been made."""
    with pytest.raises(DataError) as caught:
        train.run(experiment)
    assert not (preflight.as_path(experiment.workdir)).exists()
    return str(caught.value)


def test_nothing_is_said_or_written_if_all_is_well(experiment, tmp_path, capsys):
    ctx, out = prepared(experiment)
    assert len(out.prompts.prompts) == 6
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()
    ctx.begin()
    assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("limit", [IMAGE, TRUNK - 1, TRUNK])
def test_no_room_for_any_answer(experiment, limit):
    """A trunk of 13 tokens leaves the first token of an answer none of 13, and one of 14."""
    text = dataclasses.replace(experiment.text, max_length=limit)
    said = refused(dataclasses.replace(experiment, text=text))
    if limit == IMAGE:  # known without the tokenizer
        assert "text.max_length 4 leaves no room for questions and answers: an image alone" in said
    else:
        assert said == (
            f"prompts: none of 6 has room for an answer within text.max_length {limit}: images, "
            "template and question take 13 tokens or more; raise it with --text.max-length"
        )
    prepared(dataclasses.replace(experiment, text=dataclasses.replace(text, max_length=TRUNK + 1)))


def test_no_room_for_some_answers(experiment, tmp_path, capsys, monkeypatch):
    """It is said of the first examples, and all are looked at only while none fits."""
    monkeypatch.setattr(preflight, "SAMPLE", 4)
    questions = ["what is this ?", "what is this " * 9 + "?"] * 3
    file = write_questions(tmp_path / "some", questions)
    root = str(tmp_path / "some" / "images")
    text = dataclasses.replace(experiment.text, max_length=20)
    some = dataclasses.replace(experiment, prompts=QuestionsJsonl(str(file), root), text=text)
    prepared(some)
    assert capsys.readouterr().out == (
        "warning: prompts: 2 of the first 4 have no room for an answer within text.max_length 20 "
        "and will be left out; raise it with --text.max-length\n"
    )
    file = write_questions(tmp_path / "late", [*[questions[1]] * 7, questions[0]])
    prepared(dataclasses.replace(some, prompts=QuestionsJsonl(str(file), root)))
    assert "7 of the first 8 have no room" in capsys.readouterr().out


def test_examples_that_are_left_out_are_mentioned(experiment, tmp_path, capsys):
    file = write_questions(tmp_path / "some")
    file.write_text(file.read_text().replace("a.png", "b.png", 1))
    source = QuestionsJsonl(str(file), str(tmp_path / "some" / "images"))
    prepared(dataclasses.replace(experiment, prompts=source))
    said = capsys.readouterr().out
    assert said.startswith("prompts: 1 of 6 are left out (1 missing image), the first: line 1: ")
    assert said.endswith("; seva_jax.data check lists them\n")


def evaluation(folder, name, **fields):
    """Returns an evaluation of questions with these fields."""
    file = write_questions(folder / name)
    rows = [json.loads(line) | fields for line in file.read_text().splitlines()]
    file.write_text("\n".join(map(json.dumps, rows)))
    return Evaluation(ExactAnswer(name), QuestionsJsonl(str(file), str(folder / name / "images")))


def test_everything_that_is_missing_is_listed(experiment, tmp_path):
    """Prompts, evaluations and folders are of one kind: what is read and written."""
    good = evaluation(tmp_path, "good", answer="yes")
    mute = evaluation(tmp_path, "mute")
    lost = dataclasses.replace(mute.prompts, path=str(tmp_path / "lost.jsonl"))
    (tmp_path / "file").write_text("")
    said = refused(
        dataclasses.replace(
            experiment,
            prompts=QuestionsJsonl("nowhere.jsonl", "."),
            evals=(good, mute, Evaluation(ExactAnswer("lost"), lost)),
            train=dataclasses.replace(experiment.train, feature_cache=str(tmp_path / "file" / "x")),
        )
    )
    first, *lines = said.split("\n  ")
    assert first == f"{len(lines)} problems:"
    assert [line.partition(":")[0] for line in lines] == [
        f"train.feature_cache {tmp_path}/file/x cannot be created", "nowhere.jsonl", "mute", "lost",
    ]  # fmt: skip


def test_a_resumed_run_looks_only_at_what_it_needs(experiment, tmp_path, monkeypatch):
    """Evaluations that are finished, and the data of a finished run, may be gone."""
    suite = evaluation(tmp_path, "good", answer="yes")
    experiment = dataclasses.replace(experiment, evals=(suite,))
    Workdir.open(experiment).close()
    stages = {f"evaluate {who}": {"fingerprint": ""} for who in ("base", "aligned")}
    write_json(tmp_path / "run" / "stages.json", stages)
    (tmp_path / "good").rename(tmp_path / "gone")
    prepared(experiment)
    monkeypatch.setattr(preflight, "memory_problems", None)  # is not called either
    monkeypatch.setattr(preflight, "early_text_problems", None)
    everything = stages | {name: {"fingerprint": ""} for name in ("pairs", "align", "report")}
    write_json(tmp_path / "run" / "stages.json", everything)
    (tmp_path / "data").rename(tmp_path / "gone" / "data")
    prepared(experiment)


def test_what_a_checkpoint_says_about_its_template(experiment, tmp_path, capsys):
    """Another family's words in its chat template, and another end token: likely mistakes."""
    model = tmp_path / "model"
    (model / "chat_template.jinja").write_text("{{ '[INST]' + messages[0] }}")
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [6, 7]}))
    prepared(experiment)
    assert capsys.readouterr().out.splitlines() == [
        f"warning: {model}/chat_template.jinja is Llama 2's or Mistral's template (it has [INST]), "
        "which text.train and text.generate lack; a model answers best with the template that it "
        "was trained with (seva_jax.text.Template)",
        *(
            f"warning: text.{name} ends answers with '</s>', but {model} with 'ASSISTANT' or ':' "
            "(eos_token_id of its generation_config.json or config.json)"
            for name in ("train", "generate")
        ),
    ]
    own = TextOptions(Template("", user="[INST]"), PLAIN)
    said = refused(dataclasses.replace(experiment, text=own))
    assert said.startswith("text.generate: the tokenizer does not know every word of the template")


def test_an_objective_that_lacks_something_of_given_pairs(experiment, tmp_path):
    """It is asked about the first pairs, before anything is computed."""
    row = {"prompt": "what is this ?", "chosen": "yes", "rejected": "no", "image": "a.png"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row))

    @dataclasses.dataclass(frozen=True)
    class Picky(DPO):
        """Needs what no pair has."""

        def check(self, comparisons):
            raise DataError(f"{len(comparisons)} pairs lack a colour")

    pairs = TrlPairs(str(tmp_path / "pairs.jsonl"), str(tmp_path / "data" / "images"))
    with pytest.raises(DataError, match=r"^1 pairs lack a colour$"):
        prepared(dataclasses.replace(experiment, prompts=pairs, objective=Picky()))


def test_weights_that_cannot_fit(experiment, monkeypatch):
    """The line names the options that help, and what is needed with them."""
    kept = enough_memory._kept
    sizes = []
    monkeypatch.setattr(enough_memory, "_kept", lambda *a: sizes.append(kept(*a)) or sizes[-1])
    prepared(experiment)
    needed = sizes[0]
    monkeypatch.setattr(enough_memory, "_limit", lambda: (needed, "it has"))
    prepared(experiment)  # fits exactly
    monkeypatch.setattr(enough_memory, "_limit", lambda: (needed - 1, "it has"))
    said = refused(experiment)
    assert said.startswith("weights and training state take 0.0 GiB on each device, and it has 0.0")
    assert "use --compute.base-weights int8 (0.0 GiB), --compute.base-weights nf4 (" in said
    assert "or more devices along --mesh.fsdp or --mesh.tensor" in said
    assert sizes[-1] < needed


def test_devices_that_cannot_share_a_model_that_answers(experiment):
    rollout = dataclasses.replace(experiment.rollout, tensor=2)
    said = refused(dataclasses.replace(experiment, rollout=rollout))
    assert said.startswith("rollout.tensor 2 must divide the 1 device(s) and what it splits")
    assert said.endswith("; set --rollout.tensor to one of 1, 0 (0 chooses)")


def test_problems_of_several_processes_are_those_of_all(monkeypatch):
    monkeypatch.setattr("seva_jax.runtime.processes.gather", lambda mine: [mine, ["b"], ["a", "b"]])
    with pytest.raises(DataError) as caught:
        require_none(["a", "b"])
    assert str(caught.value).splitlines() == ["2 problems:", "  process 0: a", "  b"]
    monkeypatch.setattr("seva_jax.runtime.processes.gather", lambda mine: [mine, ["b"]])
    with pytest.raises(DataError, match=r"^process 1: b$"):
        require_none([])
    monkeypatch.setattr("seva_jax.runtime.processes.gather", lambda mine: [mine, []])
    require_none([])
