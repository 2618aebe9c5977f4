"""Compares `regatta finetune` with Hugging Face transformers on small random checkpoints of the Llama family.

    python3 tests/finetune/huggingface_check.py build/bin/regatta build/bin/logits_of

Each model is made and saved by transformers; both programs compute its loss and, in fp32, its logits on the same tokens; transformers
loads what the program wrote back, and again the logits are compared. Needs torch and transformers; without them it says so and exits with 77.
"""

import json
import struct
import subprocess
import sys
import tempfile

try:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

SEQ = 32
COUNT = 4
SIZES = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, vocab_size=500, max_position_embeddings=64)


def randomise(model):
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter.float())
            parameter.copy_(1 + 0.2 * noise if parameter.dim() == 1 else 0.08 * noise)


def loss_of(model, tokens):
    total = 0.0
    with torch.no_grad():
        for i in range(COUNT):
            row = tokens[i * SEQ:(i + 1) * SEQ + 1]
            logits = model(row[None, :-1]).logits.float()
            total += torch.nn.functional.cross_entropy(logits[0], row[1:]).item()
    return total / COUNT


def logits_differ_by(tool, folder, model, tokens, data):
    """Largest difference of a logit, over the spread of the logits."""
    from safetensors.torch import load_file

    subprocess.run([tool, folder, data, folder + "/logits.safetensors"], check=True)
    ours = load_file(folder + "/logits.safetensors")["logits"]
    with torch.no_grad():
        theirs = model(tokens[None]).logits[0]
    return ((ours - theirs).abs().max() / theirs.std()).item()


def check(program, tool, name, model, tolerance):
    randomise(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder + "/base")
        tokens = torch.randint(0, SIZES["vocab_size"], (COUNT * SEQ + 1,))
        data = folder + "/tokens.u32"
        with open(data, "wb") as file:
            file.write(struct.pack(f"<{len(tokens)}I", *tokens.tolist()))
        dtype = "bf16" if model.dtype == torch.bfloat16 else "fp32"
        run = subprocess.run([program, "finetune", "--init", folder + "/base", "--data", data, "--eval-data", data, "--seq",
                              str(SEQ), "--steps", "1", "--lr", "0", "--out", folder + "/out", "--dtype", dtype, "--json"],
                             capture_output=True, text=True, check=False)
        if run.returncode != 0:
            print(f"{name}: {run.stderr.strip()}")
            return False
        ours = json.loads(run.stdout)["eval_loss_before"]
        theirs = loss_of(model, tokens)
        # With a learning rate of 0 every weight must come back as it went in.
        back = type(model).from_pretrained(folder + "/out", dtype=model.dtype).eval()
        same = all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())
        good = same and abs(ours - theirs) <= tolerance
        logits = ""
        if dtype == "fp32":
            short = tokens[: SIZES["max_position_embeddings"]]
            with open(data, "wb") as file:
                file.write(struct.pack(f"<{len(short)}I", *short.tolist()))
            differences = [logits_differ_by(tool, folder + where, each, short, data) for where, each in (("/base", model), ("/out", back))]
            good = good and max(differences) < 1e-5
            logits = f", logits differ by {differences[0]:.1e} (read from theirs) and {differences[1]:.1e} (read from ours) of their spread"
        print(f"{name}: loss {ours:.7f}, transformers {theirs:.7f}{logits}, weights {'equal' if same else 'DIFFER'}: "
              f"{'ok' if good else 'WRONG'}")
        return good


def main():
    torch.manual_seed(0)
    stretched = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                     original_max_position_embeddings=32)
    llama = lambda **more: LlamaForCausalLM(LlamaConfig(**SIZES, **more)).eval()
    qwen2 = lambda **more: Qwen2ForCausalLM(Qwen2Config(**SIZES, **more)).eval()
    cases = [("llama", llama(), 2e-6), ("llama, tied", llama(tie_word_embeddings=True), 2e-6),
             ("llama, stretched positions", llama(rope_theta=500000.0, rope_scaling=stretched), 2e-6),
             ("llama, biases, wide heads", llama(attention_bias=True, mlp_bias=True, head_dim=24), 2e-6),
             ("qwen2", qwen2(tie_word_embeddings=True), 2e-6), ("qwen2, bf16", qwen2().to(torch.bfloat16), 1e-3)]
    sys.exit(0 if all([check(*sys.argv[1:3], *case) for case in cases]) else 1)


main()
