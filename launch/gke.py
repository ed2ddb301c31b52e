#!/usr/bin/env python3
r"""Starts one run on TPU slices of a GKE cluster, as a JobSet with one pod for each host.

    python launch/gke.py --name seva --topology v5e:4x4 --slices 2 --image IMAGE -- \
        --config configs/llava15_7b_seva.py --mesh.fsdp 16 --workdir gs://my-bucket/runs/seva

IMAGE is built from launch/Dockerfile. Every host must see the work directory: give a gs:// one, or
mount a bucket (--bucket) or a volume (--claim). For buckets the cluster needs Workload Identity
Federation, and --service-account names a Kubernetes service account that may use the bucket.
--bucket also needs the cluster's add-on GcsFuseCsiDriver.

--dry-run prints the JobSet and needs neither kubectl nor a cluster; to start it, kubectl must point
at a cluster with the JobSet controller and a TPU node pool. Clusters that `xpk cluster create` made
have both: add --queue multislice-queue, the Kueue queue that XPK uses. --check starts
launch/check.py instead, with its options after --; `kubectl logs` shows one line of every host.

When a host fails or is preempted, or when SIGTERM made the run save and stop, the JobSet restarts
all hosts and the run resumes from its last checkpoint. With several slices, only the mesh axis
`data` spans them.
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

# Value of the node label cloud.google.com/gke-tpu-accelerator, by chip.
ACCELERATORS = {
    "v4": "tpu-v4-podslice",
    "v5e": "tpu-v5-lite-podslice",
    "v5p": "tpu-v5p-slice",
    "v6e": "tpu-v6e-slice",
    "tpu7x": "tpu7x",
}

# Of launch/Dockerfile: the checkout, and the user and group that own it.
CHECKOUT, USER = "/seva_jax", 1000


def manifest(options: argparse.Namespace) -> dict:
    """Returns the JobSet."""
    chip, shape = options.topology.split(":")
    chips = math.prod(map(int, shape.split("x")))
    hosts = max(chips // options.chips_per_host, 1)
    program = [f"{CHECKOUT}/launch/check.py"] if options.check else ["-m", "seva_jax.train"]
    container = {
        "name": "seva-jax",
        "image": options.image,
        "command": [f"{CHECKOUT}/.venv/bin/python", *program, *options.train],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],
        # The number of restarts. Above 0, the earlier pods are gone: their lock may be taken over.
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
    template: dict = {"spec": pod}
    volume: dict = {}
    if options.claim:
        volume = {"persistentVolumeClaim": {"claimName": options.claim}}
    elif options.bucket:
        # A sidecar, which the annotation asks for, mounts the bucket with Cloud Storage FUSE.
        template["metadata"] = {"annotations": {"gke-gcsfuse/volumes": "true"}}
        access = f"implicit-dirs,uid={USER},gid={USER},file-mode=664,dir-mode=775"
        attributes = {"bucketName": options.bucket, "mountOptions": access}
        volume = {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}}
    if volume:
        pod["volumes"] = [{"name": "shared", **volume}]
        container["volumeMounts"] = [{"name": "shared", "mountPath": options.mount}]
    if options.service_account:
        pod["serviceAccountName"] = options.service_account
    if options.privileged:
        container["securityContext"] = {"privileged": True, "runAsUser": 0, "runAsGroup": 0}
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "backoffLimit": 0,
        "template": template,
    }
    metadata: dict = {
        "name": options.name,
        # Each slice gets a node pool to itself.
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    if options.queue:
        metadata["labels"] = {"kueue.x-k8s.io/queue-name": options.queue}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "failurePolicy": {"maxRestarts": 0 if options.check else options.attempts},
            "replicatedJobs": [
                {"name": "slice", "replicas": options.slices, "template": {"spec": job}}
            ],
        },
    }


def parse() -> argparse.Namespace:
    """Returns the checked options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    get = os.environ.get
    parser.add_argument("--name", default=get("TPU_NAME", "seva"), help="JobSet name ($TPU_NAME)")
    parser.add_argument(
        "--topology", default=get("TPU_TOPOLOGY"),
        help=f"CHIP:SHAPE as in seva_jax.plan, for example v5e:4x4; chips: "
        f"{', '.join(ACCELERATORS)} ($TPU_TOPOLOGY)",
    )  # fmt: skip
    parser.add_argument("--slices", type=int, default=1, help="number of slices (default 1)")
    parser.add_argument("--chips-per-host", type=int, default=4, help="chips a node (default 4)")
    parser.add_argument("--image", default=get("TPU_IMAGE"), help="container image ($TPU_IMAGE)")
    parser.add_argument("--context", help="kubectl context: names project, zone and cluster")
    parser.add_argument("--namespace", default="default", help="(default: default)")
    parser.add_argument("--queue", help="Kueue queue; multislice-queue in clusters made by XPK")
    parser.add_argument(
        "--bucket", help="bucket that all hosts mount with Cloud Storage FUSE, without gs://"
    )
    parser.add_argument(
        "--claim",
        help=f"persistent volume claim that all hosts mount; user {USER} must be able to write",
    )
    parser.add_argument("--mount", help="mount path (default /mnt/bucket or /mnt/shared)")
    parser.add_argument("--service-account", help="Kubernetes service account of the pods")
    parser.add_argument(
        "--privileged", action="store_true",
        help="run as root in privileged mode: for GKE before 1.28, and where JAX may not use the "
        "TPU otherwise",
    )  # fmt: skip
    parser.add_argument("--attempts", type=int, default=100, help="most restarts (default 100)")
    parser.add_argument("--spot", action="store_true", help="use spot nodes")
    parser.add_argument(
        "--check", action="store_true", help="start launch/check.py instead of a run"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the JobSet, send nothing")
    parser.add_argument("train", nargs="*", help="after --, options of seva_jax.train")
    options = parser.parse_args()
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
        parser.error(f"--name {options.name!r}: small letters, digits and dashes, at most 40")
    topology = re.fullmatch(r"(\w+):\d+x\d+(x\d+)?", options.topology or "")
    if not topology or topology[1] not in ACCELERATORS:
        parser.error(f"--topology {options.topology!r}: give one, for example v5e:4x4")
    if not options.image:
        parser.error("give --image, a container image built from launch/Dockerfile")
    if min(options.slices, options.chips_per_host, options.attempts) < 1:
        parser.error("--slices, --chips-per-host and --attempts must be at least 1")
    if options.bucket and options.claim:
        parser.error("give --bucket or --claim, not both")
    if options.bucket and not re.fullmatch(r"[a-z0-9][a-z0-9._-]+", options.bucket):
        parser.error(f"--bucket {options.bucket!r}: give the bucket's name alone, without gs://")
    if options.mount and not (options.bucket or options.claim):
        parser.error("--mount needs --bucket or --claim")
    options.mount = options.mount or ("/mnt/bucket" if options.bucket else "/mnt/shared")
    if not options.train and not options.check:
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
