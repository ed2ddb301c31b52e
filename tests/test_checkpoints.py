"""Checkpoints: every kind of damage is noticed and named, and the previous one is used instead."""

import json
import random
import shutil

import jax
import numpy as np
import pytest
from helpers_checkpoints import FACTS, restored, save, state

from seva_jax.training.checkpoint import ASIDE, read_trained
from seva_jax.training.digests import NAME, newest
from seva_jax.types import DataError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Returns the directory of a stage that saved steps 2 and 3."""
    directory = tmp_path_factory.mktemp("checkpoints") / "align"
    save(directory, 1, 2, 3)
    return directory


@pytest.fixture
def copied(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "align")


def files(step):
    return sorted(p for p in step.rglob("*") if p.is_file() and p.parent != step)


def test_two_are_kept_and_the_newest_is_used(copied):
    assert newest(copied) == (3, [])
    assert sorted(p.name for p in copied.iterdir()) == ["2", "3"]
    assert restored(copied) == 3


def test_flipped_bytes(copied):
    """A flipped byte in any of 20 places is noticed; Orbax alone restores most of them."""
    chance = random.Random(7)
    places = [(f, i) for f in files(copied / "3") for i in range(f.stat().st_size)]
    for file, offset in chance.sample(places, 20):
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        step, ((name, why),) = newest(copied)
        assert (step, name) == (2, "3")
        assert (
            why == f"{file.relative_to(copied / '3')} has another digest than when it was written"
        )
        file.write_bytes(whole)
    assert newest(copied) == (3, [])


def test_flipped_bytes_of_the_digests(copied):
    """A flipped byte of the list of digests itself is noticed."""
    chance, file = random.Random(8), copied / "3" / NAME
    whole = file.read_bytes()
    for offset in chance.sample(range(len(whole)), 20):
        flipped = bytearray(whole)
        flipped[offset] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        assert newest(copied)[0] == 2, bytes(flipped[max(0, offset - 20) : offset + 20])


def test_the_only_file_without_a_digest_is_not_needed(copied):
    """Orbax changes it after the digests are written, so a checkpoint does without it."""
    listed = json.loads((copied / "3" / NAME).read_text())
    others = {p.name for p in (copied / "3").iterdir() if p.is_file()}
    assert listed.keys() == {str(p.relative_to(copied / "3")) for p in files(copied / "3")}
    assert others == {"_CHECKPOINT_METADATA", "commit_success.txt", NAME}
    file, chance = copied / "3" / "_CHECKPOINT_METADATA", random.Random(9)
    whole = file.read_bytes()
    flipped = bytearray(whole)
    for offset in chance.sample(range(len(whole)), 9):
        flipped[offset] ^= 1 << chance.randrange(8)
    for damaged in (flipped, whole[: len(whole) // 2], b""):
        file.write_bytes(damaged)
        assert restored(copied) == 3
    file.unlink()
    assert restored(copied) == 3


@pytest.mark.parametrize("harm", ["cut", "emptied", "deleted"])
def test_every_file_is_looked_at(copied, harm):
    """Any file of the newest checkpoint that is cut, emptied or deleted is noticed."""
    for file in files(copied / "3"):
        whole = file.read_bytes()
        if harm == "deleted":
            file.unlink()
        else:
            file.write_bytes(whole[: len(whole) // 2] if harm == "cut" else b"")
        step, found = newest(copied)
        if whole or harm == "deleted":  # some of Orbax's are empty
            assert step == 2
            name = str(file.relative_to(copied / "3"))
            size = f" has {len(whole) // 2 if harm == 'cut' else 0} bytes instead of {len(whole)}"
            assert found[0].why == name + (
                " cannot be read (No such file or directory)" if harm == "deleted" else size
            )
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("commit_success.txt", None, "commit_success.txt is missing"),
        (NAME, None, f"{NAME} is missing"),
        (NAME, b"", f"{NAME} is damaged"),
        (NAME, b"{}", f"{NAME} is damaged"),
        (NAME, b"[1]", f"{NAME} is damaged"),
        (NAME, b'{"state/x": 5}', f"{NAME} is damaged"),
    ],
)
def test_unfinished_checkpoints(copied, capsys, name, content, why):
    """They are reported and put aside, and training resumes from the previous one."""
    (copied / "3" / name).unlink()
    if content is not None:
        (copied / "3" / name).write_bytes(content)
    assert restored(copied) == 2
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert f"{copied}/3 is not used: {why}" in said
    assert (copied / ASIDE / "3" / "state").is_dir()


def test_a_damaged_step_never_pushes_out_the_last_good_one(copied):
    """Two good ones are kept, however often the newest is damaged."""
    for round_ in range(3):
        shutil.rmtree(copied / "3" / "state" / "d")
        save(copied, 3)
        assert newest(copied) == (3, [])
        assert sorted(p.name for p in copied.iterdir()) == ["2", "3", ASIDE], round_
    assert len(list((copied / ASIDE).iterdir())) == 3
    assert restored(copied) == 3


def test_stray_directories(copied, capsys):
    """Empty or foreign directories and files are neither used nor deleted, and saves still work."""
    (copied / "4").mkdir()
    (copied / "1").mkdir()
    (copied / "2024").mkdir()
    (copied / "2024" / "photo.jpg").write_bytes(b"mine")
    (copied / "5").write_bytes(b"a file")
    (copied / "0x7").mkdir()
    (copied / "6.orbax-checkpoint-tmp").mkdir()  # of a save that was killed
    assert restored(copied) == 3
    said = capsys.readouterr().out
    for name in ("1", "4", "5", "2024"):
        assert said.count(f"{copied}/{name} is not used: ") == 1
    save(copied, 4, 5, 6)
    assert sorted(p.name for p in copied.iterdir()) == ["0x7", "5", "6", ASIDE]
    assert (copied / ASIDE / "2024" / "photo.jpg").read_bytes() == b"mine"
    assert restored(copied) == 6


def test_nothing_intact_is_an_error(copied):
    """Training does not silently restart, and nothing is moved, so that a person can look."""
    for step in ("2", "3"):
        (copied / step / "data" / "metadata").unlink()
    for reads in (restored, lambda path: read_trained(path, {})):
        with pytest.raises(
            DataError, match=r"align has no intact checkpoint \(3: data/metadata ca"
        ):
            reads(copied)
    assert {"2", "3"} <= {p.name for p in copied.iterdir()}


def test_a_run_killed_before_its_first_save_starts(tmp_path):
    """Orbax's unfinished directory does not count as a checkpoint."""
    (tmp_path / "align" / "1.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    assert restored(tmp_path / "align") is None
    with pytest.raises(DataError, match="holds no checkpoint"):
        read_trained(tmp_path / "nowhere", {})


@pytest.mark.parametrize(
    ("name", "here"),
    [
        ("model.text.hidden_size", 64),
        ("model.text.vocab_size", 100),
        ("lora.rank", 8),
        ("tokenizer", "b"),
        ("objective", "new"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(saved, name, here):
    """The error is one line and has both values."""
    with pytest.raises(DataError) as caught:
        restored(saved, facts=FACTS | {name: here})
    there = repr(FACTS.get(name, "absent"))
    assert f"{saved}/3 is of another run: {name} is {there} there and {here!r} here" in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_other_shapes_are_refused(saved):
    """A resumed run and an export name the parameter and both shapes."""
    wide = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0, width=48)
    )
    expected = r"lora\.a has shape \(24, 40\) there and \(48, 40\) here"
    with pytest.raises(DataError, match=expected):
        restored(saved, like=wide)
    with pytest.raises(DataError, match=expected):
        read_trained(saved, wide.trainable)
    with pytest.raises(
        DataError, match=r"it has no trainable\.lora\.b, which has shape \(24, 40\)"
    ):
        read_trained(saved, {"lora": {"b": state(0).trainable["lora"]["a"]}})


def test_the_last_one_of_a_finished_run(copied):
    """The result of a run is its last step with its facts, or one line that says what to do."""
    like = state(0).trainable
    kept = read_trained(copied, like, 3, FACTS)
    jax.tree.map(np.testing.assert_array_equal, kept, state(3).trainable)
    with pytest.raises(DataError, match=r"/3 is of another run: tokenizer is 'a' there and 'b' he"):
        read_trained(copied, like, 3, FACTS | {"tokenizer": "b"})
    with pytest.raises(DataError, match=r"no intact checkpoint of step 4.* \(it is not there\)"):
        read_trained(copied, like, 4, FACTS)
    (copied / "3" / NAME).unlink()
    with pytest.raises(DataError) as caught:
        read_trained(copied, like, 3, FACTS)
    said = str(caught.value)
    assert f"of step 3, the last one (3: {NAME} is missing" in said
    assert "only of step 2; put back a copy, or remove 'align' from stages.json" in said
    assert "\n" not in said


def test_processes_share_the_reading(saved, monkeypatch):
    """Each process reads only its own files; one that finds damage tells the others."""
    from seva_jax.training import digests

    read = []
    monkeypatch.setattr(digests, "_difference", lambda file, *_: read.append(file))
    parts = [digests.damage(saved / "3", (i, 3)) for i in range(3)]
    assert parts == [None] * 3
    assert sorted(read) == files(saved / "3")
    monkeypatch.setattr(
        digests, "gather", lambda x: [x, "state/x is damaged"] if not isinstance(x, list) else [x]
    )
    with pytest.raises(DataError, match="state/x is damaged"):
        newest(saved)
