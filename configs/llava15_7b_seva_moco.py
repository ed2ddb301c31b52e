"""The published run with MoCo's augmentations in place of noise."""

import dataclasses

from llava15_7b_seva import get_config as base

from seva_jax.corrupt import moco


def get_config():
    """`llava15_7b_seva.py` with another corruption."""
    return dataclasses.replace(base(), workdir="runs/llava15_7b_seva_moco", corrupt=(moco(),))
