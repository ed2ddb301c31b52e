"""A long run in a process of its own, watched: memory, file descriptors, threads, step time.

    python tests/soak.py --steps 2000 --figure tests/soak.svg

`--leak memory|files|threads|time` breaks it on purpose, to see that the test notices.
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

ROWS = 40  # samples of a run


def sample():
    """Returns what the process holds: MiB of memory, open files, threads."""
    status = Path("/proc/self/status").read_text()
    kib = int(re.search(r"VmRSS:\s+(\d+) kB", status)[1])
    return {
        "memory": kib / 1024,
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
    }


def soak(workdir, steps, leak=""):
    """Trains for `steps` steps with 40 checkpoints and 8 evaluations; returns a list of samples."""
    from helpers_fit import fit, random_base, tiny_run

    from seva_jax.run.evaluations import evaluate_all

    every = max(steps // ROWS, 1)
    argv = ("--train.log-every", str(every), "--train.save-every", str(every))
    sizes = [x for i in range(5) for x in (f"--evals.{i}.prompts.num", "4")]
    run = tiny_run(workdir, *argv, *sizes)
    base = {"params": random_base(run)}
    engine = run.engine(base, base)
    samples, held, start = [], [], time.process_time()

    def look(step, values):
        nonlocal start
        if leak == "time":
            sum(range(200_000 * len(samples)))
        seconds = (time.process_time() - start) / every  # of a CPU: other programs do not matter
        if len(samples) % 5 == 0:
            suites = run.config.evals[:1]
            with contextlib.redirect_stdout(io.StringIO()):
                evaluate_all(engine, suites, f"step{step}", run.workdir)
        if leak == "memory":
            held.append(np.ones(2**19))  # 4 MiB
        if leak == "files":
            held.append(open("/dev/null"))  # noqa: PTH123, SIM115
        if leak == "threads":
            threading.Thread(target=time.sleep, args=(1e4,), daemon=True).start()
        samples.append({"step": step, "milliseconds": 1000 * seconds, **sample()})
        start = time.process_time()

    fit(run, steps, write=look)
    return samples


def problems(samples):
    """Returns what grows in a run, by medians of the second and the last quarter.

    The first quarter is left out: compiling, caches and the allocator's arenas fill up.
    """
    quarter = len(samples) // 4
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]
    limits = {
        "memory": (1.03, 10),
        "files": (1.0, 2),
        "threads": (1.0, 2),
        "milliseconds": (1.5, 5),
    }
    found = []
    for what, (times, more) in limits.items():
        was, now = (float(np.median([s[what] for s in part])) for part in (before, after))
        if now > was * times + more:
            found.append(f"{what} grew from {was:.1f} to {now:.1f}")
    return found


def figure(samples):
    """Draws the four curves as one SVG, without the sample that compiles."""
    from seva_jax.report.charts import HEIGHT, WIDTH, line_chart
    from seva_jax.report.data import Curve, Series

    parts = []
    names = {
        "memory": "MiB",
        "files": "open files",
        "threads": "threads",
        "milliseconds": "CPU ms a step",
    }
    for number, (what, label) in enumerate(names.items()):
        xs, ys = (tuple(s[key] for s in samples[1:]) for key in ("step", what))
        chart = line_chart(Curve(label, "step", label, (Series(label, xs, ys),)))
        inner = re.search(r'<svg[^>]*role="img"[^>]*>(.*)</svg>', chart, re.DOTALL)[1]
        at = f"{number % 2 * WIDTH} {number // 2 * HEIGHT}"
        parts.append(f'<g transform="translate({at})">{inner}</g>')
    style = (
        "text{font:12px sans-serif;fill:#555}.end{text-anchor:end}.mid{text-anchor:middle}"
        "path{fill:none;stroke:#bbb}.line{stroke:#1668b0;stroke-width:2}.point{fill:none}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * WIDTH} {2 * HEIGHT}">'
        f'<rect width="100%" height="100%" fill="#fff"/><style>{style}</style>'
        f"{''.join(parts)}</svg>\n"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--leak", default="")
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--samples", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = soak(Path(folder) / "run", options.steps, options.leak)
    if options.samples:
        options.samples.write_text(json.dumps(found))
    if options.figure:
        options.figure.write_text(figure(found), encoding="utf-8")
    print(found[0], found[-1], problems(found), sep="\n")
