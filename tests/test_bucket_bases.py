"""Checkpoints and adapters in a bucket: equal to local ones, each byte read once, every fault told.

The bucket is a real emulator of Cloud Storage. Exports to a bucket are in `test_bucket_exports.py`.
"""

import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from helpers_adapters import write_adapter
from helpers_damage import DAMAGES
from helpers_llava import random_params, their_tensors, write_llava, write_original
from helpers_run import environment
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from test_convert import split
from tiny_models import TINY_HF

import seva_jax
from seva_jax.config import Checkpoint
from seva_jax.convert import (
    load_params,
    lora_of,
    placing,
    read_adapter,
    read_llava_config,
    read_lora,
    read_special_tokens,
    tower_directory,
)
from seva_jax.convert.processor import image_processing
from seva_jax.models import (
    Llava,
    abstract_stored,
    abstract_variables,
)
from seva_jax.runtime import copies
from seva_jax.runtime.store_client import StoreError
from seva_jax.runtime.stores import StorePath
from seva_jax.sharding import MeshShape, placed, variable_shardings
from seva_jax.text.tokenizer import load_tokenizer, tokenizer_facts, word_tokenizer
from seva_jax.training.checkpoint import checksum
from seva_jax.types import DataError

ROOT = Path(__file__).parent.parent
UNUSED = 16 * 4  # bytes of `post_layernorm`, which an original LLaVA stores and never uses


@pytest.fixture
def local(tmp_path):
    """Returns a small local checkpoint in Hugging Face's layout, with a tokenizer."""
    (tmp_path / "model").mkdir()
    word_tokenizer([f"w{i}" for i in range(34)]).save_pretrained(tmp_path / "model")
    return write_llava(tmp_path / "model")


def uploaded(local, place):
    copies.upload(local, place)
    return place


