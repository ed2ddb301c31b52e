"""The sharding of every variable of the published configs; `goldens/make_shardings.py` wrote it."""

import json
import runpy
from pathlib import Path

SCRIPT = Path(__file__).parent / "goldens" / "make_shardings.py"


def test_published_configs():
    script = runpy.run_path(str(SCRIPT))
    golden = json.loads(script["GOLDEN"].read_text())
    found = script["everything"]()
    assert found.keys() == golden.keys()
    for name, shardings in golden.items():
        assert found[name] == shardings, name
        split = [s for s in shardings.values() if "fsdp" in s or "tensor" in s]
        assert len(split) > len(shardings) / 3
