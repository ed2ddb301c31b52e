"""The study of all systems: its cells and its table. The study itself takes an hour."""

from seva_jax.bench.methods import MethodsStudy, cells, table
from seva_jax.bench.study import NAMES
from seva_jax.config.base_models import TrainedBase
from seva_jax.config.prior_run import PriorRun


def test_cells_share_base_questions_and_budget(tmp_path):
    study = MethodsStudy(out=str(tmp_path), comparisons=1280)
    found = cells(study, 7)
    assert {"seva", "gapo (known answers)", "seva_iterated", "control: supervised"} <= set(found)
    (main,) = found["seva"]
    assert isinstance(main.base, TrainedBase)
    for name, runs in found.items():
        own = name in ("mia_dpo", "temple")  # several images
        assert (runs[0].base != main.base) == own, name
        assert all(isinstance(run.base, PriorRun) for run in runs[1:]), name
        assert all(run.evals == main.evals and run.seed == 7 for run in runs), name
        trained = sum(run.train.max_steps * run.train.batch_size for run in runs)
        assert 0.8 * 1280 <= trained <= 1280, name
    assert main.base.prompts.world.seed == main.evals[0].prompts.world.seed == 7
    workdirs = [run.workdir for runs in found.values() for run in runs]
    assert len(set(workdirs)) == len(workdirs)
    assert list(cells(MethodsStudy(methods=("gapo",)), 7)) == ["seva", "gapo (known answers)"]


def test_table():
    study = MethodsStudy()
    values = {
        seed: {
            "base": dict.fromkeys(NAMES, 0.2 * seed),
            "seva": dict.fromkeys(NAMES, 0.1 * seed) | {"pairs": 100.0},
            "only once": dict.fromkeys(NAMES, 0.1) | {"pairs": 1.0},
        }
        for seed in (1, 2)
    }
    del values[2]["only once"]
    text = table(study, values)
    assert text.startswith("6,400 comparisons for each method.\n")
    assert "| seva | 100 | -0.150 ± 0.635 |" in text
    assert "only once" not in text
    for seed in (1, 2):
        values[seed]["base of x"] = dict.fromkeys(NAMES, 1.0)
        values[seed]["x"] = dict.fromkeys(NAMES, 1.5) | {"pairs": 7.0}
    text = table(study, values, {"x": "base of x"})
    assert "| base of x | | 1.000 ± 0.000 |" in text
    assert "| x | 7 | +0.500 ± 0.000 |" in text
    del values[1]["base"]
    assert "not finished for every seed" in table(study, values)
