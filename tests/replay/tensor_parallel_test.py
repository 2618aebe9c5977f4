#!/usr/bin/env python3
"""`regatta replay` on dp x tp: every tensor of the result, parameters and state, has the bytes of one rank.

usage: tensor_parallel_test.py REGATTA DPxTP [--mpirun MPIRUN]

Without --mpirun a mesh meets the full product of
    placement of the matrices: rows over tp (tp:0), columns (tp:1), mixed by parameter (also replicated)
    mode: zero1, zero2, sharded with dp:0, dp:1, dp:rows, dp:flat inside tp
    norm p in 1, 2, inf, with 1, 2 and 3 passes; and p=2 clipped, p=1 with 2 passes clipped
and where chunks end, bucket size and threads go round along the way. With --mpirun, mode by mode (sharded: dp:0 and dp:flat), the
placements, norms and passes go round instead: each mode meets every placement, and each norm and number of passes occurs on
every mesh.

One case holds all shapes: wide, tall, square, uneven extents, extents below tp (some shards are empty), one row, one column,
fused query-key-value blocks cut block by block and across their edges, stacked experts, dead rows, replicated matrices and
vectors, vectors in shards. Beside the bytes, each run must report the gradient norm of one rank to the last bit (replicas
counted once: it is also checked against the plain formula), and byte counts as planned.
"""
import concurrent.futures
import itertools
import json
import math
import os
import random
import subprocess
import sys
import tempfile

import safetensors_lite

STEPS = 2
# m_*: matrices placed as the run says; f_rows: fused, cut across its blocks' edges; r_*: replicated over tp; v_*: AdamW vectors.
SHAPES = {
    "m_wide": (6, 17), "m_tall": (19, 5), "m_square": (8, 8), "m_uneven": (7, 11), "m_few_rows": (3, 24),
    "m_few_columns": (24, 3), "m_row": (1, 13), "m_column": (11, 1), "m_one": (1, 1), "m_fused": (12, 7), "f_rows": (12, 7),
    "m_experts": (3, 5, 4), "m_adamw": (9, 6), "r_matrix": (5, 6), "r_tall": (9, 4), "v_replicated": (11,), "v_shards": (13,),
    "v_short": (2,),
}
# Rows whose gradients are all zero.
DEAD = {"m_wide": (2,), "m_tall": (0, 7), "m_fused": (6,), "f_rows": (5, 6), "m_experts": (4,), "r_matrix": (1,)}
BLOCKS = ["--blocks", "m_fused=6,3,3", "--blocks", "f_rows=6,3,3", "--blocks", "m_experts=5,5,5"]
RULES = ["--rule", "reg", "--assign", "v_*=adamw", "--assign", "m_adamw=adamw", "--set", "lr=0.02"]
PLACEMENTS = {
    "tp:0": {"m_*": "tp:0"},
    "tp:1": {"m_*": "tp:1"},
    "mixed": {"m_*": "tp:0", "m_tall": "tp:1", "m_few_rows": "tp:1", "m_fused": "tp:1", "m_row": "", "m_square": "tp:rows",
              "m_experts": "tp:rows"},
}
MODES = [("zero1", ""), ("zero2", ""), ("sharded", "dp:0"), ("sharded", "dp:1"), ("sharded", "dp:rows"), ("sharded", "dp:flat")]
NORMS = [(p, t, []) for p in ("1", "2", "inf") for t in (1, 2, 3)] + [("2", 1, ["--clip", "0.7"]), ("1", 2, ["--clip", "0.7"])]
CUTS = [["--cut", c, "--bucket-bytes", str(b), "--threads", str(t)]
        for c, b, t in (("row", 1 << 20, 1), ("element", 500, 1), ("matrix", 1, 1), ("element", 1 << 20, 2), ("row", 1, 1))]


