#!/usr/bin/env python3
"""torch.optim.AdamW(fused=True) and torch.optim.Muon on the matrices of bench/gpu_step.cpp, in turns with a copy on the device, by
the device's own clock. Prints one JSON object.

usage: python3 bench/gpu_torch.py --model 1b|7b|wide|tall [--rounds 11]
"""
import argparse
import json
import statistics

import torch


def layers_of(hidden, kv, inner, layers):
    return [(hidden, hidden), (kv, hidden), (kv, hidden), (hidden, hidden), (inner, hidden), (inner, hidden), (hidden, inner)] * layers


MODELS = {
    "1b": layers_of(2048, 512, 8192, 16),
    "7b": layers_of(4096, 4096, 11008, 4),
    "wide": [(4096, 16384)],
    "tall": [(16384, 4096)],
}


def seconds(actions, rounds, repetitions):
    """The median over rounds of each action's mean time; all in turns, two rounds warm up."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times = [[] for _ in actions]
    for round_index in range(-2, rounds):
        for action, kept in zip(actions, times):
            start.record()
            for _ in range(repetitions):
                action()
            stop.record()
            stop.synchronize()
            if round_index >= 0:
                kept.append(start.elapsed_time(stop) * 1e-3 / repetitions)
    return [statistics.median(kept) for kept in times]


def parameters(shapes):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda") * 0.02) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="1b")
    parser.add_argument("--rounds", type=int, default=11)
    args = parser.parse_args()
    shapes = MODELS[args.model]
    elements = sum(rows * cols for rows, cols in shapes)
    result = {"torch": torch.__version__, "device": torch.cuda.get_device_name(), "model": args.model, "elements": elements}

    size = min(elements, 1 << 29)
    source, target = torch.randn(size, device="cuda"), torch.empty(size, device="cuda")
    params = parameters(shapes)
    adamw = torch.optim.AdamW(params, lr=1e-6, fused=True)
    copy, fused = seconds([lambda: target.copy_(source), adamw.step], args.rounds, repetitions=5)
    result["copy_gb_per_s"] = 8 * size / copy * 1e-9
    result["adamw_fused"] = {"ms": fused * 1e3, "gb_per_s": 28 * elements / fused * 1e-9}
    del source, target
    del adamw
    if hasattr(torch.optim, "Muon"):
        muon = torch.optim.Muon(params, lr=1e-6)
        result["muon"] = {"ms": seconds([muon.step], max(3, args.rounds // 4), repetitions=1)[0] * 1e3}
    else:
        result["muon"] = None
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
