"""The study's cells and tables. The study itself takes an hour."""

from seva_jax.bench.evidence import MAIN, ShuffledPairs, cells, tables
from seva_jax.bench.study import NAMES
from seva_jax.pairs import CorruptionPairs
from seva_jax.types import Prompt, Rollout


def test_cells_differ_in_one_thing_each(tmp_path):
    experiments = cells(3, tmp_path)
    main = experiments.pop(MAIN)
    assert main.seed == main.base.prompts.world.seed == main.prompts.world.seed == 3
    assert len({e.workdir for e in experiments.values()} | {main.workdir}) == len(experiments) + 1
    for name, experiment in experiments.items():
        fields = ("pairs", "objective", "corrupt", "train")
        changed = [f for f in fields if getattr(experiment, f) != getattr(main, f)]
        assert len(changed) == 1, name
        assert (experiment.base, experiment.evals, experiment.optim) == (
            *(main.base, main.evals, main.optim),
        )


def test_shuffled_pairs_swap_half_and_keep_the_rest():
    rollouts = [Rollout(Prompt(str(i), "?", ()), "yes", ("no",)) for i in range(200)]
    pairs, drops = ShuffledPairs(CorruptionPairs(), seed=1)(rollouts)
    assert len(pairs) == 200
    assert not drops
    assert 70 < sum(p.answers == ("no", "yes") for p in pairs) < 130
    assert pairs == ShuffledPairs(CorruptionPairs(), seed=1)(rollouts)[0]


def test_tables():
    values = {}
    for seed, base in ((1, 0.2), (2, 0.4)):
        values[seed] = {"base": dict.fromkeys(NAMES, base)}
        for cell, factor in ((MAIN, 0.5), ("labels shuffled", 1.0), ("supervised on chosen", 0.75)):
            values[seed][cell] = dict.fromkeys(NAMES, base * factor) | {"pairs": 100 * seed}
    text = tables(values)
    assert "| base | | 0.300 ± 1.271 |" in text
    assert f"| {MAIN} | 150 | -0.150 ± 0.635 |" in text
    assert f"- {MAIN}: -50 % ± 0" in text
    assert f"- {MAIN} minus supervised on chosen (points): -25 % ± 0" in text
    assert "±" not in tables({1: values[1]}).split("| base |")[1]
    assert "no seed" in tables({})
