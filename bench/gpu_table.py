#!/usr/bin/env python3
"""The tables of bench/results/gpu.md from the JSON that bench/gpu collected.

usage: gpu_table.py FOLDER MODEL...
"""
import json
import os
import sys

folder, models = sys.argv[1], sys.argv[2:]


def load(name):
    path = os.path.join(folder, name + ".json")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


print("Sweeps over all matrices of a model, fp32, medians. `wide` is 4096 x 16384, `tall` its transpose (64 Mi elements); 1b has the 112")
print("matrices of 16 layers, 7b those of 4 of its 32 layers. The ceiling is a copy on the device in the same run.\n")
print("| model | step | ms | GB/s | of the copy | bytes/element |")
print("|---|---|---|---|---|---|")
goals = []
for model in models:
    ours = load("ours_" + model)
    if ours is None:
        print(f"| {model} | | failed | | | |")
        continue
    for rule in ("reg", "adamw"):
        r = ours[rule]
        print(f"| {model} | {rule} | {r['ms']:.3f} | {r['gb_per_s']:.0f} | {r['of_copy']:.3f} | {r['bytes_per_element']:.1f} |")
        goals.append((f"{rule} on {model} at 0.90 of the copy", r["of_copy"], 0.90))
print("\n| model | torch AdamW(fused) ms | torch Muon ms | REG over AdamW(fused) | REG over Muon | copy GB/s, ours / torch |")
print("|---|---|---|---|---|---|")
for model in models:
    ours, torch = load("ours_" + model), load("torch_" + model)
    if ours is None or torch is None:
        print(f"| {model} | failed | | | | |")
        continue
    fused, muon = torch["adamw_fused"]["ms"], (torch["muon"] or {}).get("ms")
    over_fused, over_muon = fused / ours["reg"]["ms"], muon / ours["reg"]["ms"] if muon else None
    print(f"| {model} | {fused:.3f} | {f'{muon:.1f}' if muon else 'none in this torch'} | {over_fused:.2f} | "
          f"{f'{over_muon:.1f}' if over_muon else '-'} | {ours['copy_gb_per_s']:.0f} / {torch['copy_gb_per_s']:.0f} |")
    if model == "1b":
        goals.append(("REG over torch's fused AdamW on 1b, 1.25", over_fused, 1.25))
        if over_muon:
            goals.append(("REG over torch's Muon on 1b, 10", over_muon, 10))
print("\nWhole engine steps (one rank): gradients copied in, figures, vote, sweep, health.\n")
print("| model | rule | add_grad ms | step ms |")
print("|---|---|---|---|")
for model in models:
    ours = load("ours_" + model)
    for rule, e in ((ours or {}).get("engine") or {}).items():
        print(f"| {model} | {rule} | {e['add_grad_ms']:.2f} | {e['step_ms']:.2f} |")
print("\n| goal | measured | met |")
print("|---|---|---|")
for name, value, least in goals:
    print(f"| {name} | {value:.3f} | {'yes' if value >= least else 'no'} |")
