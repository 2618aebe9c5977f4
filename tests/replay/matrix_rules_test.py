#!/usr/bin/env python3
"""Rules that see whole matrices, and the line rules of their family, by `regatta replay`: the formulas in float64, the same
bytes on every layout, and the statistics of whole rows and columns where gradients' scales differ.

usage: matrix_rules_test.py REGATTA [--mpirun MPIRUN]

One process serves all rules: tensors are named RULE.SHAPE and assigned by name.
"""
import math
import os
import random
import subprocess
import sys
import tempfile

import matrix_formulas
import safetensors_lite

LR = 0.02
STEPS = 3
SHAPES = {"wide": (6, 17), "tall": (19, 5), "square": (8, 8), "row": (1, 9), "column": (9, 1), "zero": (5, 7)}
RULES = ["muon", "normuon", "adamuon", "trasmuon", "namo", "namo_d", "row_norm", "column_norm", "centred_row_norm"]
LINE_RULES = {"row_norm", "column_norm", "centred_row_norm"}
# Sets of settings; each also passed to the formulas.
CONFIGURATIONS = {
    "defaults": {},
    "other forms": {"muon": {"variant": "keller_jordan"}, "normuon": {"scale": "code"}, "trasmuon": {"damping": "smooth"},
                    "namo": {"form": "paper"}, "namo_d": {"form": "paper"},
                    "row_norm": {"guard": "clamp"}, "centred_row_norm": {"guard": "clamp"}},
    "quintic, torch": {"muon": {"variant": "torch", "coefficients": "quintic"}, "normuon": {"coefficients": "polar_express"},
                       "namo": {"steps": 3}},
}
# fp32 throughout: of an element, or of the tensor's largest where terms cancel. The iteration's slope at zero, 3.4445 a step,
# is what an fp32 rounding of its input may grow by.
CLOSE = 2e-6
# A bf16 number has 8 bits; five steps of three products each let small singular values drift by some of them.
CLOSE_BF16 = 0.06


