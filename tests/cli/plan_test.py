#!/usr/bin/env python3
"""`regatta plan` as a user calls it: numbers counted by hand, a decoder's placements, refusals, and a large mesh in time.

usage: plan_test.py REGATTA
"""
import json
import os
import resource
import subprocess
import sys
import tempfile

LLAMA = {"model_type": "llama", "vocab_size": 101, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "tie_word_embeddings": False}
LLAMA_7B = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "tie_word_embeddings": False}
regatta = sys.argv[1]


def run(*flags):
    return subprocess.run([regatta, "plan", *flags], capture_output=True, text=True, timeout=600)


def plan(*flags):
    done = run(*flags, "--json")
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout)


def check_refused(sentence, *flags):
    done = run(*flags)
    assert done.returncode == 2 and not done.stdout, (done.returncode, done.stdout)
    assert sentence in done.stderr and done.stderr.count("\n") == 1, done.stderr


def model(folder, config):
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(config, file)
    return folder


def check_by_hand():
    """Two matrices of 32 elements and a vector of 6 on 2 x 2 ranks, a bucket each, fp32.

    up is tall and lies on all four ranks, 8 elements each: its 4 columns are open, a rank owns one, sends 3 x 24 bytes of sums and
    3 x 4 of norms. wide lies on all four, too; a row is shared by two tp ranks, a rank owns one of its two: 24 + 4 bytes.
    """
    shapes = ["--shape", "up=8x4", "--shape", "wide=4x8", "--shape", "gain=6", "--place", "up=tp:0", "--place", "wide=tp:1",
              "--mesh", "dp=2,tp=2", "--bucket-bytes", "1"]
    report = plan(*shapes)
    params = {p["name"]: p for p in report["params"]}
    assert [(params[n]["placement"], params[n]["view"], params[n]["closed_lines"], params[n]["open_lines"])
            for n in ("up", "wide", "gain")] == [("tp:0", "columns", 0, 4), ("tp:1", "rows", 0, 4), ("", "elements", 0, 0)]
    chosen, adamw, muon = report["comparison"]
    assert (chosen["optimizer"], adamw["optimizer"], muon["optimizer"]) == \
        ("reg + adamw (this plan)", "adamw", "muon for the matrices")

    wire = [r["wire_bytes"] for r in report["ranks"]]
    for rank in range(4):  # half of each rank's 16 + 16 + 6 elements travels either way
        assert (wire[rank]["reduce_scatter"], wire[rank]["all_gather"]) == (76, 76), wire
    assert chosen["exchange_by_rank"] == [3 * 24 + 3 * 4 + 24 + 4] * 4
    # Flags, two or (on tp rank 0, where the replicated vector counts) three parameters and their figures, and on rank 0 the
    # room for a command; to three others.
    assert [w["vote"] for w in wire] == [3 * (16 + n * (32 + 48) + c) for n, c in ((3, 64), (2, 0), (3, 0), (2, 0))]
    assert adamw["exchange_by_rank"] == [0] * 4
    assert adamw["most"]["wire_bytes"]["vote"] == 3 * (16 + 3 * (32 + 48) + 64)
    # Ranks 0 and 1 own a matrix each: they return three pieces of 8 elements and send one of the other's; the rest send two.
    # In bf16.
    assert muon["exchange_by_rank"] == [2 * (3 * 8 + 8), 2 * (3 * 8 + 8), 2 * 2 * 8, 2 * 2 * 8]
    assert muon["sum"]["wire_bytes"]["exchange"] == 2 * 2 * 3 * 16  # 2 (k-1)/k N elements of 2 bytes, twice
    for other in (adamw, muon):
        for key in ("reduce_scatter", "all_gather"):
            assert other["most"]["wire_bytes"][key] == 76

    memory = [a["most"]["memory_bytes"] for a in (chosen, adamw, muon)]
    assert [m["parameters"] for m in memory] == [38 * 4] * 3
    assert [m["state"] for m in memory] == [4 * 16 + 8 * 3, 8 * 16 + 8 * 3, 4 * 16 + 8 * 3]
    # An owner: a piece of the other matrix on its way, its own whole, three pieces on their way back, two of its own; and fp32
    # room for the matrix, its copy, and two of its short side squared.
    owner = 16 + 64 + 48 + 32 + 4 * (32 + 32 + 2 * 16)
    assert [m["whole_matrices"] for m in memory] == [0, 0, owner]
    assert muon["sum"]["memory_bytes"]["whole_matrices"] == 2 * owner + 2 * (2 * 16 + 2 * 16)
    for m in memory:
        assert m["total"] == sum(v for k, v in m.items() if k != "total")

    names = [c["name"] for c in report["collectives"]]
    assert names == ["reduce-scatter of gradients", "vote: finite gradients, norms", "open lines to their owners",
                     "their norms back", "all-gather of parameters", "health figures"], names
    assert [c["calls"] for c in report["collectives"]] == [3, 1, 1, 1, 3, 1]
    assert sum(c["bytes"]["sum"] for c in report["collectives"]) == sum(w["total"] for w in wire)
    assert [c["open_lines"] for c in report["collectives"]] == [0, 0, 8, 8, 0, 0]

    own = plan(*shapes, "--rule", "muon")
    assert [a["optimizer"] for a in own["comparison"]] == ["muon + adamw (this plan)", "adamw", "reg for the matrices"]
    assert own["comparison"][0]["exchange_by_rank"] == muon["exchange_by_rank"]
    assert own["comparison"][2]["exchange_by_rank"] == chosen["exchange_by_rank"]
    assert [c["name"] for c in own["collectives"]][2:4] == ["directions to matrix owners", "their updates back"]
    assert sum(c["bytes"]["sum"] for c in own["collectives"]) == sum(r["wire_bytes"]["total"] for r in own["ranks"])
    whole = plan(*shapes, "--rule", "muon", "--set", "precision=fp32")["comparison"][0]
    assert whole["exchange_by_rank"] == [128, 128, 64, 64]
    whole = plan("--shape", "a=8x4", "--shape", "b=8x4", "--mesh", "dp=2", "--cut", "matrix")["comparison"]
    assert [a["exchange_by_rank"] for a in whole] == [[0, 0]] * 3
    # A replicated matrix is gathered in each replica by itself.
    replicas = plan("--shape", "a=8x4", "--mesh", "dp=2,tp=2")["comparison"][2]
    assert replicas["exchange_by_rank"] == [32] * 4
    assert len(plan("--shape", "a=8x4", "--rule", "adamw")["comparison"]) == 1
    three = plan("--shape", "a=8x4", "--mesh", "dp=2", "--set", "passes=3")
    assert [c["name"] for c in three["collectives"]][2:8:2] == [f"open lines to their owners, round {k}" for k in (1, 3)] + \
        ["all-gather of parameters"], three["collectives"]
    assert (three["params"][0]["closed_lines"], three["params"][0]["open_lines"]) == (8, 8)  # rows stay whole, columns twice


