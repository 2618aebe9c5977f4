#!/usr/bin/env python3
"""`regatta rules` knows every rule, its settings' defaults are accepted as they are printed, and docs/rules.md has a line for each.

usage: rules_test.py REGATTA DOCS
"""
import json
import pathlib
import subprocess
import sys

regatta, docs = sys.argv[1], pathlib.Path(sys.argv[2]) / "rules.md"


def run(*arguments):
    return subprocess.run([regatta, *arguments], capture_output=True, text=True, timeout=60)


rules = json.loads(run("rules", "--json").stdout)["rules"]
names = [rule["name"] for rule in rules]
assert names[:3] == ["reg", "adamw", "muon"] and len(set(names)) == len(names), names
views = {rule["name"]: rule["view"] for rule in rules}
assert views["reg"] == "rows of wide matrices, columns of tall ones", views
assert (views["adamw"], views["muon"], views["adamuon"]) == ("elements", "the whole matrix", "the whole matrix, then rows"), views
table = docs.read_text()
help_text = run("plan", "--help").stdout
for rule in rules:
    assert f"| `{rule['name']}` |" in table, f"{docs.name} has no line for {rule['name']}"
    assert rule["source"] and rule["confidence"] and rule["summary"] and rule["states"], rule
    assert rule["name"] in help_text
    settings = [part for s in rule["settings"] for part in ("--set", f"{rule['name']}.{s['name']}={s['default']}")]
    done = run("plan", "--shape", "w=8x4", "--rule", rule["name"], *settings)
    assert done.returncode == 0, done.stderr
    shown = run("rules", rule["name"]).stdout
    assert shown.startswith(rule["name"] + "\n") and "sees" in shown and all(s["name"] in shown for s in rule["states"])
# What each keeps, and per what; the text says the same as the document.
PER = {"element": 8 * 12, "row": 8, "column": 12, "matrix": 1}
EXTRA = {"normuon": {"row_moment": "row"}, "trasmuon": {"row_moment": "row", "energy_reference": "matrix", "damped": "column"},
         "namo": {"gradient_moment": "matrix"}, "namo_d": {"gradient_moment": "column"}, "adamuon": {"second_moment": "element"}}
for rule in rules:
    keeps = {state["name"]: state["per"] for state in rule["states"]}
    expected = {"moment1": "element", "moment2": "element"} if rule["name"] == "adamw" else {"momentum": "element", **EXTRA.get(rule["name"], {})}
    assert keeps == expected, (rule["name"], keeps)
    planned = json.loads(run("plan", "--json", "--shape", "w=8x12", "--rule", rule["name"]).stdout)
    assert planned["ranks"][0]["memory_bytes"]["state"] == 4 * sum(PER[per] for per in keeps.values()), rule["name"]
    lines = dict(line.strip().split(None, 1) for line in run("rules", rule["name"]).stdout.splitlines()[2:] if line.strip())
    assert lines["sees"] == rule["view"] and lines["source"] == rule["source"] and lines["confidence"] == rule["confidence"], lines
    assert lines["keeps"] == ", ".join(f"{name} (per {per})" for name, per in keeps.items()), lines
    assert lines["settings"] == " ".join(f"{s['name']}={s['default']}" for s in rule["settings"]), lines
    assert run("rules", rule["name"]).stdout.splitlines()[1].strip() == rule["summary"]
two = json.loads(run("rules", "muon", "reg", "--json").stdout)["rules"]
assert [rule["name"] for rule in two] == ["muon", "reg"]
assert run("rules").stdout == "".join(run("rules", name).stdout for name in names)
wrong = run("rules", "mion")
assert wrong.returncode == 2 and 'there is no rule "mion"; expected one of reg, adamw' in wrong.stderr, wrong.stderr
# A preset gives layers their rules; --assign comes after it.
placed = {p["name"]: p["rule"] for p in json.loads(run(
    "plan", "--json", "--preset", "symmetric", "--assign", "*o_proj*=reg", *[part for name in (
        "model.embed_tokens.weight", "lm_head.weight", "l.self_attn.q_proj.weight", "l.self_attn.o_proj.weight",
        "l.mlp.gate_proj.weight") for part in ("--shape", f"{name}=8x8")]).stdout)["params"]}
assert [rule for rule in placed.values()] == ["row_norm", "centred_row_norm", "muon", "reg", "row_norm"], placed
assert run("plan", "--shape", "w=4x4", "--preset", "symetric").returncode == 2
print(f"{len(rules)} rules")
