"""Takes one defence away at a time and sees that its test fails: `python tests/breaks.py`.

What lives here: the table `BREAKS`, and the program that tries it on a copy of the repository. What
does not: the promises, which the table in `tests/README.md` numbers and names.
`test_breaks.py` keeps this table true without running it.

    python tests/breaks.py                     all but the slow ones: a quarter of an hour
    python tests/breaks.py --only R7 --slow    one promise, also its tests that take minutes
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent


class Break(NamedTuple):
    """One defence, and the test that must not pass without it.

    Attributes:
        promise: number of the promise in README.md, or a word where it has none.
        fault: what the defence is against.
        file: where it is.
        without: what the code does when it is gone.
        text: the defence, which is in the file exactly once.
        instead: what replaces it.
        test: pytest's name of the test, of a file in tests/.
        slow: whether it takes minutes.
    """

    promise: str
    fault: str
    file: str
    without: str
    text: str
    instead: str
    test: str
    slow: bool = False


KILLS, PROCESSES = "test_kills.py::test_ten_kills", "test_processes.py::"
DEAD = PROCESSES + "test_a_dead_process_ends_the_others_and_fewer_resume"
LINES = "test_hostile.py::test_every_bad_line_is_counted_and_placed"
COST = "test_hostile.py::test_what_hostile_files_cost"
KEPT = "test_nonfinite.py::test_the_state_is_kept"
CHECKPOINTS, FINITE = "test_checkpoints.py::test_", "test_nonfinite.py::test_"

# What other readers of safetensors do.
BELIEVE = """with open(path, "rb") as file:
            found = __import__("json").loads(file.read(int.from_bytes(file.read(8), "little")))
            return [Tensor(shown, k, tuple(v["shape"]), v["dtype"], 0) for k, v in found.items()]"""

# fmt: off
BREAKS = (
    Break("R1", "kill in the reference pass", "seva_jax/inference/answer_logps.py",
          "the pass starts over",
          "records = journal.resume() if journal else []", "records = []",
          "test_logps.py::test_a_pass_resumes_where_it_stopped"),
    Break("R1", "a journal of other inputs", "seva_jax/runtime/journal.py", "its records are used",
          "if lines and lines[0] == self.header:", "if lines:",
          "test_logps.py::test_what_a_journal_holds"),
    Break("R1", "kill inside a line", "seva_jax/runtime/files.py", "half a line stays in the file",
          "os.truncate(path, good)", "pass", "test_logps.py::test_a_pass_resumes_where_it_stopped"),
    Break("R1", "kill inside a save", "seva_jax/training/loop.py",
          "training runs ahead of slow disks", "        if wait:\n", "        if False:\n",
          "test_saving.py::test_training_waits_for_slow_disks"),
    Break("R1", "kill before a save is complete", "seva_jax/training/save_schedule.py",
          "training runs ahead",
          "(save or saving) and next_s - self._held_s >= self._every_s", "False",
          "test_saving.py::test_never_more_than_an_interval"),
    Break("R1", "kill in training", "seva_jax/training/loop.py", "the data start over",
          "data.set_state(position)", "pass", KILLS, slow=True),
    Break("R1", "kill in training", "seva_jax/training/compiled_step.py",
          "it chooses again what to recompute", "REMATS[REMATS.index(kept) :], 0.0", "REMATS, ROOM",
          "test_remat.py::test_a_resumed_run_keeps_what_it_chose"),
    Break("R1", "kill in the rollouts", "seva_jax/run/rollouts.py",
          "finished answers are asked again", "num_done = len(journal.resume())", "num_done = 0",
          KILLS, slow=True),
    Break("R2", "SIGTERM, Ctrl-C", "seva_jax/runtime/shutdown.py", "signals are not taken",
          "signal.signal(number, lambda *_: None)", "pass",
          "test_signals.py::test_what_a_signal_does"),
    Break("R2", "SIGTERM in training", "seva_jax/training/loop.py", "it stops without a save",
          "saver.decide(step, stop or last or better, everyone)",
          "saver.decide(step, last or better, everyone)",
          "test_signals.py::test_one_process", slow=True),
    Break("R2", "SIGTERM to one of two", "seva_jax/runtime/shutdown.py",
          "the other one is not told",
          'client.key_value_set(f"{_KEY}/wanted", "yes", allow_overwrite=True)', "pass",
          "test_signals_two.py::test_one_of_two_processes", slow=True),
    Break("R2", "SIGTERM to one of two", "seva_jax/runtime/shutdown.py", "one of them saves alone",
          "            self._meet()\n", "", "test_signals_two.py::test_all_save_or_none"),
    Break("R2", "SIGTERM while joining", "seva_jax/runtime/shutdown.py",
          "the others never hear of it",
          "early = self._client is not None and self._stop_at == 0", "early = False",
          "test_signals_two.py::test_a_signal_while_processes_join"),
    Break("R3", "several processes", "seva_jax/batches/pipeline.py", "all read the first share",
          "packed[number * local : (number + 1) * local]", "packed[:local]",
          "test_pipeline.py::test_processes_share_a_batch"),
    Break("R3", "several processes", "seva_jax/batches/pipeline.py", "all read the first share",
          "packed[number * local : (number + 1) * local]", "packed[:local]",
          PROCESSES + "test_processes_equal_one", slow=True),
    Break("R4", "examples of an epoch", "seva_jax/batches/pipeline.py", "epochs are not complete",
          ".shuffle().repeat(epochs)", ".repeat(epochs).shuffle()",
          "test_pipeline.py::test_every_comparison_counts_once_an_epoch"),
    Break("R4", "fewer processes", "seva_jax/training/checkpoint.py",
          "the mesh of the save is wanted",
          "lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like",
          "lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like", DEAD, slow=True),
    Break("R5", "a dead process", "launch/local.py", "the launcher waits for the others",
          "if failed_at and time.monotonic() - failed_at > options.grace:", "if False:",
          PROCESSES + "test_the_launcher_notices_any_death"),
    Break("R5", "a dead process", "seva_jax/runtime/processes.py", "its peers wait minutes for it",
          "heartbeat_timeout_seconds=options.peer_timeout_s,\n"
          "                shutdown_timeout_seconds=options.peer_timeout_s,", "", DEAD, slow=True),
    Break("R5", "a frozen process", "seva_jax/runtime/processes.py", "its peers wait 100 s for it",
          "heartbeat_timeout_seconds=options.peer_timeout_s,", "",
          PROCESSES + "test_a_frozen_process_ends_the_other", slow=True),
    Break("R6", "the trainer dies", "seva_jax/batches/worker_processes.py",
          "its processes keep running",
          "threading.Thread(target=_end_with, args=(parent,), daemon=True).start()", "pass",
          "test_readers.py::test_processes_end_with_a_killed_run"),
    Break("R6", "a reader dies", "seva_jax/batches/worker_processes.py", "Grain's error is shown",
          'if "terminated unexpectedly" not in str(error):', "if True:",
          "test_readers.py::test_a_killed_process_ends_the_run"),
    Break("R7", "a byte flips", "seva_jax/training/digests.py", "hashes are not compared",
          "return None if digest == facts[1] else", "return None if digest else",
          CHECKPOINTS + "flipped_bytes"),
    Break("R7", "a file is cut", "seva_jax/training/digests.py",
          "sizes and hashes are not compared", "stat = seen or file.stat()", "return None",
          CHECKPOINTS + "every_file_is_looked_at"),
    Break("R7", "a file is deleted", "seva_jax/training/digests.py", "it is not missed",
          'return f"cannot be read ({getattr(error, \'strerror\', None) or error})"', "return None",
          CHECKPOINTS + "every_file_is_looked_at"),
    Break("R7", "no commit file", "seva_jax/training/digests.py", "it is not asked for",
          "for name in (_COMMITTED, NAME):", "for name in (NAME,):",
          CHECKPOINTS + "unfinished_checkpoints"),
    Break("R7", "stray directories", "seva_jax/training/checkpoint.py", "they stay in the way",
          "it is {self._put_away(name)}", "it stays", CHECKPOINTS + "stray_directories"),
    Break("R7", "the last one of a finished run", "seva_jax/training/checkpoint.py",
          "an older step is used", "if step != last:", "if False:",
          CHECKPOINTS + "the_last_one_of_a_finished_run"),
    Break("R7", "nothing is intact", "seva_jax/training/digests.py", "training starts from zero",
          "if finished and step is None:", "if False:", CHECKPOINTS + "nothing_intact_is_an_error"),
    Break("R8", "a full disk", "seva_jax/training/checkpoint.py", "a failed save is not noticed",
          "if self._pending is not None and self._pending.done():", "if False:",
          "test_full_disk.py::test_files_that_may_not_grow"),
    Break("R8", "a full disk", "seva_jax/runtime/processes.py", "other files end in a traceback",
          "(errno.ENOSPC, errno.EDQUOT,", "(errno.EDQUOT,",
          "test_full_disk.py::test_other_files_on_a_full_disk"),
    Break("R9", "NaN in loss or gradient", "seva_jax/training/step.py", "the update is applied",
          "lambda new, old: jnp.where(finite, new, old),", "lambda new, old: new,", KEPT),
    Break("R9", "NaN in the gradient alone", "seva_jax/training/step.py",
          "only the loss is looked at", " & jnp.isfinite(norm)", "", KEPT),
    Break("R9", "NaN again and again", "seva_jax/training/health.py", "the run continues",
          "if self._longest >= self._most:", "if False:", FINITE + "too_many_end_the_run"),
    Break("R9", "NaN, preempted in between", "seva_jax/training/loop.py", "the count starts again",
          'in_a_row = position.pop("nonfinite", 0)', 'in_a_row = 0 * position.pop("nonfinite", 0)',
          FINITE + "a_stop_does_not_start_the_count_again"),
    Break("R9", "NaN from one example", "seva_jax/training/health.py", "its id is written nowhere",
          "ids = [comparison.prompt.id for comparison in examples]", "ids = []",
          FINITE + "one_bad_example"),
    Break("R9", "nothing to train on", "seva_jax/training/health.py", "the run continues",
          "    if not num:\n", "    if False:\n", FINITE + "examples_without_a_token"),
    Break("R10", "81 megapixels", "seva_jax/images/load.py", "size is not looked at",
          "if image.width * image.height <= max_pixels:", "if True:", COST),
    Break("R10", "16-bit images", "seva_jax/images/load.py", "they saturate",
          'if image.mode.startswith("I;16"):', "if False:",
          "test_images.py::test_sixteen_bits_are_scaled_not_saturated"),
    Break("R11", "a line of 50 MB", "seva_jax/data/tables.py", "it is parsed",
          "if len(line) > _MAX_LINE:", "if False:", LINES),
    Break("R11", "NUL", "seva_jax/data/collect.py", "it is used",
          'if any("\\0" in text for text in', "if any(False for text in", LINES),
    Break("R11", "a line twice", "seva_jax/data/unique.py", "both are used",
          "if content in self._contents:", "if False:", LINES),
    Break("R11", "an id of two questions", "seva_jax/data/unique.py", "both keep it",
          "while new in self._ids:", "while False:",
          "test_places.py::test_no_record_is_lost_to_an_id"),
    Break("R11", "chosen = rejected", "seva_jax/data/collect.py", "it is used",
          "if texts[0] in texts[1:]:", "if False:", LINES),
    Break("R11", "any bad line", "seva_jax/data/collect.py", "its number is not said",
          'left_out.append(f"{where}: {error.reason}', 'left_out.append(f"{error.reason}', LINES),
    Break("R11", "any, with --strict", "seva_jax/data/check.py", "the run starts",
          "        if self.drops:\n", "        if False:\n",
          "test_hostile.py::test_strict_runs_stop_before_they_start"),
    Break("R12", "absolute, '..', NUL", "seva_jax/images/load.py", "names are not looked at",
          'if parts.is_absolute() or ".." in parts.parts or "\\0" in name:', "if False:",
          "test_images.py::test_resolve_refuses_ways_out"),
    Break("R12", "links that lead out", "seva_jax/images/load.py", "they are followed",
          "if not _may_read(path.resolve(), top, link_roots):", "if False:",
          "test_hostile.py::test_no_reader_leaves_the_image_folder"),
    Break("R13", "headers that lie", "seva_jax/convert/tensors.py", "they are believed",
          'with safe_open(path, framework="np") as file:', BELIEVE, COST),
    Break("R13", "headers that lie, in a bucket", "seva_jax/convert/tensors.py",
          "the length of the header is believed",
          "    if length <= min(_LONGEST_HEADER, version.st_size - 8):\n", "    if True:\n",
          "test_bucket_bases.py::test_damaged_and_hostile_files"),
    Break("R13", "an object that is replaced", "seva_jax/convert/tensors.py",
          "parts of two versions are mixed",
          "            if path.stat() == version:\n", "            if True:\n",
          "test_bucket_bases.py::test_an_object_that_changes_while_it_is_read"),
    Break("R13", "pickles", "seva_jax/convert/load.py", "they are not recognised",
          "if pickles := sorted(p.name for kind in _PICKLES for p in directory.glob(kind)):",
          "if pickles := []:", COST),
    Break("R14", "a checkpoint of another run", "seva_jax/training/checkpoint.py", "it is used",
          "    if differing:\n", "    if False:\n",
          CHECKPOINTS + "a_checkpoint_of_another_run_is_refused"),
    Break("R14", "another base at export", "seva_jax/run/weights.py", "it is merged into",
          'if fingerprint(jax.tree.leaves({"params": frozen})) != recorded:', "if False:",
          "test_convert_checks.py::test_the_base_is_the_one_that_was_trained_on"),
    Break("R14", "parameters of other shapes", "seva_jax/training/checkpoint.py",
          "Orbax has to notice",
          "if held[name] != leaf.shape:", "if False:", CHECKPOINTS + "other_shapes_are_refused"),
    Break("R15", "HTML in any text", "seva_jax/report/markup.py", "it is not escaped",
          "html.escape(_UNPRINTABLE", "(lambda text, quote: text)(_UNPRINTABLE",
          "test_report.py::test_text_is_never_markup"),
    Break("R15", "HTML of several runs", "seva_jax/report/document.py", "it is not escaped",
          'dir="auto">{breakable(text)}</{kind', 'dir="auto">{text}</{kind',
          "test_hostile_pages.py::test_the_page_of_several_runs"),
    Break("R15", "scripts that got in", "seva_jax/report/document.py", "no policy forbids them",
          '<meta http-equiv="Content-Security-Policy" content="{policy}">', "",
          "test_report.py::test_policy_forbids_other_scripts_and_network"),
    Break("R16", "shares of a batch", "seva_jax/batches/pipeline.py", "all read the first one",
          "packed[number * local : (number + 1) * local]", "packed[:local]",
          "test_determinism.py::test_shares_make_up_the_batches"),
    Break("R16", "another run", "seva_jax/batches/pipeline.py", "the order is drawn again",
          ".seed(seed)", '.seed(int.from_bytes(__import__("os").urandom(3)))',
          "test_determinism.py::test_the_seed_and_nothing_else_decides"),
    Break("R16", "reading processes", "seva_jax/batches/worker_processes.py",
          "they begin at the start", "slice(self._next, None)", "slice(0, None)",
          "test_readers.py::test_processes_give_what_threads_give"),
    Break("R17", "no torch", "seva_jax/train.py", "training needs it",
          "import gc\n", "import gc\nimport torch\n",
          "test_layers.py::test_imports_go_down_only"),
    Break("R17", "no torch", "seva_jax/train.py", "training needs it",
          "import gc\n", "import gc\nimport torch\n",
          "test_alone.py::test_all_commands_alone_and_what_they_leave", slow=True),
    Break("R18", "two trainers", "seva_jax/runtime/lock.py", "the second one starts",
          "if not free or (holder and not _free(holder)):", "if False:",
          "test_lock.py::test_a_second_process_is_refused_and_a_killed_one_is_not_obeyed"),
    Break("R18", "a stale lock", "seva_jax/runtime/lock.py", "it is obeyed",
          "return started is None or started != self.started", "return False",
          "test_lock.py::test_who_is_gone"),
    Break("R18", "two trainers in a bucket", "seva_jax/runtime/stores.py", "both start",
          'uploadType="multipart", ifGenerationMatch=generation,', 'uploadType="multipart",',
          "test_stores.py::test_one_of_two_processes_gets_a_lock"),
    Break("R18", "the end in a bucket", "seva_jax/runtime/processes.py", "the lock stays",
          "        finally:\n            lock.release_all()\n", "",
          "test_bucket_runs.py::test_stopped_and_continued", slow=True),
    Break("R1", "kill while lines are replaced", "seva_jax/runtime/files.py",
          "old lines come back", "parts = parts[whole[-1] :] if whole else parts", "whole = whole",
          "test_stores.py::test_a_kill_while_lines_are_replaced"),
    Break("buckets", "a lost answer", "seva_jax/runtime/stores.py", "lines are written twice",
          "return self.exists() and self.read_bytes() == data", "return False",
          "test_stores.py::test_a_journal_in_a_store"),
    Break("buckets", "lines replaced while they are read", "seva_jax/runtime/files.py",
          "the reader ends", "FileNotFoundError:  # another", "ValueError:  # another",
          "test_stores.py::test_lines_that_are_replaced_while_they_are_read"),
    Break("buckets", "a silent store", "seva_jax/runtime/store_client.py",
          "it is waited for for ever",
          "total=None, sock_connect=_SILENCE_S, sock_read=_SILENCE_S", "total=None",
          "test_stores.py::test_a_silent_store_is_tried_again"),
    Break("buckets", "no project", "seva_jax/runtime/stores.py", "Orbax ends in a traceback",
          "if not remote._do(has_project):", "if False:",
          "test_bucket_runs.py::test_what_is_told_before_the_first_stage", slow=True),
    Break("R7", "other bytes in a bucket", "seva_jax/training/digests.py", "they are restored",
          "digest = seen.digest if seen else _checksum_as_in_store(file)", "digest = facts[1]",
          "test_bucket_runs.py::test_every_damaged_object_is_named"),
    Break("R7", "a foreign folder in a bucket", "seva_jax/training/checkpoint.py",
          "Orbax deletes it", "not is_remote(self._directory)", "True",
          "test_bucket_runs.py::test_damage_is_set_aside_and_the_previous_one_used"),
    Break("secrets", "the user's name", "seva_jax/runtime/paths.py", "paths at home stay whole",
          '"~", text) if home else text', 'home, text) if home else text',
          "test_config.py::test_the_home_directory_is_not_written"),
    Break("secrets", "a key in a config", "seva_jax/evals/endpoint.py", "it is written there",
          'not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", self.api_key_env)', "False",
          "test_judge.py::test_a_key_cannot_get_into_a_config"),
    Break("ranges", "numbers out of range", "seva_jax/ranges.py", "they are taken",
          "allowed is not None and value not in allowed", "False",
          "test_config.py::test_each_problem_is_found"),
    Break("tokenizers", "no end token", "seva_jax/text/tokenizer.py", "nobody notices",
          "if tokenizer.eos_token_id is None:", "if False:",
          "test_text.py::test_missing_special_tokens_are_named"),
    Break("tokenizers", "a model that normalises", "seva_jax/text/llama.py", "ids differ silently",
          "if _backend(bpe).encode(probe).ids != model.encode(probe):", "if False:",
          "test_tokens.py::test_other_kinds_of_sentencepiece_models_are_refused"),
    Break("tokenizers", "files of two models", "seva_jax/text/llama.py", "ids differ silently",
          "if inner.token_to_id(name) != id_:", "if False:",
          "test_tokens.py::test_added_tokens_keep_their_ids"),
    Break("power", "a power loss", "seva_jax/runtime/files.py", "names come before the bytes",
          "    _synchronise(aside)\n", "",
          "test_store.py::test_files_are_on_disk_before_they_have_their_names"),
    Break("power", "what it left", "seva_jax/runtime/run_records.py", "ends in a traceback",
          "return read_json(file) if", "return json.loads(file.read_text()) if",
          "test_workdir.py::test_damaged_records_are_named"),
    Break("traces", "one that fails", "seva_jax/runtime/profiler.py", "ends the run",
          "    except Exception as error:", "    except KeyError as error:",
          "test_profile.py::test_trace_that_cannot_be_taken_or_written"),
    Break("traces", "a stop meanwhile", "seva_jax/runtime/profiler.py", "the trace is lost",
          "            self._end(summary=False)", "            self._trace = None",
          "test_profile.py::test_stop_or_error_while_tracing"),
    Break("preflight", "folders and files", "seva_jax/run/preflight.py",
          "they are missed in the stage that needs them",
          "problems += _folder_problems(config)", "pass",
          "test_preflight.py::test_everything_that_is_missing_is_listed"),
    Break("deleted", "a checkpoint", "seva_jax/run/leaves.py", "its stage counts as finished",
          "lost += self._missing_of_checkpoint(name, each)", "pass",
          "test_taken.py::test_a_missing_checkpoint_is_an_error_that_says_what_to_do"),
    Break("taken", "a kill while files are copied", "seva_jax/run/workdir.py",
          "a part counts as the whole",
          'if marker.exists() and read_json(marker)["stage"] == stage.name:', "if False:",
          "test_taken.py::test_a_copy_that_was_killed_is_made_again"),
    Break("fuzz", "damaged images", "seva_jax/images/load.py", "Pillow's errors come through",
          "    except Exception as error:\n", "    except OSError as error:\n",
          "test_fuzz_data.py::test_damaged_images"),
)
# fmt: on


def copy_to(folder: Path) -> None:
    """Copies what git would: tracked files as they are now, and new ones."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=ROOT, text=True).split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def run_tests(folder: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Returns pytest's status and output; 0 is all passed, 1 some failed, others are no answer."""
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", ""]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *(f"tests/{test}" for test in tests)],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def attempt(folder: Path, entry: Break) -> str:
    """Returns what its test says without a defence; the copy is restored afterwards."""
    path = folder / entry.file
    whole = path.read_text(encoding="utf-8")
    if whole.count(entry.text) != 1:
        return f"WRONG: its text is there {whole.count(entry.text)} times"
    path.write_text(whole.replace(entry.text, entry.instead), encoding="utf-8")
    try:
        status, output = run_tests(folder, [entry.test])
    finally:
        path.write_text(whole, encoding="utf-8")
    if status == 1:
        errors = [line[1:].strip() for line in output.splitlines() if line.startswith("E  ")]
        return f"failed as it should ({errors[0][:70] if errors else 'see pytest'})"
    if status == 0 and "passed" not in output.splitlines()[-1]:
        return "skipped: cannot be tried here"
    return "WRONG: it passed" if status == 0 else f"WRONG: no answer\n{output[-2000:]}"


def main() -> int:
    """Runs the command line; status 1 if a test passed, or failed with all defences in place."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("`")[0])
    promises = list(dict.fromkeys(entry.promise for entry in BREAKS))
    parser.add_argument("--only", nargs="+", choices=promises, default=promises, metavar="R7")
    parser.add_argument("--slow", action="store_true", help="also those that take minutes")
    options = parser.parse_args()
    chosen = [x for x in BREAKS if x.promise in options.only and (options.slow or not x.slow)]
    wrong = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_to(folder)
        status, output = run_tests(folder, list(dict.fromkeys(x.test for x in chosen)))
        if status:
            sys.exit(f"{output[-3000:]}\nerror: these tests fail with all defences in place")
        for entry in chosen:
            said = attempt(folder, entry)
            wrong += said.startswith("WRONG")
            where = f"{entry.file}: {entry.without} | {entry.test}"
            print(f"{entry.promise} {entry.fault} | {where} | {said}", flush=True)
    print(f"{len(chosen)} tried, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
