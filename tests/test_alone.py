"""The package alone is enough, and nothing that a run leaves behind tells who made it."""

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers_report import Page
from helpers_run import environment

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_all_commands_alone_and_what_they_leave(tmp_path):
    """They need no torch, TensorFlow or network; no key, user, home or host is written or shown."""
    home = tmp_path / "people" / "alice"
    done = subprocess.run(
        [sys.executable, str(TESTS / "alone_worker.py"), str(home)],
        env=environment(), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert done.stdout.endswith("alone\n")
    run = home / "runs" / "one"
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {"report.html", "all.html", "config.py", "adapter_config.json"} <= {
        path.name for path in files
    }
    secrets = [b"sk-very-secret-token", b"alice", str(tmp_path).encode()]
    for path in [*files, home / "j.jsonl"]:
        # Orbax names the checkpoint's directory in the one, peft opens the path in the other.
        if path.name in ("commit_success.txt", "adapter_config.json"):
            continue
        content = path.read_bytes()
        for secret in (*secrets, base64.b64encode(secrets[0])[:-4]):
            assert secret not in content, f"{secret} in {path}"
        names = str(path.relative_to(home))
        assert not any(secret.decode() in names for secret in secrets), names
    for secret in secrets:
        assert secret.decode() not in done.stdout
    assert "~/runs/one" in (run / "config.py").read_text()
    for name in ("report.html", "all.html"):
        page = Page((run / name).read_text())
        assert any(re.match("default-src 'none'", x.get("content", "")) for x in page.all("meta"))
