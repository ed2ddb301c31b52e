"""Meshes of some of the fake devices, and a model that any mesh of eight can split."""

import contextlib
from unittest import mock

import jax
import numpy as np
from tiny_models import EIGHT_HEADS

from seva_jax.models import Llava, LoraConfig, abstract_variables
from seva_jax.sharding import MeshShape, variable_shardings

MODEL = Llava(EIGHT_HEADS, LoraConfig(rank=4, alpha=8.0))


def mesh_of(data=1, fsdp=1, tensor=1):
    """Makes a mesh of these sizes from the first devices."""
    num = int(np.prod((data, fsdp, tensor)))
    return MeshShape(data, fsdp, tensor).make(jax.devices()[:num])


@contextlib.contextmanager
def limited_devices(num):
    """Makes every mesh of a run from the first `num` devices while the body runs."""
    make = MeshShape.make
    few = lambda self: make(self, jax.devices()[:num])  # noqa: E731
    with mock.patch.object(MeshShape, "make", few):
        yield


def placed(shape, variables):
    """Makes a mesh and puts variables of `MODEL` on it; returns both."""
    devices = mesh_of(*shape)
    boxed = abstract_variables(MODEL)
    return devices, {
        name: jax.device_put(values, variable_shardings(devices, boxed[name]))
        for name, values in variables.items()
    }
