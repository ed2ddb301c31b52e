"""Published benchmarks, read from the files their authors publish.

What lives here: one `Suite` for each benchmark. What does not: scoring (the evaluators in
`seva_jax/evals`) and asking the model (`seva_jax/run/evaluations.py`). `seva_jax/evals/README.md`
says where the files come from. Read next: `short_answers.py`.
"""

from seva_jax.evals.suites.described import CocoChair, SentenceHallucination, Shr
from seva_jax.evals.suites.judged import AgainstReference, LlavaBench, MMVet, NoJudge
from seva_jax.evals.suites.multiple_choice import MMBench, ScienceQA, SeedBench
from seva_jax.evals.suites.own_questions import CategorisedAnswer, OwnQuestions, question_suite
from seva_jax.evals.suites.short_answers import GQA, GqaAnswer, PopeSets, TextVQA
