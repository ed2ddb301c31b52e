"""What a run reports about itself at its end."""

from seva_jax.config.experiment import Experiment
from seva_jax.config.options import ReportOptions
from seva_jax.report import closing
from seva_jax.report.closing import closing_summary
from seva_jax.run.workdir import Workdir


def stage(seconds, **more):
    return {"fingerprint": "a", "seconds": seconds, "devices": 4, "summary": "fine", **more}


def finished(tmp_path, monkeypatch, **report):
    """Makes a run that has finished and whose base model was taken from another run."""
    experiment = Experiment(workdir=str(tmp_path / "run"), report=ReportOptions(**report))
    workdir = Workdir.open(experiment)
    stages = {
        "base": stage(7200.0, source="elsewhere"),
        "pairs": stage(90.0),
        "align": stage(810.0),
    }
    monkeypatch.setattr(closing, "read_stages", lambda path: stages)
    write = workdir.metrics("align").write
    # The first row is left out; of the third, compiling took three quarters.
    for step, (rate, compile_s) in enumerate(((1.0, 9.0), (40.0, 0.0), (10.0, 3.0), (42.0, 0.0))):
        write(step, {"pairs/s": rate, "seconds": 4.0, "time/compile": compile_s})
    return workdir.path, experiment.report


def test_the_end_tells_time_speed_cost_and_places(tmp_path, monkeypatch):
    path, options = finished(tmp_path, monkeypatch)
    again = f"report: not written; seva-jax report {path} writes it"
    assert closing_summary(path, options).splitlines()[-1] == again
    (path / "report.html").write_text("<p>")
    lines = closing_summary(path, options).splitlines()
    assert lines[0] == "time:   15 min 00 s: pairs 1 min 30 s, align 13 min 30 s"
    assert lines[1] == (
        "speed:  40.0 pairs/s in training (median, without compiling), 1.00 device-hours on 8 × cpu"
    )
    assert lines[2].startswith(f"files:  {tmp_path / 'run'}: ")
    assert lines[3] == f"report: {tmp_path / 'run' / 'report.html'}"


def test_a_price_gives_money(tmp_path, monkeypatch):
    run = finished(tmp_path, monkeypatch, device_hour_price=1.5, currency="EUR")
    expected = "without compiling), 1.50 EUR (1.00 device-hours at 1.50 EUR) on"
    assert expected in closing_summary(*run)
