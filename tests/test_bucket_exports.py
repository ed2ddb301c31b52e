"""Exports from and to a bucket: equal to local ones, complete when their last object is there."""

import json

import pytest
from helpers_adapters import write_adapter
from helpers_llava import write_llava, write_original, write_run
from safetensors.numpy import load_file, save_file
from test_convert_checks import put_another_model, record

from seva_jax.config import Checkpoint, PriorRun
from seva_jax.convert import __main__ as command
from seva_jax.convert import files
from seva_jax.convert.table import hub
from seva_jax.runtime import copies
from seva_jax.runtime.store_client import StoreError
from seva_jax.runtime.stores import StorePath, is_remote, make_folder
from seva_jax.types import DataError


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "model").mkdir()
    directory = write_llava(tmp_path / "model")
    (directory / "tokenizer.json").write_text("{}")
    (directory / "notes").mkdir()
    (directory / "notes" / "more.txt").write_text("stays behind")
    return directory


def export(monkeypatch, *argv):
    monkeypatch.setattr("sys.argv", ["convert", *map(str, argv)])
    command.main()


def contents(directory):
    """Returns the content of every file below a local or remote directory."""
    if is_remote(directory):
        return {name: (directory / name).read_bytes() for name in directory.below()}
    paths = [p for p in directory.rglob("*") if p.is_file()]
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in paths}


def equal(remote, local, *moved):
    """Asserts that two exports are equal, but for paths in them, which are given as pairs."""
    ours, expected = contents(remote), contents(local)
    assert ours.keys() == expected.keys()
    for name, data in expected.items():
        for before, after in moved:
            data = data.replace(str(before).encode(), str(after).encode())
        assert ours[name] == data, name


@pytest.fixture
def uploads(monkeypatch):
    """Returns the names of the objects that are written, in order."""
    order, upload = [], StorePath.upload

    def noting(self, source):
        upload(self, source)
        order.append(str(self))

    monkeypatch.setattr(StorePath, "upload", noting)
    return order


def test_a_checkpoint(checkpoint, tmp_path, bucket, uploads, monkeypatch, capsys):
    """From the disk, and from the bucket, to the bucket and to the disk."""
    copies.upload(checkpoint, bucket / "model")
    export(monkeypatch, "to-hf", checkpoint, tmp_path / "out")
    uploads.clear()
    export(monkeypatch, "to-hf", checkpoint, bucket / "a")
    assert f"{bucket / 'a'}: 0 of" in capsys.readouterr().out
    assert uploads[-1] == str(bucket / "a" / "config.json")
    export(monkeypatch, "to-hf", bucket / "model", bucket / "b")
    export(monkeypatch, "to-hf", bucket / "model", tmp_path / "c")
    for out in (bucket / "a", bucket / "b", tmp_path / "c"):
        equal(out, tmp_path / "out")


def test_a_change_of_layout(checkpoint, tmp_path, bucket, monkeypatch):
    """The tower, whose path LLaVA's config.json holds, is in the bucket as well."""
    (checkpoint / "tokenizer.json").unlink()
    original = write_original(tmp_path / "llava", tmp_path / "clip")
    copies.upload(original, bucket / "llava")
    copies.upload(tmp_path / "clip", bucket / "clip")
    export(monkeypatch, "to-hf", original, tmp_path / "hf", "--vision-tower", tmp_path / "clip")
    export(monkeypatch, "to-hf", bucket / "llava", bucket / "hf", "--vision-tower", bucket / "clip")
    equal(bucket / "hf", tmp_path / "hf")
    for source, out in ((tmp_path / "hf", tmp_path), (bucket / "hf", bucket)):
        (source / "tokenizer.model").write_bytes(b"not read")
        export(monkeypatch, "to-llava", source, out / "llava-out")
    equal(bucket / "llava-out", tmp_path / "llava-out", (tmp_path, bucket))
    fields = json.loads((bucket / "llava-out" / "config.json").read_text())
    assert fields["mm_vision_tower"] == str(bucket / "llava-out" / "vision_tower")
    export(monkeypatch, "to-llava", bucket / "llava-out", bucket / "llava-again")
    equal(
        bucket / "llava-again",
        tmp_path / "llava-out",
        (tmp_path / "llava-out", bucket / "llava-again"),
    )


def test_from_bin(checkpoint, tmp_path, bucket, uploads, monkeypatch):
    torch = pytest.importorskip("torch")
    (checkpoint / "model.safetensors").unlink()
    torch.save({"a": torch.arange(6.0).reshape(2, 3)}, checkpoint / "pytorch_model.bin")
    copies.upload(checkpoint, bucket / "model")
    export(monkeypatch, "from-bin", checkpoint, tmp_path / "out")
    export(monkeypatch, "from-bin", bucket / "model", bucket / "out")
    assert uploads[-1] == str(bucket / "out" / "config.json")
    equal(bucket / "out", tmp_path / "out")


def test_a_run_on_a_base_in_a_bucket(checkpoint, tmp_path, bucket, uploads, monkeypatch):
    write_run(tmp_path / "run", checkpoint, facts=record(checkpoint))
    copies.upload(checkpoint, bucket / "model")
    config = tmp_path / "run" / "config.py"
    for kind, last in (("to-hf", "config.json"), ("to-peft", "adapter_config.json")):
        export(monkeypatch, kind, tmp_path / "run", tmp_path / kind)
        before = config.read_text()
        config.write_text(before.replace(str(checkpoint), str(bucket / "model")))
        export(monkeypatch, kind, tmp_path / "run", bucket / kind)
        config.write_text(before)
        assert uploads[-1] == str(bucket / kind / last)
        equal(bucket / kind, tmp_path / kind, (checkpoint, bucket / "model"))


