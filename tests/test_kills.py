"""SIGKILL in every stage of the real command does not change what a run ends with.

Checkpoints are published late here, so a kill during a save comes at the worst moment. Each seed
makes ten kills on a disk and three in a bucket, at fixed moments and after drawn delays;
SEVA_JAX_KILLS=30 takes three seeds.
"""

import os
import random
import signal
import time

import helpers_gcs
import pytest
from helpers_run import answers, assert_same_run, lines, rows, saved_steps, saving, stages, train

SAVE_EVERY = 5
SEEDS = range(int(os.environ.get("SEVA_JAX_KILLS", "10")) // 10)

# What is looked for while the command runs, and the stage that it falls into.
MOMENTS = (
    ("base", lambda w, since: rows(w, "base")),
    ("base", lambda w, since: saving(w, "base", since)),
    ("rollouts", lambda w, since: lines(w / "rollouts.jsonl")),
    ("pairs", lambda w, since: stages(w)[-1:] == ["rollouts"]),
    ("reference", lambda w, since: len(lines(w / "reference.jsonl")) > 3),
    ("align", lambda w, since: rows(w, "align")),
    ("align", lambda w, since: saving(w, "align", since)),
    ("align", lambda w, since: len(rows(w, "align")) > 6),
    ("evaluate base", lambda w, since: len(answers(w, "base")) > 2),
    ("evaluate aligned", lambda w, since: len(answers(w, "aligned")) > 2),
)
ORDER = ["base", "rollouts", "pairs", "reference", "align", "evaluate base", "evaluate aligned"]


def finished(workdir):
    """Returns the finished examples, which must never be computed again."""
    names = ("rollouts.jsonl", "reference.jsonl", "evals/*/*/asked.jsonl")
    return {path: lines(path) for name in names for path in workdir.glob(name)}


# A request to a bucket takes long, so there are fewer: saves, and the last stage.
IN_A_BUCKET = (MOMENTS[1], MOMENTS[6], MOMENTS[9])


def kill_and_compare(whole_run, workdir, seed, env, moments=MOMENTS):
    """Kills the command at moments, and compares what it ends with to an undisturbed run."""
    draw = random.Random(seed)
    cache = whole_run / "cache"
    options = ("--train.save-every", SAVE_EVERY)
    for stage, condition in moments:
        before, since = finished(workdir), time.time()
        with train(cache, workdir, *options, env={"COMMIT_S": "0.3"} | env) as run:
            run.when(lambda: condition(workdir, since))  # noqa: B023
            time.sleep(draw.uniform(0, 0.05))
            assert run.kill() == -signal.SIGKILL, run.output[-3000:]
        assert ORDER[len(stages(workdir))] == stage, "the kill came too late"
        for path, records in before.items():
            # Rollouts and reference are in other files when their stage has finished, and in a
            # bucket their lines may be half removed.
            if path.stem not in stages(workdir):
                assert lines(path)[: len(records)] == records, f"{path} was started again"
        if done := rows(workdir, stage):
            saved = max(saved_steps(workdir, stage), default=0)
            assert done[-1]["step"] - saved <= SAVE_EVERY, "more than one interval is lost"
    with train(cache, workdir, *options, env=env) as run:
        assert run.status() == 0, run.output[-3000:]
    assert_same_run(workdir, whole_run / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_ten_kills(whole_run, tmp_path, seed):
    """The same command resumes after each one, and nothing that was finished is done again."""
    kill_and_compare(whole_run, tmp_path / "run", seed, {})


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_kills_in_a_bucket(whole_run, bucket, proxy, seed):
    """So it is in a bucket, where one request in a hundred fails, and equal to a run on a disk."""
    proxy.disturb(seed, 0.01)
    env = helpers_gcs.environment(proxy.url)
    kill_and_compare(whole_run, bucket / "run", seed, env, IN_A_BUCKET)
    assert proxy.count() > 300
