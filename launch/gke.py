#!/usr/bin/env python3
r"""One run on TPU slices of a GKE cluster, as a JobSet: every host of every slice starts it.

    python launch/gke.py --name seva --topology v5e:4x4 --slices 2 --image IMAGE -- \
        --config configs/llava15_7b_seva.py --mesh.fsdp 16 --workdir /mnt/bucket/runs/seva

Needs kubectl, pointed at a cluster with the JobSet controller and a TPU node pool, and an image
with this checkout installed (`pip install -e '.[tpu]'`). The work directory has to be one that all
hosts see; a preempted or failed slice starts the whole run again, which continues from its last
checkpoint, or from where SIGTERM made it save. With several slices only the mesh axis `data` spans
them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys

# Value of the node label, by chip.
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}


def manifest(options: argparse.Namespace) -> dict:
    """The JobSet."""
    chip, shape = options.topology.split(":")
    chips = math.prod(map(int, shape.split("x")))
    hosts = max(chips // options.chips_per_host, 1)
    container = {
        "name": "seva-jax",
        "image": options.image,
        "command": ["python3", "-m", "seva_jax.train", *options.train],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        # From the second start on the pods before these are gone: their lock may be taken over.
        "env": [
            {
                "name": "SEVA_JAX_RESTARTED",
                "valueFrom": {
                    "fieldRef": {
                        "fieldPath": "metadata.annotations['jobset.sigs.k8s.io/restart-attempt']"
                    }
                },
            }
        ],
        "resources": {"limits": {"google.com/tpu": min(chips, options.chips_per_host)}},
    }
    pod: dict = {
        "restartPolicy": "Never",
        "nodeSelector": {
            "cloud.google.com/gke-tpu-accelerator": ACCELERATORS[chip],
            "cloud.google.com/gke-tpu-topology": shape,
        },
        "containers": [container],
    }
    if options.spot:
        pod["nodeSelector"]["cloud.google.com/gke-spot"] = "true"
    if options.claim:
        pod["volumes"] = [{"name": "shared", "persistentVolumeClaim": {"claimName": options.claim}}]
        container["volumeMounts"] = [{"name": "shared", "mountPath": options.mount}]
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": options.name,
            "annotations": {
                # Each slice gets a node pool to itself.
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            },
        },
        "spec": {
            "failurePolicy": {"maxRestarts": options.attempts},
            "replicatedJobs": [
                {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    get = os.environ.get
    parser.add_argument("--name", default=get("TPU_NAME", "seva"), help="of the JobSet ($TPU_NAME)")
    parser.add_argument(
        "--topology", default=get("TPU_TOPOLOGY"),
        help=f"CHIP:SHAPE as in seva_jax.plan, for example v5e:4x4; chips: "
        f"{', '.join(ACCELERATORS)} ($TPU_TOPOLOGY)",
    )  # fmt: skip
    parser.add_argument("--slices", type=int, default=1, help="how many (default 1)")
    parser.add_argument("--chips-per-host", type=int, default=4, help="of the nodes (default 4)")
    parser.add_argument("--image", default=get("TPU_IMAGE"), help="container image ($TPU_IMAGE)")
    parser.add_argument("--context", help="of kubectl, which names project, zone and cluster")
    parser.add_argument("--namespace", default="default", help="(default: default)")
    parser.add_argument("--claim", help="persistent volume claim that all hosts mount")
    parser.add_argument("--mount", default="/mnt/shared", help="where (default /mnt/shared)")
    parser.add_argument("--attempts", type=int, default=100, help="restarts at most (default 100)")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    parser.add_argument("--dry-run", action="store_true", help="print the JobSet, send nothing")
    parser.add_argument("train", nargs="*", help="after --, options of seva_jax.train")
    options = parser.parse_args()
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
        parser.error(f"--name {options.name!r}: small letters, digits and dashes, at most 40")
    found = re.fullmatch(r"(\w+):\d+x\d+(x\d+)?", options.topology or "")
    if not found or found[1] not in ACCELERATORS:
        parser.error(f"--topology {options.topology!r}: give one, for example v5e:4x4")
    if not options.image:
        parser.error("give --image, a container image with seva_jax installed")
    if min(options.slices, options.chips_per_host, options.attempts) < 1:
        parser.error("--slices, --chips-per-host and --attempts must be at least 1")
    if not options.train:
        parser.error("give options of seva_jax.train after --")
    return options


def main() -> int:
    """Prints the JobSet and hands it to kubectl."""
    options = parse()
    text = json.dumps(manifest(options), indent=2)  # JSON is YAML
    command = ["kubectl", "apply", "--namespace", options.namespace, "-f", "-"]
    if options.context:
        command[1:1] = ["--context", options.context]
    print(text)
    print("+", shlex.join(command), flush=True)
    if options.dry_run:
        return 0
    return subprocess.run(command, input=text, text=True, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