def check_decoder(folder):
    path = model(folder, LLAMA)

    def placements(*flags):
        return {p["name"].removeprefix("model.layers.1."): p["placement"] for p in plan("--model", path, *flags)["params"]}

    placed = placements("--mesh", "dp=2,tp=2")
    for name in ("q", "k", "v"):
        assert placed[f"self_attn.{name}_proj.weight"] == placed[f"self_attn.{name}_proj.bias"] == "tp:0"
    assert (placed["self_attn.o_proj.weight"], placed["self_attn.o_proj.bias"]) == ("tp:1", "")
    assert (placed["mlp.gate_proj.weight"], placed["mlp.up_proj.weight"], placed["mlp.down_proj.weight"]) == \
        ("tp:0", "tp:0", "tp:1")
    assert (placed["model.embed_tokens.weight"], placed["lm_head.weight"]) == ("tp:0", "tp:0")  # 101 rows: uneven
    assert placed["input_layernorm.weight"] == placed["model.norm.weight"] == ""
    fewer = placements("--mesh", "tp=4")
    assert fewer["self_attn.k_proj.weight"] == fewer["self_attn.v_proj.bias"] == "" and \
        fewer["self_attn.q_proj.weight"] == "tp:0"
    assert set(placements("--mesh", "dp=4").values()) == {""}
    assert placements("--mesh", "dp=2,tp=2", "--mode", "sharded")["mlp.up_proj.weight"] == "tp:0,dp:0"
    own = placements("--mesh", "tp=2", "--place", "*up_proj*=tp:1", "--place", "*gate_proj*=")
    assert (own["mlp.up_proj.weight"], own["mlp.gate_proj.weight"], own["mlp.down_proj.weight"]) == ("tp:1", "", "tp:1")
    assert plan("--model", os.path.join(path, "config.json"))["mesh"] == "dp=1"

    check_refused("the model's 4 attention heads cannot be cut evenly 3 ways over tp", "--model", path, "--mesh", "tp=3")
    model(folder, dict(LLAMA, num_attention_heads=8, head_dim=4, intermediate_size=28))
    check_refused("the model's intermediate size 28 cannot be cut evenly 8 ways", "--model", path, "--mesh", "tp=8")
    model(folder, dict(LLAMA, num_attention_heads=12, head_dim=4, num_key_value_heads=6))
    check_refused("the model's 6 key-value heads cannot be cut evenly 4 ways", "--model", path, "--mesh", "tp=4")


def processor_seconds():
    """Of the programs run so far; how busy the machine is does not matter."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def check_large(folder):
    path = model(folder, LLAMA_7B)
    begin = processor_seconds()
    report = plan("--model", path, "--mesh", "dp=64,tp=8", "--dtype", "bf16")
    text = run("--model", path, "--mesh", "dp=64,tp=8", "--dtype", "bf16", "--mode", "sharded")
    seconds = processor_seconds() - begin
    assert seconds < 60, seconds  # about two
    assert len(report["ranks"]) == 512
    sizes = {"reg": 0, "adamw": 0}
    for p in report["params"]:
        size = 1
        for extent in p["shape"]:
            size *= extent
        sizes[p["rule"]] += size
    # Norms are replicated over tp, so their state is there eight times.
    norms = (32 * 2 + 1) * 4096
    state = sum(r["memory_bytes"]["state"] for r in report["ranks"])
    assert state == 4 * sizes["reg"] + 8 * (sizes["adamw"] + 7 * norms), state
    assert text.returncode == 0 and "least of 512 ranks" in text.stdout and "  rank 3" not in text.stdout
    assert max(len(line) for line in text.stdout.splitlines()) < 150


with tempfile.TemporaryDirectory() as temporary:
    check_by_hand()
    check_decoder(temporary)
    check_large(temporary)
    check_refused("either --model DIR", "--mesh", "dp=2")
    check_refused("placed over axis tp, which mesh dp=2 does not have", "--shape", "w=4x4",
                  "--mesh", "dp=2", "--place", "w=tp:0")
    check_refused("nowhere/config.json", "--model", "nowhere")
    shown = run("--shape", "w=8x4", "--mesh", "dp=2").stdout
    for words in ("  rank 1 ", "The same model and mesh", "muon for the matrices", "open lines to their owners"):
        assert words in shown, shown
print("plans are as counted by hand")