def make_case(path, seed, scale_rows=4):
    """Gradients whose rows differ in scale by up to 10^scale_rows; some rows are dead, one matrix is zero."""
    dice = random.Random(seed)
    tensors = {}
    for rule in RULES:
        for name, (m, n) in SHAPES.items():
            scales = [0.0 if name == "zero" or dice.random() < 0.1 else 10 ** dice.uniform(-scale_rows, 0) for _ in range(m)]
            tensors[f"param.{rule}.{name}"] = ((m, n), [dice.gauss(0, 1) for _ in range(m * n)])
            for k in range(STEPS):
                tensors[f"grad.{k}.{rule}.{name}"] = ((m, n), [dice.gauss(0, 1) * scales[i // n] for i in range(m * n)])
    safetensors_lite.write(path, tensors)


def rows_of(values, shape):
    return [values[i * shape[1] : (i + 1) * shape[1]] for i in range(shape[0])]


class Program:
    def __init__(self, regatta, mpirun, folder):
        self.regatta, self.mpirun, self.folder, self.count = regatta, mpirun, folder, 0

    def replay(self, case, settings, flags=(), mpi_ranks=0):
        self.count += 1
        out = os.path.join(self.folder, f"out{self.count}.safetensors")
        command = [self.regatta, "replay", "--in", case, "--out", out, "--json", "--set", f"lr={LR}", *flags]
        for rule in RULES:
            command += ["--assign", f"{rule}.*={rule}"]
            for name, value in settings.get(rule, {}).items():
                command += ["--set", f"{rule}.{name}={value}"]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_rmaps_base_oversubscribe="1")
        if mpi_ranks:
            command = [self.mpirun, "-n", str(mpi_ranks), *command, "--transport", "mpi"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        if done.returncode != 0:
            sys.exit(f"FAILED ({done.returncode}): {' '.join(command)}\n{done.stderr}")
        return safetensors_lite.read(out)[0]


def with_precision(settings, precision):
    return {rule: {**settings.get(rule, {}), **({} if rule in LINE_RULES else {"precision": precision})} for rule in RULES}


def worst_error(values, expected):
    flat = [v for row in expected for v in row]
    largest = max(abs(v) for v in flat) or 1.0
    return max(abs(v - e) / max(abs(e), 0.05 * largest) for v, e in zip(values, flat))


def check_formulas(case, result, settings, bf16):
    """Weights and states; for bf16 the change of the weights, relative to its largest element."""
    tensors = {key: safetensors_lite.floats(blob) for key, (_, blob) in safetensors_lite.read(case)[0].items()}
    worst = 0.0
    for rule in RULES:
        for name, shape in SHAPES.items():
            key = f"{rule}.{name}"
            start = rows_of(tensors["param." + key], shape)
            grads = [rows_of(tensors[f"grad.{k}.{key}"], shape) for k in range(STEPS)]
            weight, states = getattr(matrix_formulas, rule)(start, grads, LR, **settings.get(rule, {}))
            if bf16:
                change = max(abs(a - b) for ra, rb in zip(weight, start) for a, b in zip(ra, rb)) or 1.0
                got = rows_of(safetensors_lite.floats(result["param." + key][1]), shape)
                error = max(abs(a - b) for ra, rb in zip(weight, got) for a, b in zip(ra, rb)) / change
                allowed = CLOSE_BF16
            else:
                error, allowed = worst_error(safetensors_lite.floats(result["param." + key][1]), weight), CLOSE
                for state, values in states.items():
                    if result[f"state.{state}.{key}"][0] != [len(values), len(values[0])]:
                        sys.exit(f"FAILED {key}: state {state} has shape {result[f'state.{state}.{key}'][0]}")
                    of_state = worst_error(safetensors_lite.floats(result[f"state.{state}.{key}"][1]), values)
                    if of_state > CLOSE:
                        sys.exit(f"FAILED {key}: state {state} is off by {of_state:.1e}")
                    worst = max(worst, of_state)
            if error > allowed:
                sys.exit(f"FAILED {key}: off by {error:.1e}, allowed {allowed:.0e}")
            worst = max(worst, error)
    return worst


def check_same(name, whole, sharded):
    if whole.keys() != sharded.keys():
        sys.exit(f"FAILED {name}: tensors differ: {sorted(whole.keys() ^ sharded.keys())}")
    for tensor, (shape, blob) in whole.items():
        if sharded[tensor] != (shape, blob):
            sys.exit(f"FAILED {name}: {tensor} has other bytes")


def difference(a, b, start):
    """Of two results, relative to how far the second went from the start."""
    far = math.sqrt(sum((x - s) ** 2 for rx, rs in zip(b, start) for x, s in zip(rx, rs)))
    return math.sqrt(sum((x - y) ** 2 for rx, ry in zip(a, b) for x, y in zip(rx, ry))) / far


def check_scaled_rows(program, folder):
    """The failures of peers: statistics per shard. Rows differ in scale by 10^4 from the first to the last, some are dead, and the
    matrix lies in shards of rows and of columns. A step made with statistics per shard is far off; ours is the whole one's."""
    m, n, ranks = 24, 8, 4
    dice = random.Random(11)
    tensors = {}
    for rule in ("normuon", "adamuon"):
        tensors[f"param.{rule}.scaled"] = ((m, n), [dice.gauss(0, 1) for _ in range(m * n)])
        for k in range(STEPS):
            # AdaMuon takes signs, so only dead elements tell its rows and columns apart.
            live = lambda i, j: 10 ** (-4 * i / m) if rule == "normuon" else float(i < 14 and (j < 4 or i < 5))
            tensors[f"grad.{k}.{rule}.scaled"] = ((m, n), [dice.gauss(0, 1) * live(i, j) for i in range(m) for j in range(n)])
    case = os.path.join(folder, "scaled.safetensors")
    safetensors_lite.write(case, tensors)
    inputs = {name: rows_of(safetensors_lite.floats(blob), shape)
              for name, (shape, blob) in safetensors_lite.read(case)[0].items()}
    settings = {"normuon": {"scale": "code", "precision": "fp32"}, "adamuon": {"precision": "fp32"}}
    rules, RULES[:] = RULES[:], ["normuon", "adamuon"]
    results = {dim: program.replay(case, settings, ["--mesh", f"dp={ranks}", "--mode", "sharded", "--place", f"*=dp:{dim}"])
               for dim in (0, 1)}
    RULES[:] = rules
    for rule, form in (("normuon", {"scale": "code"}), ("adamuon", {})):
        start, grads = inputs[f"param.{rule}.scaled"], [inputs[f"grad.{k}.{rule}.scaled"] for k in range(STEPS)]
        whole, _ = getattr(matrix_formulas, rule)(start, grads, LR, **form)
        for dim in (0, 1):
            per_shard = getattr(matrix_formulas, rule + "_per_shard")(start, grads, LR, ranks, dim == 1)
            wrong = difference(per_shard, whole, start)
            ours = difference(rows_of(safetensors_lite.floats(results[dim][f"param.{rule}.scaled"][1]), (m, n)), whole, start)
            print(f"{rule}, shards of {'columns' if dim else 'rows'}: per-shard statistics would be {wrong:.2f} off, "
                  f"ours {ours:.1e}")
            if wrong < 0.3:
                sys.exit(f"FAILED: the case does not tell per-shard statistics of {rule} from whole ones")
            if ours > 1e-4:
                sys.exit(f"FAILED: {rule} in shards is {ours:.1e} off")


LAYOUTS = [
    "--mesh dp=2", "--mesh dp=3 --cut element --bucket-bytes 700", "--mesh dp=4 --mode zero2 --threads 2",
    "--mesh dp=4 --cut matrix --bucket-bytes 500", "--mesh dp=3 --mode sharded", "--mesh dp=3 --mode sharded --place *=dp:rows",
    "--mesh dp=2 --mode sharded --place *=dp:1",
    "--mesh dp=4 --mode sharded --place *=dp:flat", "--mesh dp=2,tp=2", "--mesh dp=2,tp=2 --place *=tp:0 --cut element",
    "--mesh dp=2,tp=2 --place *=tp:1 --bucket-bytes 300", "--mesh dp=2,tp=2 --mode sharded --place *=tp:1,dp:0",
    "--mesh dp=2,tp=2 --mode sharded --place *=tp:0,dp:flat", "--threads 3",
]


def main():
    regatta = sys.argv[1]
    mpirun = sys.argv[3] if len(sys.argv) > 3 else None
    with tempfile.TemporaryDirectory() as folder:
        program = Program(regatta, mpirun, folder)
        case = os.path.join(folder, "case.safetensors")
        if mpirun:
            make_case(case, 7)
            whole = program.replay(case, {})
            for layout, ranks in ((LAYOUTS[1], 3), (LAYOUTS[9], 4), (LAYOUTS[4], 3)):
                check_same(f"mpi {layout}", whole, program.replay(case, {}, layout.split(), ranks))
            print("the same bytes as one rank, as processes")
            return
        check_scaled_rows(program, folder)
        for seed, (name, settings) in enumerate(CONFIGURATIONS.items()):
            make_case(case, seed)
            fp32 = with_precision(settings, "fp32")
            plain = {rule: {k: v for k, v in of.items()} for rule, of in settings.items()}
            worst = check_formulas(case, program.replay(case, fp32), plain, False)
            whole = program.replay(case, settings)
            worst_bf16 = check_formulas(case, whole, plain, True)
            chosen = [layout for i, layout in enumerate(LAYOUTS) if seed == 0 or i % 3 == seed]
            for layout in chosen:
                check_same(f"{name} on {layout}", whole, program.replay(case, settings, layout.split()))
            print(f"{name}: fp32 within {worst:.1e}, bf16 within {worst_bf16:.1e} of the change; {len(chosen)} layouts equal",
                  flush=True)


if __name__ == "__main__":
    main()
