#!/usr/bin/env python3
"""The tables of bench/results/gpu.md from the JSON that bench/gpu collected; all of it goes into one file as well.

usage: gpu_table.py FOLDER JSON MODEL...
"""
import json
import os
import sys

folder, together, models = sys.argv[1], sys.argv[2], sys.argv[3:]


def load(name):
    path = os.path.join(folder, name + ".json")
    if not os.path.exists(path):
        return None
    with open(path) as file:
        return json.load(file)


measured = {name: load(name) for name in [f"{whose}_{model}" for model in models for whose in ("ours", "torch")] + ["exchange"]}
with open(together, "w") as file:
    json.dump(measured, file, indent=2)
    file.write("\n")

print("Sweeps over all matrices of a model, fp32, medians. `wide` is 4096 x 16384, `tall` its transpose (64 Mi elements); 1b has the 112")
print("matrices of 16 layers, 7b those of 4 of its 32 layers. The ceiling is a copy on the device, timed in turns with the sweeps; least and most of the rounds are")
print("beside the median.\n")
print("| model | step | ms | least to most | GB/s | of the copy | bytes/element |")
print("|---|---|---|---|---|---|---|")
goals = []
for model in models:
    ours = measured["ours_" + model]
    if ours is None:
        print(f"| {model} | | failed | | | | |")
        goals.append((f"reg and adamw on {model} at 0.90 of the copy", float("nan"), 0.90))
        continue
    for rule in ("reg", "adamw"):
        r = ours[rule]
        print(f"| {model} | {rule} | {r['ms']:.3f} | {r['least_ms']:.3f} to {r['most_ms']:.3f} | {r['gb_per_s']:.0f} | {r['of_copy']:.3f} | {r['bytes_per_element']:.1f} |")
        goals.append((f"{rule} on {model} at 0.90 of the copy", r["of_copy"], 0.90))
print("\n| model | torch AdamW(fused) ms | torch Muon ms | REG over AdamW(fused) | REG over Muon | copy GB/s, ours / torch |")
print("|---|---|---|---|---|---|")
for model in models:
    ours, torch = measured["ours_" + model], measured["torch_" + model]
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
print("\nWhole engine steps (one rank): gradients copied in, figures, vote, sweep, health; launched one by one or as a CUDA graph.\n")
print("| model | rule | add_grad ms | step ms |")
print("|---|---|---|---|")
for model in models:
    ours = measured["ours_" + model]
    for rule, e in ((ours or {}).get("engine") or {}).items():
        print(f"| {model} | {rule} | {e['add_grad_ms']:.2f} | {e['step_ms']:.2f} |")
print("\nOne matrix of 134217728 elements, its rows cut over two ranks that share this device as threads and exchange through the host:")
print("what the columns that both hold parts of add to a step of rows that are nobody else's. Payload of one rank.\n")
print("| matrix | exchanged bytes | step ms | of which waiting for the exchange |")
print("|---|---|---|---|")
for step in (measured["exchange"] or {}).get("steps", []):
    print(f"| {step['rows']} x {step['cols']} | {step['exchange_bytes']} | {step['step_ms']:.3f} | {step['wait_exchange_ms']:.3f} |")
if measured["exchange"] is None:
    print("| failed | | | |")
print("\n| goal | measured | met |")
print("|---|---|---|")
for name, value, least in goals:
    print(f"| {name} | {value:.3f} | {'yes' if value >= least else 'no'} |")
