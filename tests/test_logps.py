"""The pass over reference log-probs resumes where it was interrupted."""

import numpy as np
import pytest
from helpers_fit import random_base, tiny_run

from seva_jax.batches.encoded import encode_comparisons
from seva_jax.inference.answer_logps import answer_logps
from seva_jax.objectives import DPO
from seva_jax.runtime import shutdown
from seva_jax.runtime.journal import Journal
from seva_jax.types import Comparison, DataError


@pytest.fixture
def compute(tmp_path):
    """Returns a function from a journal to log-probs of 12 pairs in batches of 4."""
    ctx = tiny_run(tmp_path / "run")
    data, answers = ctx.config.prompts.open(), (("red", "blue"), ("a green ring", "a red circle"))
    pairs = [Comparison(p, answers[i % 2]) for i, p in enumerate(data.prompts)]
    encoded = encode_comparisons(pairs, ctx.encoder(ctx.config.text.train))
    rows, variables = ctx.rows(encoded, ctx.pixels(data), DPO()), {"params": random_base(ctx)}
    return lambda journal=None: answer_logps(
        ctx.base_model, variables, rows, ctx.pass_layout, ctx.step_options, lambda num: None,
        journal,
    )  # fmt: skip


def plain(logps):
    """Returns the bits of every number."""
    return [[(b.dtype, b.tobytes()) for b in branches] for branches in logps]


class Interrupted(Exception):
    """Stands for the end of the process."""


def test_a_pass_resumes_where_it_stopped(compute, tmp_path, monkeypatch):
    """After a kill, also inside a line, or a signal, results are equal and nothing is redone."""
    whole = compute()
    assert [len(x) for x in whole] == [2, 2, 2] * 4
    path, added, add = tmp_path / "reference.jsonl", [], Journal.append

    def add_and_die(self, records):
        (record,) = records
        add(self, [record])
        added.append([index for index, _ in record["logps"]])
        if len(added) == 1:
            raise Interrupted

    monkeypatch.setattr(Journal, "append", add_and_die)
    with pytest.raises(Interrupted):
        compute(Journal(path, {"key": "a"}))
    with path.open("a") as file:
        file.write('{"logps": [[4, [[-1.')
    asked = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "stop_agreed", lambda: next(asked))
        with pytest.raises(shutdown.Stopped):
            compute(Journal(path, {"key": "a"}))
    assert plain(compute(Journal(path, {"key": "a"}))) == plain(whole)
    assert added == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert plain(compute(Journal(path, {"key": "a"}))) == plain(whole)  # all there
    assert len(added) == 3
    assert plain(compute(Journal(path, {"key": "b"}))) == plain(whole)  # of something else
    assert len(added) == 6
    assert len(path.read_text().splitlines()) == 4


def test_what_a_journal_holds(tmp_path, capsys):
    """Records are kept under their header; others are discarded, or refused if asked to."""
    path = tmp_path / "new" / "reference.jsonl"
    journal, other = Journal(path, {"batch_size": 4}), Journal(path, {"batch_size": 8})
    assert journal.resume() == []
    numbers = [float(np.float32(-0.1)), float(np.float32(-1e-38))]
    journal.append([{"logps": [[0, [numbers, []]]]}])
    (record,) = journal.resume()
    assert record == {"logps": [[0, [numbers, []]]]}
    assert journal.read() == [record]
    np.testing.assert_array_equal(
        np.array(record["logps"][0][1][0], np.float32), np.float32([-0.1, -1e-38])
    )
    assert "started again" not in capsys.readouterr().out
    with pytest.raises(DataError, match="it was in batches of 4"):
        other.resume(lambda there: f"it was in batches of {there['batch_size']}")
    assert journal.resume() == [record]
    assert other.resume() == []
    assert "was made from other inputs; it is started again" in capsys.readouterr().out
    assert journal.resume() == []
