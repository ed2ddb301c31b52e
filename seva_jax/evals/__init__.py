"""Evaluations: prompts with known answers, scores, and comparisons of two models.

Read `base.py` first, then `exact.py`, `chair.py`, `pope.py`, `files.py` and `table.py`; for
published benchmarks `suite.py` and `suites/`; for judges `judge.py` and `endpoint.py`. README.md in
this folder is for users.
"""

from seva_jax.evals.answers import Answer
from seva_jax.evals.base import (
    Better,
    EvalResult,
    Evaluator,
    Generate,
    Metric,
    Ratio,
    Record,
    bootstrap,
    paired_difference,
    paired_differences,
)
from seva_jax.evals.chair import Chair
from seva_jax.evals.choice import (
    BareParser,
    FreeParser,
    LetterParser,
    MultipleChoice,
    ScienceParser,
)
from seva_jax.evals.endpoint import OpenAICompatible
from seva_jax.evals.exact import ExactAnswer, Unscored
from seva_jax.evals.files import (
    read_json_lines,
    read_records,
    read_result,
    write_records,
    write_summary,
)
from seva_jax.evals.judge import Judge, Judged, LocalJudge
from seva_jax.evals.pope import (
    SHORT_ANSWER_SUFFIX,
    AnswerParser,
    LlavaParser,
    Pope,
    WordParser,
    load_pope,
)
from seva_jax.evals.stored import StoredEvaluation, stored_evaluations, stored_labels
from seva_jax.evals.suite import Benchmark, Questions, Suite
from seva_jax.evals.table import (
    Row,
    comparison_rows,
    format_markdown,
    format_metric,
    format_results,
    format_table,
    headline_rows,
    repeats,
    without_repeats,
)
from seva_jax.evals.vqa import Vqa
