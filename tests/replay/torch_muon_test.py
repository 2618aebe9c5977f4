#!/usr/bin/env python3
"""`regatta replay --rule muon --set variant=torch` beside torch.optim.Muon on the same gradients. Both iterate in bf16 with other
products and roundings, so they agree to bf16's level. Exits with 77 when this Python has no torch with that optimizer.

usage: torch_muon_test.py REGATTA
"""
import os
import random
import subprocess
import sys
import tempfile

import safetensors_lite

try:
    import torch

    Muon = torch.optim.Muon
except (ImportError, AttributeError):
    print("skipped: this Python has no torch.optim.Muon; REGATTA_TORCH_PYTHON names one that has (torch 2.9 or later)")
    sys.exit(77)

LR, STEPS = 0.02, 4
SHAPES = {"wide": (24, 80), "tall": (72, 40), "square": (48, 48)}
CLOSE = 0.05  # of the change of the weights, as a norm


def main():
    dice = random.Random(3)
    draw = lambda shape, scales: [dice.gauss(0, 1) * scales[i // shape[1]] for i in range(shape[0] * shape[1])]
    tensors = {}
    for name, shape in SHAPES.items():
        scales = [10 ** dice.uniform(-2, 0) for _ in range(shape[0])]
        tensors["param." + name] = (shape, draw(shape, [1.0] * shape[0]))
        for k in range(STEPS):
            tensors[f"grad.{k}.{name}"] = (shape, draw(shape, scales))
    with tempfile.TemporaryDirectory() as folder:
        case = os.path.join(folder, "case.safetensors")
        safetensors_lite.write(case, tensors)
        worst = {}
        for precision, scale, theirs in (("bf16", "original", "original"), ("bf16", "match_rms", "match_rms_adamw"),
                                         ("fp32", "original", "original")):
            out = os.path.join(folder, "out.safetensors")
            subprocess.run([sys.argv[1], "replay", "--in", case, "--out", out, "--rule", "muon", "--set", "variant=torch", "--set",
                            f"precision={precision}", "--set", f"scale={scale}", "--set", f"lr={LR}", "--mesh", "dp=2"], check=True,
                           stdout=subprocess.DEVNULL)
            ours = safetensors_lite.read(out)[0]
            for name, shape in SHAPES.items():
                start = torch.tensor(tensors["param." + name][1]).reshape(shape)
                weight = start.clone().requires_grad_()
                optimizer = Muon([weight], lr=LR, adjust_lr_fn=theirs)  # weight decay 0.1, Nesterov, as ours
                for k in range(STEPS):
                    weight.grad = torch.tensor(tensors[f"grad.{k}.{name}"][1]).reshape(shape)
                    optimizer.step()
                mine = torch.tensor(safetensors_lite.floats(ours["param." + name][1])).reshape(shape)
                off = float((mine - weight.detach()).norm() / (weight.detach() - start).norm())
                worst[f"{precision} {scale}"] = max(off, worst.get(f"{precision} {scale}", 0))
                if off > CLOSE:
                    sys.exit(f"FAILED {name}, {precision}, {scale}: {off:.3f} of the change off, allowed {CLOSE}")
    print(f"torch {torch.__version__}: " + ", ".join(f"{k} within {v:.4f}" for k, v in worst.items()) + " of the change")


if __name__ == "__main__":
    main()