def test_adapters_for_the_original_llava(tmp_path, bucket, monkeypatch):
    pytest.importorskip("torch")
    original = write_original(tmp_path / "llava", tmp_path / "clip")
    (original / "tokenizer.model").write_bytes(b"not read")
    copies.upload(original, bucket / "llava")
    copies.upload(tmp_path / "clip", bucket / "clip")
    for top in (tmp_path, bucket):
        run = tmp_path / ("run" if top == tmp_path else "run-2")
        tower = str(top / "clip")
        write_run(run, top / "llava", vision_tower=tower)
        export(monkeypatch, "to-llava-lora", run, top / "llava-lora")
    equal(bucket / "llava-lora", tmp_path / "llava-lora", (tmp_path, bucket))


def test_the_base_is_the_one_that_was_trained_on(checkpoint, tmp_path, bucket, monkeypatch):
    """Its fingerprint is that of its weights: the same for files on a disk and objects."""
    copies.upload(checkpoint, bucket / "model")
    write_run(tmp_path / "run", bucket / "model", facts=record(checkpoint))
    export(monkeypatch, "to-hf", tmp_path / "run", tmp_path / "out")
    put_another_model(checkpoint)
    copies.upload(checkpoint, bucket / "model")
    with pytest.raises(SystemExit, match="holds other weights than when"):
        export(monkeypatch, "to-hf", tmp_path / "run", tmp_path / "again")


@pytest.mark.parametrize("merge", [True, False])
def test_runs_in_a_bucket(checkpoint, tmp_path, bucket, monkeypatch, merge):
    """A run that continues another one, on a base with an adapter, all of them in the bucket."""
    write_adapter(tmp_path / "adapter")
    copies.upload(checkpoint, bucket / "model")
    copies.upload(tmp_path / "adapter", bucket / "adapter")
    for place in (tmp_path / "disk", bucket / "runs"):
        make_folder(place)
        top = bucket if is_remote(place) else tmp_path
        base = Checkpoint(str(top / "model"), adapter=str(top / "adapter"))
        # Facts name no weights, for the tests above compare them.
        write_run(place / "first", checkpoint, base=base, seed=1)
        (place / "first" / "stages.json").write_text('{"align": {"fingerprint": "x"}}')
        write_run(place / "second", checkpoint, base=PriorRun(str(place / "first"), merge), seed=2)
        export(monkeypatch, "to-hf", place / "second", place / "out")
    equal(bucket / "runs" / "out", tmp_path / "disk" / "out")


# --- refusals ---


def test_a_place_that_is_taken(checkpoint, bucket, monkeypatch):
    export(monkeypatch, "to-hf", checkpoint, bucket / "out")
    with pytest.raises(SystemExit, match=r"/out exists and is not empty; give another"):
        export(monkeypatch, "to-hf", checkpoint, bucket / "out")
    (bucket / "out" / "config.json").unlink()
    with pytest.raises(SystemExit, match="part of an export that was cut off"):
        export(monkeypatch, "to-hf", checkpoint, bucket / "out")


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_upload_that_is_cut_off_is_not_complete(checkpoint, bucket, monkeypatch, after):
    """What it leaves cannot be taken for an export, because config.json comes last."""
    count, upload = [], StorePath.upload

    def failing(self, source):
        count.append(self)
        if len(count) > after:
            raise StoreError(f"{self}: the store does not answer")
        upload(self, source)

    monkeypatch.setattr(StorePath, "upload", failing)
    with pytest.raises(SystemExit, match="the store does not answer"):
        export(monkeypatch, "to-hf", checkpoint, bucket / "out")
    assert len((bucket / "out").below()) == after
    assert not (bucket / "out" / "config.json").exists()


def test_a_failure_uploads_nothing(bucket):
    def write():
        with files.new_directory(bucket / "out", 10) as scratch:
            (scratch / "config.json").write_text("{}")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert not (bucket / "out").exists()


def test_a_disk_without_the_space(bucket):
    with (
        pytest.raises(DataError, match=r"are to be written; free some space, or set TMPDIR"),
        files.new_directory(bucket / "out", 2**60),
    ):
        pass


def test_a_base_that_changes_during_an_export(checkpoint, tmp_path, bucket, monkeypatch):
    weights = checkpoint / "model.safetensors"
    save_file({hub(name): x for name, x in load_file(weights).items()}, weights)
    copies.upload(checkpoint, bucket / "model")
    path = bucket / "model" / "model.safetensors"
    data, download = path.read_bytes(), StorePath.download

    def changing(self, target):
        download(self, target)
        if self.name == path.name:
            path.write_bytes(data[:-8] + bytes(8))

    monkeypatch.setattr(StorePath, "download", changing)
    with pytest.raises(SystemExit, match="was replaced or removed while it was read"):
        export(monkeypatch, "to-hf", bucket / "model", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("bucket")  # the emulator, where no such bucket is
def test_no_bucket_in_one_line(checkpoint, monkeypatch):
    with pytest.raises(SystemExit, match="there is no bucket no-such-bucket"):
        export(monkeypatch, "to-hf", checkpoint, "gs://no-such-bucket/out")
    with pytest.raises(SystemExit, match="is not a directory"):
        export(monkeypatch, "to-hf", "gs://no-such-bucket/model", "out")
