"""Damaged and hostile safetensors files, as functions of the bytes of a good one."""

import json
import pickle
import struct


def header(fields, data=b""):
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, end):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


# One name twice in the header, for different bytes.
TWICE = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
TWICE += b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
TWICE = struct.pack("<Q", len(TWICE)) + TWICE + bytes(8)

DAMAGES = (
    lambda good: good[:-4],
    lambda good: good + b"more",
    lambda good: b"",
    lambda good: pickle.dumps({"weight": list(range(100))}),
    lambda good: b"PK\x03\x04" + bytes(100),  # a torch .bin, renamed
    lambda good: struct.pack("<Q", 2**62) + b"{}",
    lambda good: header({"a": entry([4], 0, 16), "b": entry([4], 8, 24)}, bytes(24)),
    lambda good: header({"a": entry([4], -16, 0)}, bytes(16)),
    lambda good: header({"a": entry([400], 0, 16)}, bytes(16)),
    lambda good: header({"a": entry([4], 0, 1600)}, bytes(16)),
    lambda good: header({"a": entry([4], 0, 16), "b": entry([4], 32, 48)}, bytes(48)),  # a hole
    lambda good: header({"a": entry([2**62, 4], 0, 16)}, bytes(16)),
    lambda good: header({"a": entry([-4], 0, 16)}, bytes(16)),
    lambda good: header({"a": entry([4], 0, 16) | {"dtype": "X32"}}, bytes(16)),
    lambda good: TWICE,
    lambda good: struct.pack("<Q", 200_003) + b'{"a":' + b"[" * 99_999 + b"]" * 99_999,
    lambda good: struct.pack("<Q", 8) + b"\xff" * 8,
)
