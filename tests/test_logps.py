"""The pass over reference log-probs: interrupted, it goes on where it was."""

import numpy as np
import pytest
from helpers_fit import random_base, tiny_run

from seva_jax.inference.answer_logps import Journal
from seva_jax.runtime import shutdown
from seva_jax.types import Comparison


@pytest.fixture
def compute(tmp_path):
    """(journal) -> log-probs of 12 pairs in batches of 4."""
    run = tiny_run(tmp_path / "run")
    answers = (("red", "blue"), ("a green ring", "a red circle"))
    pairs = [Comparison(p, answers[i % 2]) for i, p in enumerate(run.prompts.prompts)]
    rows, variables = run.rows(pairs, run.pixels(run.prompts)), {"params": random_base(run)}
    return lambda journal=None: run.logps(run.base_model, variables, rows, "reference", journal)


def plain(logps):
    """With the bits of every number."""
    return [[(b.dtype, b.tobytes()) for b in branches] for branches in logps]


class Interrupted(Exception):
    """Stands for the end of the process."""


def test_a_pass_goes_on_where_it_was(compute, tmp_path, monkeypatch):
    """After a kill between batches, one inside a line, and a signal: equal, nothing done twice."""
    whole = compute()
    assert [len(x) for x in whole] == [2, 2, 2] * 4
    path, added, add = tmp_path / "reference.jsonl", [], Journal.add

    def add_and_die(self, batch):
        add(self, batch)
        added.append(list(batch))
        if len(added) == 1:
            raise Interrupted

    monkeypatch.setattr(Journal, "add", add_and_die)
    with pytest.raises(Interrupted):
        compute(Journal(path, "a"))
    with path.open("a") as file:
        file.write('{"logps": [[4, [[-1.')
    asked = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(shutdown, "stop_agreed", lambda: next(asked))
        with pytest.raises(shutdown.Stopped):
            compute(Journal(path, "a"))
    assert plain(compute(Journal(path, "a"))) == plain(whole)
    assert added == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    assert plain(compute(Journal(path, "a"))) == plain(whole)  # all there
    assert len(added) == 3
    assert plain(compute(Journal(path, "b"))) == plain(whole)  # of something else
    assert len(added) == 6
    assert len(path.read_text().splitlines()) == 4


def test_what_a_journal_holds(tmp_path):
    """Numbers bit for bit, also of a batch without one of its comparisons; batches of one size."""
    journal = Journal(tmp_path / "reference.jsonl", "a")
    assert journal.begin(4) == []
    journal.add({0: [np.float32([-0.1]), np.float32([])], 2: [np.float32([-1e-38])]})
    (batch,) = journal.begin(4)
    assert {i: [b.tolist() for b in branches] for i, branches in batch.items()} == {
        0: [[float(np.float32(-0.1))], []],
        2: [[float(np.float32(-1e-38))]],
    }
    assert all(b.dtype == np.float32 for branches in batch.values() for b in branches)
    assert journal.begin(8) == []  # other batches
