"""Pages, hostile texts, runs and photographs for the tests of the report."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math
from pathlib import Path

import numpy as np
from PIL import Image

from seva_jax.evals import EvalResult, Metric, Ratio, write_records, write_summary
from seva_jax.report import (
    Curve,
    Drop,
    EvalRow,
    ExampleCard,
    Interval,
    PairCard,
    Profile,
    ReportData,
    RunVerdict,
    Series,
    SingleRow,
    Stage,
)
from seva_jax.runtime.files import append_lines
from seva_jax.runtime.trace_summary import Summary, TopOp

PAYLOADS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)' x='",
    "</title></style></svg><script>alert(1)</script>",
    "javascript:alert(1)",
    '<iframe srcdoc="&lt;script&gt;alert(1)&lt;/script&gt;"></iframe>',
    "--><svg/onload=alert(1)><a href=javascript:alert(1)>x</a><!--",
    "&lt;script&gt;alert(1)&lt;/script&gt; &#60;b&#62; ]]>",
)


class Page(html.parser.HTMLParser):
    """Parses a page: tags with attributes, in order, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute"
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "link", "img", "input", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]

    def shape(self) -> list[tuple[str, tuple[str, ...]]]:
        """Returns tags and attribute names, without word marks and menus that depend on lengths."""
        left_out = ("mark", "del", "wbr", "label", "select", "option")
        return [(tag, tuple(attrs)) for tag, attrs in self.tags if tag not in left_out]


def image_HWC(seed: int = 0, side: int = 32) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


def row(better, low, high, *, base=0.5, metric="metric", evaluation="eval") -> EvalRow:
    middle = (low + high) / 2
    return EvalRow(
        evaluation,
        metric,
        better,
        Interval(base, base - 0.02, base + 0.02),
        Interval(base + middle, base + middle - 0.02, base + middle + 0.02),
        Interval(middle, low, high),
    )


def profile(text: str) -> Summary:
    """Makes the summary of a trace with `text` as every name."""
    ops = tuple(TopOp(text, text, text, 0.01 / n, 3 * n, 0.2 / n) for n in (1, 2))
    shares = {"matrix products": 0.5, "collectives": 0.2, "idle": 0.3}
    kinds = {"all-gather": 0.25}
    return Summary(text, 10, 12, 3, 0.3, 1, 4, shares, kinds, 0.05, 0.125, 0.1, ops)


def full(text: str = "words") -> ReportData:
    """Makes a report with `text` in every text field and something in every section."""
    steps = tuple(range(100))
    noisy = tuple(math.sin(step * 12.9) for step in steps)
    return ReportData(
        title=text,
        subtitle=text,
        verdict=RunVerdict(f"the sentence {text}", f"the caveat {text}", (text,)),
        facts=((text, text),),
        changed=((text, text),),
        config=((text, text), ("a.b", text)),
        stages=(Stage(text, 83.0, text),),
        curves=(
            Curve(text, text, text, (Series(text, steps, noisy), Series(text, (1, 2), (3, 4)))),
        ),
        profiles=(Profile(text, profile(text)),),
        funnel=(Drop(text, 5),),
        pairs_total=2,
        pairs=(
            PairCard(text, text, image_HWC(0), (image_HWC(1),), text, (text,), 0.0, 1.5, text),
            PairCard(
                text,
                text,
                image_HWC(2),
                (image_HWC(3), image_HWC(4, 80)),
                text + " one",
                (text + " two", "three"),
                0.0,
                -0.5,
            ),
        ),
        table=(
            dataclasses.replace(
                row("higher", 0.01, 0.05, metric=text, evaluation=text), repeats=(text,)
            ),
            row("neither", 0.1, 0.4, base=12.0, metric=text, evaluation=text),
        ),
        single=(SingleRow(text, text, text, Interval(0.5, 0.4, 0.6)),),
        own=(
            ExampleCard(text, image_HWC(7), text, "", text, text, "same", seen=text),
            ExampleCard(text, None, text, "", text + " a", text + " b", "changed", seen=text),
        ),
        examples=(
            ExampleCard(text, image_HWC(5), text, text, text + " a", text + " b", "better"),
            ExampleCard(text, image_HWC(6), text, "", text, text, "same"),
        ),
        notes=(text,),
    )


def photo_HWC(rng: np.random.Generator) -> np.ndarray:
    """Draws a 336 px stand-in for a photograph: soft shapes with fine texture."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    smooth_HWC = np.asarray(coarse.resize((336, 336), Image.Resampling.BICUBIC), np.float32)
    return np.clip(smooth_HWC + rng.normal(0, 8, smooth_HWC.shape), 0, 255).astype(np.uint8)


def photo_pairs(num: int) -> tuple[PairCard, ...]:
    """Makes pairs of photographs; three quarters are noised, with answers of about 110 words.

    The others are blurred; their answers have three words and differ in one.
    """
    rng = np.random.default_rng(0)
    answer = "The picture shows a person who stands beside a table with two red cups. " * 8
    cleans = [photo_HWC(rng) for _ in range(20)]
    noises = [np.clip(clean * 0.5 + rng.normal(64, 60, clean.shape), 0, 255) for clean in cleans]
    pairs = []
    for index in range(num):
        rejected = answer.replace("red", "blue").replace("person", f"dog {index}")
        blurred = index % 4 == 3
        pairs.append(
            PairCard(
                f"textvqa/{index:06d}",
                "Describe this image in detail.",
                cleans[index % 20],
                (noises[index % 20].astype(np.uint8),),
                "a red cup" if blurred else answer,
                ("a blue cup" if blurred else rejected,),
                0.0,
                1.0 if index % 3 else -1.0,
                corruptions=("GaussianBlur(p=0.5)" if blurred else "DiffusionNoise(step=500)",),
            )
        )
    return tuple(pairs)


def write_run(folder: Path, text: str, number: int) -> Path:
    """Writes what `compare` reads of a run, with `text` wherever somebody else may choose it."""
    run = folder / f"{number}{text.replace('/', chr(0x2215))[:200]}"
    (run / "evals" / "aligned").mkdir(parents=True)
    config = {"workdir": str(run), text: number, "prompts.path": f"{text} {number}"}
    (run / "config.json").write_text(json.dumps(config))
    row = {"stage": "align", "loss": 0.5, "rewards/margins": 0.1, "pairs": 8, "pairs/s": 1.0}
    rows = [row | {"step": step, "seconds": 1.0, "chips": 1} for step in (1, 2)]
    append_lines(run / "metrics.jsonl", rows)
    result = EvalResult(
        text, {text: Metric(0.5, 0.4, 0.6, 10)}, [], {text: Ratio("higher", (text,), ("n",))}
    )
    write_summary(run / "evals" / "aligned" / "e.json", result)
    write_records(run / "evals" / "aligned" / "e.jsonl", [])
    return run
