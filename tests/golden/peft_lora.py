"""PEFT as the reference of adapters: what its LoRA and AdaLoRA give, what it writes, and whether it loads what Tributary exports.

    peft_lora.py OUT.json       writes peft_lora.json: outputs, losses, gradients and AdaLoRA's steps of two linear layers with adapters, in double precision
                                on a CPU; and the files that PEFT writes for adapters of transformers' Llama: names, types, shapes, configuration
    peft_lora.py --load DIR BASE.safetensors TEXT [--heads N]
                                loads an export (`tributary state export JOB --peft DIR`) of a job on `zoo: transformer` with PEFT onto transformers' Llama that
                                has the base's weights (plus DIR/base_delta.safetensors where it is there), and prints its mean loss over TEXT

needs torch, transformers, peft and safetensors. Not needed by the tests but for the second form, which tests/e2e/lora/lora_test.py calls where the variable
TRIBUTARY_PEFT_PYTHON names a Python that has them:
    python3 -m venv peft && peft/bin/pip install torch transformers peft     (5 GB)
    TRIBUTARY_PEFT_PYTHON=$PWD/peft/bin/python ctest --preset release -R e2e.lora.daemons

The small model is the zoo's mlp with input 5, hidden 4, classes 3. Weights: element i of tensor k of all, in the order fc1.weight, fc1.bias, fc2.weight,
fc2.bias, fc1's A and B, fc2's A and B, is 0.4·sin(0.37·i + k); E of layer k: 0.3·cos(i + k). x: element i is sin(0.9·i); label of example n is n mod 3; loss:
mean cross-entropy, under AdaLoRA plus its penalty. AdaLoRA's steps are plain SGD; S is what its allocator scores a triplet by.
"""
import argparse
import json
import sys
import tempfile
import types
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

RANK, ALPHA, EXAMPLES, RATE = 3, 6, 6, 0.2
SCHEDULE = {"target_r": 1, "init_r": RANK, "tinit": 2, "tfinal": 3, "deltaT": 2, "beta1": 0.85, "beta2": 0.85, "orth_reg_weight": 0.1, "total_step": 12}
TARGETS = ["q_proj", "v_proj", "down_proj"]
LLAMA = {"vocabulary": 256, "width": 64, "layers": 2, "heads": 4, "hidden": 128, "input": 128}


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(5, 4)
        self.fc2 = torch.nn.Linear(4, 3)

    def forward(self, x, labels):
        output = self.fc2(torch.relu(self.fc1(x)))
        return types.SimpleNamespace(output=output, loss=torch.nn.functional.cross_entropy(output, labels))


def fill(tensor, values):
    with torch.no_grad():
        tensor.copy_(values(torch.arange(tensor.numel(), dtype=torch.float64)).view(tensor.shape))


def sines(tensor, k):
    fill(tensor, lambda i: 0.4 * torch.sin(0.37 * i + k))


