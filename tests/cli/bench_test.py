#!/usr/bin/env python3
"""`regatta bench` on a matrix of a few kilobytes: its figures fit one another, whatever the machine's speed.

usage: bench_test.py REGATTA
"""
import json
import subprocess
import sys

REGATTA = sys.argv[1]
BYTES = {"reg_wide": 20, "reg_tall": 24, "reg_split": 24, "adamw": 28}


def run(*flags, code=0):
    done = subprocess.run([REGATTA, "bench", *map(str, flags)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, (flags, done.returncode, done.stderr)
    return done.stderr if code else done.stdout


def near(a, b):
    return abs(a - b) <= 1e-9 * abs(b)


# A square's worth of elements, rounded down to k x 4 k with k a multiple of 16.
for asked, got in ((1024, 1024), (4095, 1024), (4096, 4096), (9216, 9216), (9215, 4096)):
    document = json.loads(run("--elements", asked, "--rounds", 2, "--threads", "2,1,2", "--json"))
    assert [(row["name"], row["threads"]) for row in document["rows"]] == [(name, t) for t in (1, 2) for name in BYTES], document
    assert set(document["ceiling_gb_per_s"]) == set(document["adamw_over_reg_wide"]) == {"1", "2"}
    for row in document["rows"]:
        assert row["elements"] == got, (asked, row)
        assert row["ns_per_element"] > 0 and near(row["gb_per_s"], BYTES[row["name"]] / row["ns_per_element"]), row
        assert near(row["fraction"], row["gb_per_s"] / document["ceiling_gb_per_s"][str(row["threads"])]), row
    for t in ("1", "2"):
        ns = {row["name"]: row["ns_per_element"] for row in document["rows"] if str(row["threads"]) == t}
        assert near(document["adamw_over_reg_wide"][t], ns["adamw"] / ns["reg_wide"])
text = run("--elements", 9216, "--rounds", 1, "--threads", 1)
assert text.startswith("9216 fp32 elements (48 x 192 and transposed), kernels for ") and "medians of 1 rounds" in text, text
assert "\n1 thread: ceiling " in text and "times as fast as adamw" in text
for flags, words in ((["--elements", 1023], "--elements is 1023; expected at least 1024"), (["--rounds", 0], "--rounds is 0; expected at least 1"),
                     (["--threads", "1,0"], "--threads has 0; expected 1 to 4096"), (["--threads", 4097], "--threads has 4097")):
    assert words in run(*flags, code=2), flags
print("bench adds up")
