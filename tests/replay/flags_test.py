#!/usr/bin/env python3
"""`regatta replay` as a user calls it: which steps, which learning rate, what the document and the table say, what is refused.

usage: flags_test.py REGATTA
"""
import array
import json
import math
import os
import random
import subprocess
import sys
import tempfile

import safetensors_lite as files

REGATTA = sys.argv[1]
SHAPES = {"a.up": (4, 6), "a.down": (6, 4), "b.gain": (1, 5)}
NUMEL = sum(m * n for m, n in SHAPES.values())
STEPS = 3


def run(folder, *flags, code=0, case="case", out="out"):
    path = os.path.join(folder, out + ".safetensors")
    done = subprocess.run([REGATTA, "replay", "--in", os.path.join(folder, case + ".safetensors"), "--out", path, *map(str, flags)],
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == code, (flags, done.returncode, done.stderr)
    if code:
        assert done.stderr.startswith("regatta replay: ") and done.stderr.count("\n") == 1 and not done.stdout, done.stderr
        return done.stderr
    assert not done.stderr, done.stderr
    return files.read(path), done.stdout


def tensors(folder, *flags, **more):
    return run(folder, *flags, **more)[0][0]


def make(folder):
    dice = random.Random(5)
    case = {}
    for name, (m, n) in SHAPES.items():
        case["param." + name] = ((m, n), [dice.gauss(0, 1) for _ in range(m * n)])
        for k in range(STEPS):
            case[f"grad.{k}.{name}"] = ((m, n), [dice.gauss(0, 1) for _ in range(m * n)])
    files.write(os.path.join(folder, "case.safetensors"), case)
    return case


with tempfile.TemporaryDirectory() as folder:
    case = make(folder)
    # Steps: none, some, all; the number made is in the file, and a run goes on from it to the bits of one that never ended.
    (nothing, metadata), _ = run(folder, "--steps", 0, "--rule", "adamw")
    assert metadata["step"] == "0"
    for name in SHAPES:
        assert files.floats(nothing["param." + name][1]) == list(array.array("f", case["param." + name][1]))
        assert not any(nothing[f"state.{s}.{name}"][1].strip(b"\0") for s in ("moment1", "moment2"))
    whole = tensors(folder, "--rule", "adamw")
    assert whole == tensors(folder, "--rule", "adamw", "--steps", STEPS)
    (first, metadata), _ = run(folder, "--rule", "adamw", "--steps", 2)
    assert metadata["step"] == "2" and first.keys() == whole.keys()
    assert sorted(whole) == sorted([f"param.{n}" for n in SHAPES] + [f"state.{s}.{n}" for s in ("moment1", "moment2") for n in SHAPES])
    rest = {name: (shape, files.floats(blob)) for name, (shape, blob) in first.items()}
    rest.update({f"grad.0.{name}": case[f"grad.2.{name}"] for name in SHAPES})
    files.write(os.path.join(folder, "rest.safetensors"), rest, {"step": "2"})
    (second, metadata), _ = run(folder, "--rule", "adamw", "--mesh", "dp=2", case="rest")
    assert metadata["step"] == "3" and second == whole
    assert "--steps is 4, but" in run(folder, "--steps", 4, code=2)
    assert "--steps" in run(folder, "--steps", -1, code=2)

    # Learning rates: by flag, by setting, by rule.
    assert tensors(folder, "--lr", 0.5) == tensors(folder, "--set", "lr=0.5") == tensors(folder, "--lr", 0.1, "--set", "lr=0.5")
    assert tensors(folder, "--lr", 0.5) != tensors(folder) == tensors(folder, "--lr", 0.001)
    assert tensors(folder, "--lr", 0.25, "--set", "reg.lr=0.5") == tensors(folder, "--lr", 0.5)
    # Rules by name.
    mixed = tensors(folder, "--assign", "*=adamw", "--assign", "a.*=row_norm", "--lr", 0.5)
    adamw = tensors(folder, "--rule", "adamw", "--lr", 0.5)
    assert mixed["param.b.gain"] == adamw["param.b.gain"] and mixed["param.a.up"] != adamw["param.a.up"]
    assert mixed["param.a.up"] == tensors(folder, "--rule", "row_norm", "--lr", 0.5)["param.a.up"]
    # Placements by name: the last match counts; all give the bits of one rank.
    one = tensors(folder, "--set", "passes=2")
    for places in (["*=tp:0"], ["*=tp:1"], ["*=tp:0", "a.*=tp:1"], ["*.up=tp:1", "*.down="], ["*="]):
        layout = [part for place in places for part in ("--place", place)]
        for mesh in ("tp=2", "dp=2,tp=3"):
            assert one == tensors(folder, "--set", "passes=2", "--mesh", mesh, *layout), (mesh, places)
    for mode in ("zero2", "sharded"):
        for cut in ("element", "row", "matrix"):
            assert one == tensors(folder, "--set", "passes=2", "--mesh", "dp=3", "--mode", mode, "--cut", cut, "--bucket-bytes", 9)
    # Blocks are matrices of their own.
    blocks = tensors(folder, "--blocks", "a.down=2,4")
    assert blocks["param.a.down"] != tensors(folder)["param.a.down"] and blocks["param.a.up"] == tensors(folder)["param.a.up"]

    # The document, field by field.
    norm = math.sqrt(math.fsum(v * v for name in SHAPES for v in case[f"grad.2.{name}"][1]))
    _, said = run(folder, "--json", "--mesh", "dp=2,tp=2", "--place", "a.*=tp:0", "--mode", "zero2", "--cut", "element", "--clip", 2)
    document = json.loads(said)
    for key, value in {"out": os.path.join(folder, "out.safetensors"), "step": 3, "mesh": "dp=2,tp=2", "mode": "zero2", "cut": "element",
                       "transport": "local", "device": "cpu", "world_size": 4, "tensors": 6, "bytes_as_planned": True}.items():
        assert document[key] == value, (key, document[key])
    assert abs(document["grad_norm"] - norm) < 1e-6 * norm and abs(document["clip_factor"] - 2 / norm) < 1e-6
    planned = json.loads(subprocess.run([REGATTA, "plan", "--json", *[p for n, (m, k) in SHAPES.items() for p in ("--shape", f"{n}={m}x{k}")],
                                         "--mesh", "dp=2,tp=2", "--place", "a.*=tp:0", "--mode", "zero2", "--cut", "element", "--assign", "*=reg"],
                                        capture_output=True, text=True, check=True).stdout)
    # plan lists parameters as they come, replay by name.
    assert document["wire_bytes_planned"] == document["wire_bytes_counted"] and set(document["wire_bytes_planned"]) == {
        "reduce_scatter", "all_gather", "exchange", "vote"}
    for key in ("reduce_scatter", "all_gather"):
        assert document["wire_bytes_planned"][key] == planned["ranks"][0]["wire_bytes"][key], key
    single = json.loads(run(folder, "--json")[1])
    assert single["state_bytes"] == 4 * NUMEL and single["world_size"] == 1 and single["clip_factor"] == 1
    assert set(single["wire_bytes_counted"].values()) == {0}
    assert json.loads(run(folder, "--json", "--rule", "adamw")[1])["state_bytes"] == 8 * NUMEL
    assert json.loads(run(folder, "--json", "--momentum-dtype", "bf16")[1])["state_bytes"] == 2 * NUMEL
    # The table has the document's numbers.
    _, text = run(folder, "--mesh", "dp=2,tp=2", "--place", "a.*=tp:0", "--mode", "zero2", "--cut", "element", "--steps", 2)
    lines = text.splitlines()
    assert lines[0] == f"2 steps on mesh dp=2,tp=2 (zero2, cut element, local): 6 tensors in {document['out']}", lines[0]
    for line, key in zip(lines[2:6], ("reduce_scatter", "all_gather", "exchange", "vote")):
        name = {"exchange": "line exchange"}.get(key, key.replace("_", "-"))
        assert line.split() == [*name.split(), str(document["wire_bytes_planned"][key]), str(document["wire_bytes_counted"][key])], line
    assert lines[-1] == "(rank 0, one step)"

    # What cannot be written to is found before the work; nothing is left.
    for out in ("nowhere/out", "case.safetensors/out"):
        assert "is no folder this user can write to" in run(folder, code=2, out=out)
    for flags, words in ((["--deadline", 0], "--deadline is 0"), (["--deadline", -1], "--deadline is"), (["--mesh", "dp=0"], "dp"),
                         (["--place", "c=tp:0"], "no parameter has a name like that"), (["--transport", "pigeon"], "pigeon"),
                         (["--place", "*=tp:0"], "tp"), (["--set", "rhoo=1"], "rhoo"), (["--blocks", "a.up=3"], "a.up"),
                         (["--device", "tpu"], "tpu"), (["--cut", "rows"], "--cut"), (["--mode", "zero3"], "--mode")):
        assert words in run(folder, *flags, code=2, out="refused"), flags
    assert not os.path.exists(os.path.join(folder, "refused.safetensors"))
print("replays are as asked for")