def make_case(path):
    dice = random.Random(7)
    tensors = {}
    for name, shape in SHAPES.items():
        numel, columns = math.prod(shape), shape[-1]
        tensors["param." + name] = (shape, [dice.gauss(0, 1) for _ in range(numel)])
        scales = [0.0 if i in DEAD.get(name, ()) else 10 ** dice.uniform(-4, 0) for i in range(numel // columns)]
        for k in range(STEPS):
            values = [dice.gauss(0, 1) * scales[i // columns] for i in range(numel)]
            tensors[f"grad.{k}.{name}"] = (shape, values)
    safetensors_lite.write(path, tensors)
    # The norm of the last step's gradients as they were rounded to fp32, each parameter once.
    recorded = safetensors_lite.read(path)[0]
    squares = [v * v for name in SHAPES for v in safetensors_lite.floats(recorded[f"grad.{STEPS - 1}.{name}"][1])]
    return math.sqrt(math.fsum(squares))


def place_flags(placement, inside):
    """By parameter: over tp as `placement` says, over dp as `inside`."""
    places = {"r_*": "", **PLACEMENTS[placement], "f_rows": "tp:rows", "v_replicated": "", "v_shards": "tp:0", "v_short": "tp:0"}
    if inside == "dp:rows" and placement == "tp:0":
        places["m_experts"] = "tp:1"  # once each expert is cut by rows, the first dim is no longer there to cut
    flags = []
    for name, over_tp in places.items():  # the last match wins
        over_dp = "dp:0" if inside == "dp:1" and name.startswith("v_") else inside  # vectors have no dim 1
        flags += ["--place", name + "=" + ",".join(cut for cut in (over_tp, over_dp) if cut)]
    return flags


class Program:
    def __init__(self, regatta, mpirun, folder):
        self.regatta, self.mpirun, self.folder = regatta, mpirun, folder
        self.case = os.path.join(folder, "case.safetensors")
        self.norm = make_case(self.case)

    def replay(self, number, flags, mpi_ranks=0):
        out = os.path.join(self.folder, f"out{number}.safetensors")
        command = [self.regatta, "replay", "--in", self.case, "--out", out, "--json", *RULES, *BLOCKS, *flags]
        environment = dict(os.environ, OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1",
                           OMPI_MCA_rmaps_base_oversubscribe="1")
        if mpi_ranks:
            command = [self.mpirun, "-n", str(mpi_ranks), *command, "--transport", "mpi"]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        if done.returncode != 0:
            raise SystemExit(f"FAILED ({done.returncode}): {' '.join(command)}\n{done.stderr}")
        result = safetensors_lite.read(out)
        os.remove(out)
        return result, json.loads(done.stdout)


def check(name, whole, sharded):
    (tensors, metadata), report = whole
    (others, other_metadata), other_report = sharded
    if tensors.keys() != others.keys() or metadata != other_metadata:
        raise SystemExit(f"FAILED {name}: tensors or metadata differ: {sorted(tensors.keys() ^ others.keys())}")
    for tensor, (shape, blob) in tensors.items():
        if others[tensor] != (shape, blob):
            raise SystemExit(f"FAILED {name}: {tensor} has other bytes than on one rank")
    for key in ("grad_norm", "clip_factor"):  # printed so that equal text means equal bits
        if other_report[key] != report[key]:
            raise SystemExit(f"FAILED {name}: {key} is {other_report[key]!r}, on one rank {report[key]!r}")
    if not other_report["bytes_as_planned"]:
        raise SystemExit(f"FAILED {name}: bytes counted are not those planned")


def check_whole(name, program, whole, clip):
    (tensors, _), report = whole
    expected = {"param." + n for n in SHAPES}
    expected |= {f"state.{s}.{n}" for n in SHAPES
                 for s in (("moment1", "moment2") if n.startswith("v_") or n == "m_adamw" else ("momentum",))}
    if tensors.keys() != expected:
        raise SystemExit(f"FAILED {name}: tensors are {sorted(tensors)}")
    if abs(report["grad_norm"] / program.norm - 1) > 1e-11:
        raise SystemExit(f"FAILED {name}: gradient norm {report['grad_norm']!r}, by the formula {program.norm!r}")
    if (report["clip_factor"] < 1) != clip:
        raise SystemExit(f"FAILED {name}: clip factor {report['clip_factor']}")


def layouts(over_mpi):
    """(norm, placement, mode, inside) of every run."""
    if not over_mpi:
        return [(n, placement, *mode) for n, placement, mode in itertools.product(range(len(NORMS)), PLACEMENTS, MODES)]
    runs, norm = [], 0
    for mode in [MODES[0], MODES[1], MODES[2], MODES[5]]:
        for placement in PLACEMENTS:
            runs.append((norm % len(NORMS), placement, *mode))
            norm += 1
    return runs


def main():
    regatta, mesh = sys.argv[1:3]
    mpirun = sys.argv[4] if len(sys.argv) > 4 else None
    dp, tp = map(int, mesh.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        program = Program(regatta, mpirun, folder)
        wholes = []
        for number, (p, passes, clip) in enumerate(NORMS):
            flags = ["--set", f"p={p}", "--set", f"passes={passes}", *clip]
            wholes.append((flags, program.replay(f"whole{number}", [*flags, "--mesh", "dp=1,tp=1"])))
            check_whole(" ".join(flags), program, wholes[-1][1], bool(clip))
        if len({whole[0][0]["param.m_tall"][1] for _, whole in wholes}) != len(wholes):
            raise SystemExit("FAILED: two rule settings give the same result, so comparing them proves little")

        def run(numbered):
            number, (norm, placement, mode, inside) = numbered
            flags, whole = wholes[norm]
            layout = ["--mesh", f"dp={dp},tp={tp}", "--mode", mode, *place_flags(placement, inside),
                      *CUTS[number % len(CUTS)]]
            check(" ".join([*flags, *layout]), whole, program.replay(number, [*flags, *layout], dp * tp if mpirun else 0))

        runs = layouts(mpirun)
        with concurrent.futures.ThreadPoolExecutor(1 if mpirun else 2) as pool:
            for _ in pool.map(run, enumerate(runs)):
                pass
    print(f"mesh {mesh}: {len(runs)} layouts{' (mpi)' if mpirun else ''} have the bytes and the gradient norm of one rank")


if __name__ == "__main__":
    main()
