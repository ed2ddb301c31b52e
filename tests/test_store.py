"""Files of a run: what is written is read back exactly, and damage is named."""

import dataclasses
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from seva_jax.data import json_records
from seva_jax.run import reference
from seva_jax.run.rollouts import INDEX, LINES, RECORDS, read_rollouts, write_rollouts
from seva_jax.runtime import files
from seva_jax.types import Comparison, DataError, Prompt, Rollout, View

# Quotes, line ends of every kind, characters outside ASCII and outside the BMP, and an empty text.
TEXTS = (
    'say "red"\\',
    "two\nlines\r\nand\ra\ttab",
    "unicode separators \u2028 \u2029 \x85 \x0b \x0c \x1c",
    "été 颜色 🟥",
    "\x00",
    "",
)


def prompt(index=0, **meta):
    """Makes a prompt with a difficult question and ground truth of every allowed kind."""
    truth = {"objects": [["red", "circle"]], "n": 3, "p": 0.1, "none": "", **meta}
    return Prompt(f"id/{index}", TEXTS[index % len(TEXTS)], ("a.png", "b/ü.jpg"), truth)


def comparisons():
    """Makes comparisons of several shapes."""
    return [
        Comparison(prompt(0), ("yes", "no"), corruptions=(0,)),
        Comparison(prompt(1), TEXTS[:4], weight=0.1, corruptions=(0, 1, 2)),
        Comparison(prompt(2), ("yes",), scores=(0.1, 3.0), more=(View(prompt(3), ("no",)),)),
        Comparison(Prompt("text only", "why?", ()), ("because",), weight=0.0),
    ]


# --- JSON lines -----------------------------------------------------------------------------------


def test_rollouts_round_trip(tmp_path):
    """They are appended batch by batch."""
    path = tmp_path / "rollouts.jsonl"
    rollouts = [Rollout(prompt(i), TEXTS[i], (TEXTS[-i], "x")) for i in range(len(TEXTS))]
    files.append_lines(path, map(json_records.rollout_record, rollouts[:2]))
    files.append_lines(path, [])
    files.append_lines(path, map(json_records.rollout_record, rollouts[2:]))
    assert [json_records.rollout_from(r) for r in files.read_lines(path)] == rollouts
    assert path.read_bytes().count(b"\n") == len(rollouts)


def test_beginnings_of_answers_are_written_where_there_are_some(tmp_path):
    """Files of prompts without one are as before, and earlier ones can be read."""
    begun = dataclasses.replace(prompt(), start="The circle")
    for one in (prompt(start=""), begun):
        rollout = Rollout(one, "is red", ())
        record = json_records.rollout_record(rollout)
        assert ("start" in record) == (one is begun)
        assert record["meta"] == one.meta  # a field of the same name there stays
        assert json_records.rollout_from(json.loads(json.dumps(record))) == rollout
        pairs = [Comparison(one, ("a", "b"), more=(View(one, ("c",)),))]
        json_records.write_comparisons(tmp_path / "pairs.array_record", pairs)
        assert json_records.read_comparisons(tmp_path / "pairs.array_record") == pairs
        (record,) = files.read_records(tmp_path / "pairs.array_record")
        assert ("start" in record["prompt"]) == ("start" in record["more"][0]["prompt"])
        assert ("start" in record["prompt"]) == (one is begun)
        assert pairs[0].texts == tuple(one.start + x for x in ("a", "b", "c"))


def test_finished_rollouts(tmp_path):
    """They are ArrayRecord with an index for people; runs of earlier versions have lines."""
    records = [
        json_records.rollout_record(Rollout(prompt(0), "a red circle", ("red", "a red circle"))),
        {"id": "gone", "dropped": "unreadable image"},
        json_records.rollout_record(Rollout(prompt(1), "", ("blue", "a"))),
    ]
    records = json.loads(json.dumps(records))  # lists for tuples
    files.append_lines(tmp_path / LINES, records)
    assert read_rollouts(tmp_path) == records
    write_rollouts(tmp_path, records[:2], ["DiffusionNoise(step=900)", "Solarize()"])
    assert read_rollouts(tmp_path) == records[:2]
    (tmp_path / LINES).unlink()
    write_rollouts(tmp_path, records, ["DiffusionNoise(step=900)", "Solarize()"])
    assert read_rollouts(tmp_path) == records
    assert json.loads((tmp_path / INDEX).read_text()) == {
        "prompts": 3,
        "answered": 2,
        "drops": {"unreadable image": 1},
        "clean": {
            "different answers": 2,
            "empty": 1,
            "words": {"least": 0, "median": 1.5, "most": 3},
        },
        "corrupted": [
            {
                "corruption": "DiffusionNoise(step=900)",
                "different answers": 2,
                "empty": 0,
                "words": {"least": 1, "median": 1, "most": 1},
                "equal to clean": 0,
            },
            {
                "corruption": "Solarize()",
                "different answers": 2,
                "empty": 0,
                "words": {"least": 1, "median": 2, "most": 3},
                "equal to clean": 1,
            },
        ],
    }
    (tmp_path / RECORDS).write_bytes(b"")
    with pytest.raises(DataError, match="is damaged"):
        read_rollouts(tmp_path)


