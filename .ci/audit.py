"""Is uv.lock fresh, and has any package in it a known vulnerability? Offline this cannot be told.

Run by .ci/run. What cannot be looked up is said and passes; a stale lock file or a vulnerability
fails.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """The command, with its output."""
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_lock() -> None:
    """Ends with an error if pyproject.toml asks for what uv.lock does not have."""
    done = run("uv", "lock", "--check")
    if "needs to be updated" in done.stderr:
        sys.exit("error: uv.lock does not fit pyproject.toml; run `uv lock` and commit it")
    print(
        "uv.lock: fresh" if not done.returncode else f"uv.lock: not checked: {done.stderr[-300:]}"
    )


def audit() -> None:
    """Looks up every package that users install, in PyPI's database of advisories."""
    with tempfile.TemporaryDirectory() as folder:
        packages = str(Path(folder) / "packages.txt")
        extras = [x for extra in ("test", "tpu", "wandb") for x in ("--extra", extra)]
        exported = run(
            "uv", "export", "--frozen", "--no-emit-project", "--no-hashes", "-o", packages, *extras
        )  # fmt: skip
        if exported.returncode:
            sys.exit(f"error: uv.lock cannot be read: {exported.stderr}")
        done = run("pip-audit", "--no-deps", "--disable-pip", "-f", "json", "-r", packages)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"audit: skipped, advisories cannot be reached: {done.stderr.strip()[-300:]}")
        return
    known = [package for package in found if "skip_reason" not in package]
    if not known:
        print(f"audit: skipped, none of {len(found)} packages could be looked up")
        return
    bad = [
        f"{package['name']} {package['version']}: {advisory['id']}, mended in "
        f"{', '.join(advisory['fix_versions']) or 'no version'}"
        for package in known
        for advisory in package["vulns"]
    ]
    print(f"audit: {len(known)} of {len(found)} packages looked up, {len(bad)} advisories")
    if bad:
        sys.exit("error: packages with known vulnerabilities:\n  " + "\n  ".join(bad))


if __name__ == "__main__":
    check_lock()
    audit()