def same(ours, expected):
    """Asserts that two trees are equal, bit for bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(expected)

    def one(a, b):
        assert (a.dtype, a.sharding) == (b.dtype, b.sharding)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()

    jax.tree.map(one, ours, expected)


def shardings_of(config, **mesh):
    mesh = MeshShape(**mesh).make()
    return variable_shardings(mesh, abstract_variables(Llava(config))["params"])


def read_both(local, remote, shardings=None, **options):
    """Reads a checkpoint from the disk and from the bucket; they must be equal."""
    config = read_llava_config(remote, options.get("vision_tower"))
    assert config == read_llava_config(local)
    loaded = [load_params(d, config, shardings=shardings, **options) for d in (local, remote)]
    same(loaded[1], loaded[0])
    return loaded[1]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mesh", [None, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_parameters_are_those_of_the_local_files(local, bucket, mesh, dtype):
    remote = uploaded(local, bucket / "model")
    shardings = mesh and shardings_of(TINY_HF, **mesh)
    params = read_both(local, remote, shardings, dtype=dtype)
    if dtype == "float32":
        jax.tree.map(np.testing.assert_array_equal, params, random_params(TINY_HF))


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_several_files_with_an_index(local, bucket, stored):
    tensors = {k: v.astype(stored) for k, v in their_tensors(random_params(TINY_HF)).items()}
    split(local, tensors)
    read_both(local, uploaded(local, bucket / "model"), shardings_of(TINY_HF, fsdp=8))


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantised(local, bucket, kind):
    pytest.importorskip("qwix")
    remote = uploaded(local, bucket / "model")
    boxed = abstract_stored(abstract_variables(Llava(TINY_HF))["params"], kind, "float32")
    shardings = variable_shardings(MeshShape(fsdp=2, data=4).make(), boxed)
    read_both(local, remote, shardings, base_weights=kind)


def test_the_original_layout(tmp_path, bucket):
    """The tower is found inside the checkpoint, by its URL in config.json, or where one says."""
    local = write_original(tmp_path / "llava", tmp_path / "clip")
    remote, clip = uploaded(local, bucket / "llava"), uploaded(tmp_path / "clip", bucket / "clip")
    config = read_llava_config(local, tmp_path / "clip")
    expected = load_params(local, config, tower=tmp_path / "clip")
    with pytest.raises(DataError, match=r"openai/clip-vit-tiny.*not there"):
        tower_directory(remote)
    for given in (str(clip), tmp_path / "clip"):  # a local tower fits as well
        tower = tower_directory(remote, given)
        assert str(tower) == str(given)
        assert read_llava_config(remote, given) == config
        same(load_params(remote, config, tower=tower), expected)
    copies.upload(tmp_path / "clip", remote / "openai" / "clip-vit-tiny")
    assert tower_directory(remote) == remote / "openai" / "clip-vit-tiny"
    same(load_params(remote, config, tower=tower_directory(remote)), expected)
    assert image_processing(remote, clip) == image_processing(local, tmp_path / "clip")
    ids = [load_tokenizer(d, original=True)("w1 w2 <image> w3").input_ids for d in (local, remote)]
    assert ids[0] == ids[1]
    assets = Checkpoint(str(remote), str(clip)).assets()
    expected = Checkpoint(str(local), str(tmp_path / "clip")).assets()
    assert (assets.config, assets.processing) == (expected.config, expected.processing)
    assert tokenizer_facts(assets.tokenizer) == tokenizer_facts(expected.tokenizer)
    fields = json.loads((local / "config.json").read_text())
    for named, expected_place in (
        (str(clip), clip),
        # What an object says about this machine does not count.
        (str(tmp_path / "clip"), None),
        ("../clip", None),
        ("https://somewhere/clip", None),
    ):
        moved = bucket / f"moved-{len(named)}"
        (moved / "config.json").write_text(json.dumps(fields | {"mm_vision_tower": named}))
        if expected_place is None:
            with pytest.raises(DataError, match="not there"):
                tower_directory(moved)
        else:
            assert tower_directory(moved) == expected_place


def test_tokenizer_processor_and_special_tokens(local, bucket, monkeypatch):
    remote = uploaded(local, bucket / "model")
    tokenizer = load_tokenizer(remote)
    assert tokenizer_facts(tokenizer) == tokenizer_facts(load_tokenizer(local))
    assert tokenizer("w1 w7 <image>").input_ids == load_tokenizer(local)("w1 w7 <image>").input_ids
    assert tokenizer.name_or_path == str(remote)
    assert read_special_tokens(remote) == read_special_tokens(local)
    assert image_processing(remote, None) == image_processing(local, None)
    # Weights are not copied to the disk. A second time nothing is read, unless it has changed.
    folder = copies.local_folder(remote, (".json",))
    assert not list(folder.parent.rglob("*.safetensors"))
    with monkeypatch.context() as patch:
        patch.setattr(StorePath, "read_below", None)
        load_tokenizer(remote)
    word_tokenizer([f"x{i}" for i in range(34)]).save_pretrained(local)
    uploaded(local, remote)
    assert tokenizer_facts(load_tokenizer(remote)) == tokenizer_facts(load_tokenizer(local))
    (remote / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=f"^{remote}: the tokenizer does not load"):
        load_tokenizer(remote)
    with pytest.raises(DataError, match="no such directory"):
        load_tokenizer(bucket / "nothing")


def test_from_pretrained(local, bucket):
    remote, ids = uploaded(local, bucket / "model"), np.array([[1, 5, 6]])
    expected = seva_jax.from_pretrained(local)
    model = seva_jax.from_pretrained(str(remote))
    assert model.logits(ids).tobytes() == expected.logits(ids).tobytes()
    assert tokenizer_facts(model.tokenizer) == tokenizer_facts(expected.tokenizer)
    assert model.processing == expected.processing


def test_adapters(tmp_path, local, bucket):
    whole = ["multi_modal_projector.linear_1.weight"]
    write_adapter(tmp_path / "a", whole=whole)
    remote, there = uploaded(local, bucket / "model"), uploaded(tmp_path / "a", bucket / "a")
    adapter, expected = read_adapter(there, TINY_HF), read_adapter(tmp_path / "a", TINY_HF)
    shardings = shardings_of(TINY_HF, fsdp=4, data=2)
    merged = load_params(local, TINY_HF, shardings=shardings, adapter=expected)
    for directory in (local, remote):
        same(load_params(directory, TINY_HF, shardings=shardings, adapter=adapter), merged)
    model = seva_jax.from_pretrained(str(remote), adapter=str(there))
    same(model.params, seva_jax.from_pretrained(local, adapter=tmp_path / "a").params)


def test_an_adapter_that_is_trained_further(tmp_path, local, bucket):
    write_adapter(tmp_path / "a")
    remote, there = uploaded(local, bucket / "model"), uploaded(tmp_path / "a", bucket / "a")
    base = Checkpoint(str(remote), adapter=str(there), merge=False)
    adapter, expected = base.open_adapter(TINY_HF), read_adapter(tmp_path / "a", TINY_HF)
    lora = base.lora(None)
    assert lora == lora_of(expected, TINY_HF)
    boxed = abstract_variables(Llava(TINY_HF, lora=lora))["lora"]
    like = placed(boxed, variable_shardings(MeshShape(fsdp=2, data=4).make(), boxed))
    same(read_lora(adapter, like), read_lora(expected, like))


# --- what is read ---


@pytest.fixture
def ranges(monkeypatch):
    """Returns the ranges that this process asks the store for, as (name, start, stop)."""
    asked, read_range = [], StorePath.read_range

    def counting(self, start, stop):
        asked.append((self.name, start, stop))
        return read_range(self, start, stop)

    monkeypatch.setattr(StorePath, "read_range", counting)
    return asked


def header_size(path):
    return 8 + int.from_bytes(path.read_bytes()[:8], "little")


def no_overlap(asked):
    asked = sorted(asked)
    return all(a[0] != b[0] or a[2] <= b[1] for a, b in itertools.pairwise(asked))


@pytest.mark.parametrize("mesh", [None, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_one_process_reads_every_byte_once(local, bucket, ranges, mesh):
    """Whatever the mesh: devices that need the same bytes, or other columns of rows, share them."""
    tensors = load_file(local / "model.safetensors")
    more = {"vision_tower.post_layernorm.weight": np.ones(16, np.float32)}  # is not read
    save_file(tensors | more, local / "model.safetensors")
    remote = uploaded(local, bucket / "model")
    load_params(remote, TINY_HF, "bfloat16", mesh and shardings_of(TINY_HF, **mesh))
    size = sum(values.nbytes for values in tensors.values())
    assert no_overlap(ranges)
    assert sum(b - a for _, a, b in ranges) == size + header_size(local / "model.safetensors")


def test_large_tensors_are_read_in_pieces_at_once(local, bucket, ranges, monkeypatch):
    monkeypatch.setattr("seva_jax.convert.tensors._REQUEST", 1000)
    remote = uploaded(local, bucket / "model")
    read_both(local, remote)
    assert max(b - a for _, a, b in ranges[2:]) == 1000
    assert no_overlap(ranges)


def test_bytes_on_the_wire(local, proxied, proxy):
    """The requests that a proxy sees carry what the tests above count."""
    remote = uploaded(local, proxied / "model")
    before = len(proxy.seen)
    load_params(remote, TINY_HF)
    got = [seen.received for seen in proxy.seen[before:] if "model.safetensors" in seen.path]
    size = (local / "model.safetensors").stat().st_size
    assert size <= sum(got) < size + 6000  # and a few answers that describe the object


def launch(url, processes, devices, *mesh):
    command = [
        *(sys.executable, ROOT / "launch" / "local.py", "--processes", processes),
        *("--devices", devices, "--", sys.executable, ROOT / "tests" / "lean.py", "base_worker"),
        *(url, *mesh),
    ]
    done = subprocess.run(
        list(map(str, command)), env=environment(), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    lines = re.findall(r"RESULT (.*)", done.stdout)
    assert len(lines) == processes
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("shape", [(2, 16, 32), (3, 16, 32), (8, 16, 32), (3, 5, 7)])
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2), (2, 4, 1), (2, 1, 4), (8, 1, 1), (1, 1, 8)])
def test_what_is_read_and_exchanged_has_the_bits_of_what_is_wanted(shape, mesh):
    """The exchange of several processes, on the devices of one: also NaNs and negative zeros."""
    wanted = NamedSharding(MeshShape(*mesh).make(), PartitionSpec(None, "fsdp", "tensor"))
    if shape[1] % 2:
        wanted = NamedSharding(wanted.mesh, PartitionSpec())
    reading = placing.spread(wanted, shape, (0, 2))
    bits = np.random.default_rng(0).integers(2**16, size=shape).astype(np.uint16)
    exchange = placing._exchange(np.dtype(jnp.bfloat16), reading, wanted, 3)
    array = exchange(jax.device_put(bits, reading))
    assert array.sharding == wanted
    np.testing.assert_array_equal(np.asarray(array).view(np.uint16), bits)
    parts = reading.devices_indices_map(shape).values()
    if shape[1] % 2 == 0:  # every device reads something else
        assert len({str(part) for part in parts}) == 8
    # Parts are exchanged; no device gets the whole array, unless it wants it.
    text = exchange.lower(jax.device_put(bits, reading)).compile().as_text()
    sizes = [
        math.prod(map(int, dims.split(",")))
        for dims in re.findall(r"= u16\[([\d,]+)\]\S* (?:all-gather|all-reduce)", text)
    ]
    share = max(math.prod(shape) // (mesh[1] * mesh[2]), 1)
    assert all(size <= share for size in sizes) or wanted.is_fully_replicated, text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "mesh"),
    [(1, (1, 2, 1)), (2, (1, 4, 1)), (2, (2, 2, 1)), (2, (2, 1, 2)), (2, (4, 1, 1))],
)
def test_two_processes_read_every_byte_once_in_sum(local, bucket, devices, mesh):
    """Of this model only the position embedding, whose five rows no mesh divides, is read twice."""
    remote = uploaded(local, bucket / "model")
    results = launch(remote, 2, devices, *mesh, "bfloat16")
    tensors = load_file(local / "model.safetensors")
    copies = tensors["vision_tower.embeddings.position_embedding.weight"].nbytes
    size = sum(values.nbytes for values in tensors.values())
    headers = 2 * header_size(local / "model.safetensors")
    assert sum(x["asked"] for x in results) == size + copies + headers
    expected = load_params(local, TINY_HF, "bfloat16")
    for result in results:
        assert result["placed"]
        assert result["sums"] == jax.tree.leaves(jax.tree.map(checksum, expected))
        assert result["asked"] < 0.6 * size + copies + headers


# --- faults ---


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_and_hostile_files(local, bucket, damage):
    """They are refused in the words that refuse them on a disk."""
    path = local / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    remote = uploaded(local, bucket / "model")
    messages = []
    for directory in (local, remote):
        with pytest.raises(DataError) as caught:
            load_params(directory, TINY_HF)
        messages.append(str(caught.value).replace(str(directory), ""))
    assert messages[0] == messages[1]
    assert messages[1].startswith("/model.safetensors is not a complete safetensors file (")


def test_a_git_lfs_pointer(local, bucket):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (local / "model.safetensors").write_text(text)
    with pytest.raises(DataError, match="run `git lfs pull`"):
        load_params(uploaded(local, bucket / "model"), TINY_HF)


def test_what_is_missing(local, bucket):
    with pytest.raises(DataError, match=r"nothing/config.json does not exist"):
        read_llava_config(bucket / "nothing")
    with pytest.raises(DataError, match=r"gs://no-such-bucket/x/config.json does not exist"):
        read_llava_config("gs://no-such-bucket/x")
    with pytest.raises(DataError, match=r"holds no adapter_config.json"):
        read_adapter(bucket / "nothing", TINY_HF)
    remote = uploaded(local, bucket / "model")
    (remote / "model.safetensors").unlink()
    with pytest.raises(DataError, match=r"holds neither model.safetensors nor"):
        load_params(remote, TINY_HF)
    (remote / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match="can run code"):
        load_params(remote, TINY_HF)


def refused(directory):
    with pytest.raises((DataError, StoreError)) as caught:
        load_params(directory, TINY_HF)
    message = str(caught.value)
    assert str(directory) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("after", [2, 12])
@pytest.mark.parametrize("how", ["replaced", "cut", "removed"])
def test_an_object_that_changes_while_it_is_read(local, bucket, monkeypatch, how, after):
    remote = uploaded(local, bucket / "model")
    path, count, read_range = remote / "model.safetensors", [], StorePath.read_range
    data = path.read_bytes()

    def changing(self, start, stop):
        count.append(start)
        if len(count) == after + 1:
            if how == "removed":
                path.unlink()
            else:
                path.write_bytes(data[:-100] + bytes(100) if how == "replaced" else data[:900])
        return read_range(self, start, stop)

    monkeypatch.setattr(StorePath, "read_range", changing)
    assert "was replaced or removed while it was read; run it again" in refused(remote)


def test_a_range_that_ends_early(local, bucket, monkeypatch):
    read_range = StorePath.read_range
    monkeypatch.setattr(StorePath, "read_range", lambda self, a, b: read_range(self, a, b - 1))
    assert "ends at byte 7, before 8" in refused(uploaded(local, bucket / "model"))


def test_short_failures_are_tried_again(local, proxied, proxy):
    remote = uploaded(local, proxied / "model")
    for fault in (503, 429, "cut", "half"):
        proxy.inject(fault, times=1, match=r"GET .*model\.safetensors")
    same(load_params(remote, TINY_HF), load_params(local, TINY_HF))
    assert [seen.fault for seen in proxy.seen if seen.fault] == [503, 429, "cut", "half"]


def test_403_in_one_line(local, proxied, proxy):
    remote = uploaded(local, proxied / "model")
    proxy.inject(403, times=1000, match=r"GET .*model\.safetensors.*alt=media")
    assert "Storage Object User" in refused(remote)


@pytest.mark.slow
def test_503_for_good_in_one_line(local, proxied, proxy):
    remote = uploaded(local, proxied / "model")
    proxy.inject(503, times=1000, match=r"GET .*model\.safetensors.*alt=media")
    assert "does not answer after several attempts" in refused(remote)