def test_a_missing_file_has_no_lines(tmp_path):
    """A run that has not started has none."""
    assert files.read_lines(tmp_path / "none.jsonl") == []
    assert not (tmp_path / "none.jsonl").exists()


def test_every_cut_of_a_file_leaves_whole_lines(tmp_path):
    """Finished lines are kept, the rest is cut off, and appending works."""
    path = tmp_path / "lines.jsonl"
    records = [{"text": TEXTS[3], "n": 1}, {"n": 22}]
    files.append_lines(path, records)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = sum(end <= size for end in ends)
        assert files.read_lines(path) == records[:kept]
        assert path.read_bytes() == whole[: ([0, *ends])[kept]]
        files.append_lines(path, records[kept:])
        assert path.read_bytes() == whole


def test_a_broken_line_before_the_last_is_named(tmp_path):
    """No kill does that, so nothing is cut."""
    path = tmp_path / "lines.jsonl"
    content = b'{"n": 1}\n{"n": \n{"n": 3}\n'
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"lines\.jsonl, line 2: not JSON .*delete the file"):
        files.read_lines(path)
    assert path.read_bytes() == content


def test_bytes_that_are_not_utf8_are_named(tmp_path):
    """A failing disk may return such bytes."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": "\xff"}\n{"n": 3}\n')
    with pytest.raises(DataError, match="line 1"):
        files.read_lines(path)


def test_json_is_replaced_as_a_whole(tmp_path, monkeypatch):
    """A kill before the rename leaves the old file."""
    path = tmp_path / "index.json"
    files.write_json(path, {"texts": TEXTS})
    assert json.loads(path.read_text("utf-8")) == {"texts": list(TEXTS)}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(type(path), "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        files.write_json(path, {"texts": []})
    assert json.loads(path.read_text("utf-8")) == {"texts": list(TEXTS)}


# --- ArrayRecord ----------------------------------------------------------------------------------


def test_comparisons_round_trip(tmp_path):
    """They are equal, in order, and tuples stay tuples."""
    path = tmp_path / "pairs.array_record"
    json_records.write_comparisons(path, comparisons())
    assert json_records.read_comparisons(path) == comparisons()
    json_records.write_comparisons(path, comparisons()[:1])  # replaces
    assert json_records.read_comparisons(path) == comparisons()[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.array_record"]


def test_many_records_keep_their_order(tmp_path):
    """There are more than a reader's chunk holds."""
    path = tmp_path / "many.array_record"
    files.write_records(path, ({"n": n, "pad": "x" * (n % 97)} for n in range(3000)))
    assert [r["n"] for r in files.read_records(path)] == list(range(3000))


def test_a_missing_file_is_named(tmp_path):
    """The error says what to do."""
    with pytest.raises(DataError, match=r"gone\.array_record is missing"):
        files.read_records(tmp_path / "gone.array_record")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"x",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: b"x" * len(content),
        lambda content: bytes(len(content)),
    ],
    ids=["empty", "one byte", "cut in half", "last byte gone", "something else", "zeros"],
)
def test_a_damaged_file_is_named(tmp_path, damage):
    """The error says what to do."""
    path = tmp_path / "pairs.array_record"
    json_records.write_comparisons(path, comparisons())
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=r"pairs\.array_record is damaged .*delete it"):
        json_records.read_comparisons(path)


def test_no_flipped_byte_is_read_as_something_else(tmp_path):
    """Hashes catch it, unless no reader uses the byte."""
    path = tmp_path / "pairs.array_record"
    json_records.write_comparisons(path, comparisons())
    content = path.read_bytes()
    used = np.flatnonzero(np.frombuffer(content, np.uint8))
    num_caught, places = 0, used[::3].tolist()
    for place in places:
        flipped = bytearray(content)
        flipped[place] ^= 0x11
        path.write_bytes(flipped)
        try:
            assert json_records.read_comparisons(path) == comparisons(), place
        except DataError:
            num_caught += 1
    assert num_caught > len(places) / 2


