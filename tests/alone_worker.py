"""A whole run for `test_alone.py`: without torch, TensorFlow or network, in the home of "alice".

It trains with a judge behind a fake endpoint in this process, resumes, exports, evaluates and
reports. The only argument is the home directory, which is empty.
"""

import contextlib
import importlib.machinery
import json
import os
import platform
import socket
import sys
from pathlib import Path

HIDDEN = ("torch", "torchvision", "tensorflow", "keras", "tensorboard", "wandb", "cv2")
KEY = "sk-very-secret-token"
home = Path(sys.argv[1])
# Before any import, so that libraries see it as the user's.
os.environ |= {"HOME": str(home), "USER": "alice", "LOGNAME": "alice", "JUDGE_KEY": KEY}
os.environ |= {"HF_TOKEN": KEY, "WANDB_API_KEY": KEY, "HF_HUB_OFFLINE": "0"}
socket.gethostname = lambda: "pc-of-alice"
platform.node = lambda: "pc-of-alice"

find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: (
        None if name.split(".")[0] in HIDDEN else find(name, path, target)
    )
)

attempts = []


def refuse(real, place):
    """Wraps a function to refuse addresses outside of this machine."""

    def guarded(*args, **kwargs):
        host = str(args[place][0] if isinstance(args[place], tuple) else args[place])
        if host in ("127.0.0.1", "localhost", "::1") or host.startswith("/"):
            return real(*args, **kwargs)
        attempts.append(host)
        raise OSError(f"no network: {host}")

    return guarded


socket.socket.connect = refuse(socket.socket.connect, 1)
socket.socket.connect_ex = refuse(socket.socket.connect_ex, 1)
socket.getaddrinfo = refuse(socket.getaddrinfo, 0)
socket.gethostbyname = refuse(socket.gethostbyname, 0)

from helpers_judge import chat, server  # noqa: E402
from PIL import Image  # noqa: E402
from process_worker import SMALL  # noqa: E402

from seva_jax import evaluate, train  # noqa: E402
from seva_jax.convert.__main__ import main as convert  # noqa: E402
from seva_jax.data.__main__ import main as data  # noqa: E402
from seva_jax.report.__main__ import main as report  # noqa: E402
from seva_jax.worlds import ShapeWorld  # noqa: E402

CONFIG = """
import dataclasses
from process_worker import MadeUpPairs
from seva_jax.config.config_files import config_directory, read_config
from seva_jax.evals.endpoint import OpenAICompatible
from seva_jax.evals.suites import MMVet
from seva_jax.data.files import QuestionsJsonl

def suite(name):
    judge = OpenAICompatible(
        base_url={url!r}, model="judge", api_key_env="JUDGE_KEY", transcript={home!r} + "/j.jsonl"
    )
    return MMVet(name=name, path={home!r} + "/mm.json", image_root={home!r} + "/images",
                 judge=judge, max_new_tokens=4)

def get_config():
    tiny = read_config(config_directory() / "tiny.py")
    return dataclasses.replace(
        tiny, pairs=MadeUpPairs(), evals=(suite("mmvet"),), loggers=(),
        prompts=QuestionsJsonl("~/q.jsonl", {home!r} + "/images"))

def get_suites():
    return [suite("again")]
"""


@contextlib.contextmanager
def arguments(*argv):
    """Sets the process's arguments, for commands that read them."""
    sys.argv[1:] = map(str, argv)
    yield


def main():
    """Runs all commands."""
    world = ShapeWorld()
    (home / "images").mkdir(parents=True)
    lines = []
    for i in range(24):
        Image.fromarray(world.draw("a", i, False)).save(home / "images" / f"{i}.png")
        prompt = world.prompt("a", i, False, "color")
        lines.append({"id": str(i), "image": f"{i}.png", "question": prompt.question})
    (home / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    question = {"imagename": "0.png", "question": "what color ?", "answer": "red"}
    (home / "mm.json").write_text(json.dumps({"v1_0": question | {"capability": ["rec"]}}))
    with server(chat([0.5])) as (url, seen):
        config, run = home / "my_run.py", home / "runs" / "one"
        config.write_text(CONFIG.format(url=url, home=str(home)))
        small = [x for x in SMALL.split() if x != "--prompts.num" and x != "40"]
        common = ["--config", str(config), *small, "--workdir", str(run)]
        common += ["--train.max-steps", "3", "--strict"]
        data(["check", *common])
        train.main(common)
        for command in (train, evaluate):  # a process can join others only once
            for name in {"join", "joined"} & vars(command).keys():
                setattr(command, name, contextlib.nullcontext)
        stages = json.loads((run / "stages.json").read_text())
        for name in ("align", "evaluate aligned", "report"):
            del stages[name]
        (run / "stages.json").write_text(json.dumps(stages))
        train.main(["--config", str(run / "config.py")])
        evaluate.main(["--model", str(run), "--suite", str(config)])
        assert {authorization for _, authorization, _ in seen} == {f"Bearer {KEY}"}
    report(["--runs", str(run), "--out", str(run / "all.html")])
    for command in ("to-hf", "to-peft"):  # to-llava needs a tokenizer.model
        with arguments(command, run, run / command):
            convert()
    assert not attempts, attempts
    assert not set(HIDDEN) & {name.split(".")[0] for name in sys.modules}
    print("alone")


if __name__ == "__main__":
    main()
