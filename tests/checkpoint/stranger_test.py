"""A reader of checkpoints that knows docs/checkpoint_format.md and nothing of Regatta's code: stranger_test.py REGATTA

Checksums, weights and state of one job, saved by one rank and by four, are read and must be the same bytes.
"""
import ctypes
import ctypes.util
import json
import os
import pathlib
import struct
import subprocess
import sys
import tempfile

REGATTA = sys.argv[1]
os.environ["OMP_NUM_THREADS"] = "1"

library = ctypes.CDLL(ctypes.util.find_library("xxhash") or "libxxhash.so.0")
library.XXH3_64bits.restype = ctypes.c_uint64
library.XXH3_64bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def checksum(data):
    return f"{library.XXH3_64bits(data, len(data)):016x}"


def read_manifest(folder):
    text = (folder / "manifest.json").read_bytes()
    manifest = json.loads(text)
    assert manifest["format"] == 1
    assert list(manifest)[-1] == "checksum"
    end = text.rindex(b',\n "checksum"')
    assert checksum(text[:end]) == manifest["checksum"]
    assert text[end:] == b',\n "checksum": "%s"\n}\n' % manifest["checksum"].encode()
    assert {entry["name"] for entry in manifest["files"]} | {"manifest.json"} == {path.name for path in folder.iterdir()}
    for entry in manifest["files"]:
        data, piece = (folder / entry["name"]).read_bytes(), manifest["piece_bytes"]
        assert len(data) == entry["bytes"]
        assert [checksum(data[at:at + piece]) for at in range(0, len(data), piece)] == entry["xxh3_64"], entry["name"]
    return manifest


def read_safetensors(path):
    data = path.read_bytes()
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], data[8 + length + begin:8 + length + end])
    return tensors, metadata


def read_weights(folder):
    whole = {}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        mapped = json.loads(index.read_text())["weight_map"]
        for name in set(mapped.values()):
            tensors, _ = read_safetensors(folder / name)
            assert set(tensors) == {tensor for tensor, file in mapped.items() if file == name}
            whole.update(tensors)
    else:
        whole, _ = read_safetensors(folder / "model.safetensors")
    return whole


def read_state(folder, step):
    """Whole blocks by parameter, state and block, and how many elements of each were given."""
    whole, given = {}, {}
    for path in folder.glob("state-*.safetensors"):
        tensors, metadata = read_safetensors(path)
        assert metadata["format"] == "regatta.state.1" and metadata["step"] == str(step)
        parts = json.loads(metadata["parts"])
        assert {part["tensor"] for part in parts} == set(tensors)
        for part in parts:
            dtype, shape, data = tensors[part["tensor"]]
            assert part["tensor"] == f"{part['state']}/{part['param']}/{part['block']}"
            size = {"F32": 4, "BF16": 2, "F16": 2}[dtype]
            rows, cols = part["block_shape"]
            key = (part["param"], part["state"], part["block"])
            block = whole.setdefault(key, bytearray(rows * cols * size))
            begin, end = part["run"]
            assert shape == [end - begin] and len(data) == (end - begin) * size
            width = part["cols"][1] - part["cols"][0]
            for i in range(end - begin):
                row = part["rows"][0] + (begin + i) // width
                column = part["cols"][0] + (begin + i) % width
                at = (row * cols + column) * size
                block[at:at + size] = data[i * size:(i + 1) * size]
            given[key] = given.get(key, 0) + end - begin
    for key, count in given.items():
        assert count * (4 if len(whole[key]) == count * 4 else 2) == len(whole[key]), f"{key} is not covered once"
    return whole


def main():
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        (work / "text.txt").write_text("".join(f"{i} steamed {i * 7919 % 1009} miles; " for i in range(400)))
        found = {}
        for ranks in (1, 4):
            out = work / f"on{ranks}"
            done = subprocess.run([REGATTA, "finetune", "--init", "random", "--hidden", "32", "--layers", "1", "--heads", "2", "--data",
                                   work / "text.txt", "--seq", "16", "--steps", "2", "--micro-batch", "1", "--global-batch", "4", "--accumulation",
                                   "tree", "--rule", "reg", "--lr", "0.01", "--cut", "element", "--mesh", f"dp={ranks}", "--checkpoint-every", "2",
                                   "--out", out], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            folder = out / "checkpoints" / (out / "checkpoints/latest").read_text().strip()
            manifest = read_manifest(folder)
            assert manifest["step"] == 2 and manifest["job"]["mesh"] == f"dp={ranks}" and manifest["job"]["tokens"] == 2 * 4 * 16
            assert len(list(folder.glob("state-*"))) == ranks
            assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32
            found[ranks] = (read_weights(folder), read_state(folder, 2))
        assert found[1] == found[4]
        assert found[1][1], "no state was found"
        final, _ = read_safetensors(work / "on4/model.safetensors")
        assert final == found[4][0]
        print(f"{len(final)} weights and {len(found[4][1])} states, the same from one file and from four")


main()
