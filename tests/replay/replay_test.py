#!/usr/bin/env python3
"""Runs `regatta replay` as a user would: any mesh gives the same bytes, and they are those of the formulas.

usage: replay_test.py REGATTA [--mpirun MPIRUN]
"""
import os
import random
import subprocess
import sys
import tempfile

import formulas
import safetensors_lite

LR = 0.02
STEPS = 3
SHAPES = {"wide": (6, 17), "tall": (19, 5), "square": (8, 8), "row": (1, 13), "column": (11, 1), "fused": (12, 7)}
CLOSE = 2e-6


def rows_of(values, shape):
    return [values[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]


def make_case(path, seed):
    """Gradients whose rows differ in scale by up to 10^4, some of them dead."""
    dice = random.Random(seed)
    tensors = {}
    for name, (m, n) in SHAPES.items():
        scales = [0.0 if dice.random() < 0.15 else 10 ** dice.uniform(-4, 0) for _ in range(m)]
        tensors["param." + name] = ((m, n), [dice.gauss(0, 1) for _ in range(m * n)])
        for k in range(STEPS):
            tensors[f"grad.{k}.{name}"] = ((m, n), [dice.gauss(0, 1) * scales[i // n] for i in range(m * n)])
    safetensors_lite.write(path, tensors)


class Program:
    def __init__(self, regatta, mpirun, folder):
        self.regatta, self.mpirun, self.folder, self.count = regatta, mpirun, folder, 0

    def replay(self, case, flags, mpi_ranks=0):
        self.count += 1
        out = os.path.join(self.folder, f"out{self.count}.safetensors")
        command = [self.regatta, "replay", "--in", case, "--out", out, "--set", f"lr={LR}", *flags]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_rmaps_base_oversubscribe="1")
        if mpi_ranks:
            command = [self.mpirun, "-n", str(mpi_ranks), *command, "--transport", "mpi"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        if done.returncode != 0:
            sys.exit(f"FAILED ({done.returncode}): {' '.join(command)}\n{done.stderr}")
        return safetensors_lite.read(out)[0]


def check_same(name, whole, sharded):
    if whole.keys() != sharded.keys():
        sys.exit(f"FAILED {name}: tensors differ: {sorted(whole.keys() ^ sharded.keys())}")
    for tensor, (_, blob) in whole.items():
        if sharded[tensor][1] != blob:
            sys.exit(f"FAILED {name}: {tensor} has other bytes")


def check_close(name, values, expected):
    """Relative to the element, or to the tensor's largest element where terms cancel."""
    flat = [v for row in expected for v in row]
    largest = max(abs(v) for v in flat) or 1.0
    worst = max(abs(v - e) / max(abs(e), 0.05 * largest) for v, e in zip(values, flat))
    if worst > CLOSE:
        sys.exit(f"FAILED {name}: relative error {worst:.2e}, allowed {CLOSE:.0e}")
    return worst


def check_formulas(name, case, result, rule, p="2", passes=1):
    tensors = {key: (shape, safetensors_lite.floats(blob)) for key, (shape, blob) in safetensors_lite.read(case)[0].items()}
    worst = 0.0
    for param, shape in SHAPES.items():
        weight = rows_of(tensors["param." + param][1], shape)
        grads = [rows_of(tensors[f"grad.{k}.{param}"][1], shape) for k in range(STEPS)]
        if rule == "reg":
            weight, *states = formulas.reg(weight, grads, LR, p=p, passes=passes)
            names = ["momentum"]
        else:
            weight, *states = formulas.adamw(weight, grads, LR)
            names = ["moment1", "moment2"]
        for key, expected in [("param." + param, weight), *((f"state.{s}.{param}", v) for s, v in zip(names, states))]:
            worst = max(worst, check_close(f"{name}: {key}", safetensors_lite.floats(result[key][1]), expected))
    return worst


def main():
    regatta = sys.argv[1]
    mpirun = sys.argv[3] if len(sys.argv) > 3 else None
    configurations = [("reg", ["--set", f"p={p}", "--set", f"passes={t}"], p, t) for p in ("1", "2", "inf") for t in (1, 2, 3)]
    configurations.append(("adamw", [], "2", 1))
    layouts = [
        "--mesh dp=2", "--mesh dp=3 --cut element", "--mesh dp=4 --mode zero2", "--mesh dp=5 --cut matrix --bucket-bytes 100",
        "--mesh dp=7 --cut element --mode zero2 --bucket-bytes 300 --threads 2", "--mesh dp=3 --mode sharded",
        "--mesh dp=2 --mode sharded --place *=dp:1", "--mesh dp=5 --mode sharded --place *=dp:flat --threads 3",
        "--mesh dp=2,tp=2 --place *=tp:1", "--mesh dp=3,tp=2 --place *=tp:0 --cut element", "--threads 4",
    ]
    with tempfile.TemporaryDirectory() as folder:
        program = Program(regatta, mpirun, folder)
        for seed, (rule, settings, p, passes) in enumerate(configurations):
            name = " ".join([rule, *settings])
            case = os.path.join(folder, f"case{seed}.safetensors")
            make_case(case, seed)
            flags = ["--rule", rule, *settings]
            whole = program.replay(case, flags)
            if mpirun:
                # Three or four ranks as processes, another layout for each configuration.
                ranks = 2 + seed % 3
                mode = ["--mode", ("zero1", "zero2", "sharded")[seed % 3]]
                cut = ["--cut", ("element", "row", "matrix")[(seed // 3) % 3]]
                layout = [*flags, "--mesh", f"dp={ranks}", *mode, *cut]
                check_same(f"{name} mpi {layout}", whole, program.replay(case, layout, ranks))
                continue
            worst = check_formulas(name, case, whole, rule, p, passes)
            chosen = [layouts[(seed * 5 + i) % len(layouts)] for i in range(5)]  # every layout meets several rules
            for layout in chosen:
                check_same(f"{name} on {layout}", whole, program.replay(case, [*flags, *layout.split()]))
            fused = program.replay(case, [*flags, "--blocks", "fused=6,3,3"])
            check_same(f"{name} in blocks", fused,
                       program.replay(case, [*flags, "--blocks", "fused=6,3,3", "--mesh", "dp=3,tp=2", "--place", "*=tp:0"]))
            print(f"{name}: {len(chosen)} layouts equal, worst relative error {worst:.1e}", flush=True)
    print("all equal" + (" (mpi)" if mpirun else ""))


if __name__ == "__main__":
    main()