def adapted(config):
    """The model with adapters of known values, and what it gives while they are fresh."""
    base = Mlp().double()
    for k, name in enumerate(["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]):
        sines(dict(base.named_parameters())[name], k)
    model = peft.get_peft_model(base, config).double()
    x = torch.sin(0.9 * torch.arange(EXAMPLES * 5, dtype=torch.float64)).view(EXAMPLES, 5)
    labels = torch.arange(EXAMPLES) % 3
    fresh = model.base_model(x, labels).output
    factors = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora_" in name}
    ending = ".weight" if any(name.endswith(".weight") for name in factors) else ""
    for k, layer in enumerate(["fc1", "fc2"]):
        sines(factors[f"base_model.model.{layer}.lora_A{ending}"], 4 + 2 * k)
        sines(factors[f"base_model.model.{layer}.lora_B{ending}"], 5 + 2 * k)
        if f"base_model.model.{layer}.lora_E" in factors:
            fill(factors[f"base_model.model.{layer}.lora_E"], lambda i, k=k: 0.3 * torch.cos(i + k))
    return model, x, labels, fresh, factors


def saved(model):
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tensors = load_file(Path(folder) / "adapter_model.safetensors")
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
    return {name: [str(value.dtype).removeprefix("torch."), list(value.shape)] for name, value in sorted(tensors.items())}, config


def golden(config):
    model, x, labels, fresh, factors = adapted(config)
    result = model.base_model(x, labels)  # PeftModel itself would leave the penalty out
    result.loss.backward()
    return {"fresh": fresh.tolist(), "output": result.output.tolist(), "loss": result.loss.item(),
            "gradients": {name: value.grad.tolist() for name, value in factors.items()},
            "saved": {name: shape for name, (_, shape) in saved(model)[0].items()}}


def scores(allocator):
    """S of all triplets, layer by layer; none once the pattern is fixed, when PEFT forgets them."""
    rows = []
    for layer in ("fc1", "fc2") if allocator.ipt else ():
        a, b, e = (allocator._element_score(f"{layer}.lora_{which}.default") for which in "ABE")
        rows.append((e.view(-1) + a.mean(1) + b.mean(0)).tolist())
    return rows


def adalora():
    config = peft.AdaLoraConfig(target_modules=["fc1", "fc2"], lora_alpha=ALPHA, **SCHEDULE)
    made = golden(config)
    model, x, labels, _, factors = adapted(config)
    optimiser = torch.optim.SGD(factors.values(), lr=RATE)  # PEFT 0.21 leaves ranknum trainable too, which is no factor: r of the scale α/r
    trace = []
    for step in range(SCHEDULE["total_step"]):
        optimiser.zero_grad()
        loss = model.base_model(x, labels).loss
        loss.backward()
        optimiser.step()
        model.base_model.update_and_allocate(step)
        trace.append({"step": step, "loss": loss.item(), "scores": scores(model.base_model.rankallocator),
                      "e": [factors[f"base_model.model.{layer}.lora_E"].view(-1).tolist() for layer in ("fc1", "fc2")]})
    return {**made, "rate": RATE, "schedule": SCHEDULE, "trace": trace}


def llama(heads, weights=None, dtype=torch.float32):
    shape = dict(LLAMA)
    if weights:
        layers = {name.split(".")[2] for name in weights if name.startswith("model.layers.")}
        vocabulary, width = weights["lm_head.weight"].shape
        shape.update(vocabulary=vocabulary, width=width, layers=len(layers), hidden=weights["model.layers.0.mlp.up_proj.weight"].shape[0])
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=shape["vocabulary"], hidden_size=shape["width"], num_hidden_layers=shape["layers"], num_attention_heads=heads, num_key_value_heads=heads,
        intermediate_size=shape["hidden"], max_position_embeddings=shape["input"], rms_norm_eps=1e-5, tie_word_embeddings=False, attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0})).to(dtype)
    if weights:
        model.load_state_dict(weights, strict=True)
    return model


def files(config):
    """What PEFT writes for a Llama of the shape that tests/e2e/lora trains."""
    tensors, written = saved(peft.get_peft_model(llama(LLAMA["heads"]), config))
    return {"tensors": tensors, "config": written}


def load(folder, base_file, text, heads):
    weights = load_file(base_file)
    delta = Path(folder) / "base_delta.safetensors"
    for name, value in (load_file(delta) if delta.exists() else {}).items():
        weights[name] = weights[name] + value
    base = llama(heads, weights)
    model = peft.PeftModel.from_pretrained(base, folder)
    model.eval()
    stored = load_file(Path(folder) / "adapter_model.safetensors")
    held = {name.replace(".default", ""): value for name, value in model.state_dict().items() if ".default" in name}
    for name, value in stored.items():
        assert name in held and torch.equal(held[name], value), f"{name}: PEFT does not hold what the file has"
    size = LLAMA["input"]
    bytes_ = Path(text).read_bytes()
    tokens = torch.tensor([list(bytes_[i:i + size]) for i in range(0, len(bytes_) - size + 1, size)])
    with torch.no_grad():
        def mean_loss():
            logits = model(input_ids=tokens).logits.double()
            return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), tokens[:, 1:].reshape(-1)).item()
        loss = mean_loss()
        with model.disable_adapter():
            without = mean_loss()
    print(json.dumps({"peft": peft.__version__, "tensors": len(stored), "loss": loss, "without_adapters": without}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?")
    parser.add_argument("--load", nargs=3, metavar=("DIR", "BASE", "TEXT"))
    parser.add_argument("--heads", type=int, default=LLAMA["heads"])
    a = parser.parse_args()
    if a.load:
        load(*a.load, a.heads)
        return
    lora = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["fc1", "fc2"]}
    result = {"source": f"peft {peft.__version__}, transformers {transformers.__version__}, torch {torch.__version__}; tests/golden/peft_lora.py",
              "plain": golden(peft.LoraConfig(**lora)), "rank_stabilised": golden(peft.LoraConfig(use_rslora=True, **lora)), "adalora": adalora(),
              "files": {"shape": LLAMA, "lora": files(peft.LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS)),
                        "adalora": files(peft.AdaLoraConfig(lora_alpha=8, target_modules=TARGETS, **{**SCHEDULE, "init_r": 4}))}}
    Path(a.out).write_text(json.dumps(result, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