def test_a_failed_write_leaves_the_old_file(tmp_path):
    """Records come from a generator that may fail."""
    path = tmp_path / "pairs.array_record"
    files.write_records(path, [{"n": 1}])

    def records():
        yield {"n": 2}
        raise RuntimeError("failed")

    with pytest.raises(RuntimeError, match="failed"):
        files.write_records(path, records())
    assert files.read_records(path) == [{"n": 1}]


# --- reference log-probs --------------------------------------------------------------------------


def float32_bits(values):
    """Returns bit patterns, which tell -0.0 from 0.0."""
    return np.asarray(values, np.float32).view(np.uint32)


def test_reference_log_probs_are_exact(tmp_path):
    """Every bit of a float32 survives: random patterns, denormals, both zeros, the extremes."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, 20_000, np.uint64).astype(np.uint32)
    random = bits.view(np.float32)
    random = random[np.isfinite(random)]
    denormals = rng.integers(1, 2**23, 2_000).astype(np.uint32).view(np.float32)
    tiny, largest = np.finfo(np.float32).tiny, np.finfo(np.float32).max
    special = np.array([0.0, -0.0, tiny, -tiny, largest, -largest, 1e-45, -0.1], np.float32)
    typical = -rng.exponential(2, 5_000).astype(np.float32)
    assert denormals.max() < tiny
    logps = [(random, special), (denormals, -denormals), (typical,), (special[:1], special[1:])]
    ids = [f"id {i}" for i in range(len(logps))]
    path = tmp_path / "reference.array_record"
    reference.write_logps(path, ids, logps, "fingerprint")
    read = reference.read_logps(path, ids, "fingerprint")
    assert len(read) == len(logps)
    for found, expected in zip(read, logps, strict=True):
        assert isinstance(found, tuple)
        for a, b in zip(found, expected, strict=True):
            assert a.dtype == np.float32
            np.testing.assert_array_equal(float32_bits(a), float32_bits(b))


def test_stale_reference_log_probs_are_refused(tmp_path):
    """Other weights or pairs, another order, or fewer pairs are refused."""
    path = tmp_path / "reference.array_record"
    ids, logps = ["a", "b"], [[np.zeros(2, np.float32)]] * 2
    reference.write_logps(path, ids, logps, "made for this")
    assert len(reference.read_logps(path, ids, "made for this")) == 2
    with pytest.raises(DataError, match=r"made for this instead of something else.*delete it"):
        reference.read_logps(path, ids, "something else")
    for others in (["b", "a"], ["a"], ["a", "b", "c"], []):
        with pytest.raises(DataError, match=r"reference\.array_record belongs to other pairs"):
            reference.read_logps(path, others, "made for this")


def test_reference_needs_one_entry_for_each_id(tmp_path):
    """A caller's mistake does not become a file."""
    path = tmp_path / "reference.array_record"
    with pytest.raises(ValueError, match="zip"):
        reference.write_logps(path, ["a", "b"], [[np.zeros(1, np.float32)]], "f")
    assert not path.exists()


# --- power loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_json(path, {"a": "x" * 5000}),
        lambda path: files.write_lines(path, [{"a": "x" * 5000}]),
        lambda path: files.write_records(path, [{"a": "x" * 5000}]),
    ],
    ids=["JSON", "lines", "records"],
)
def test_files_are_on_disk_before_they_have_their_names(tmp_path, monkeypatch, write):
    """The file is synchronised, renamed, and then its folder is synchronised."""
    events, replace, fsync = [], Path.replace, os.fsync

    def synchronised(file):
        fsync(file)
        found = os.fstat(file)
        events.append((found.st_ino, 0 if stat.S_ISDIR(found.st_mode) else found.st_size))

    def renamed(aside, path):
        events.append("renamed")
        return replace(aside, path)

    monkeypatch.setattr(files.os, "fsync", synchronised)
    monkeypatch.setattr(Path, "replace", renamed)
    path = tmp_path / "file"
    write(path)
    found = path.stat()
    expected = [(found.st_ino, found.st_size), "renamed", (tmp_path.stat().st_ino, 0)]
    assert events[-3:] == expected
