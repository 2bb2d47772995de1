"""PEFT as the reference of adapters: what its LoRA gives, and whether it loads what Tributary exports.

    peft_lora.py OUT.json                 writes peft_lora.json: outputs, loss and gradients of two linear layers with adapters, in double
                                          precision on a CPU, and the names PEFT saves them under
    peft_lora.py --load DIR BASE.safetensors    loads an export (`tributary state export --peft DIR`) of a job on `zoo: transformer` with PEFT, onto a
                                          module that has the base's weights, and prints how far the two layers' outputs are from W·x + (α/r)·B·A·x

needs torch, peft and safetensors (made with torch 1.13.0a0 of Debian 12 and peft 0.10.0)

The model is the zoo's mlp with input 5, hidden 4, classes 3. Weights: element i of tensor k of all, in the order fc1.weight, fc1.bias, fc2.weight,
fc2.bias, fc1's A and B, fc2's A and B, is 0.4·sin(0.37·i + k). x: element i is sin(0.9·i); label of example n is n mod 3; loss: mean cross-entropy.
"""
import json
import sys
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

RANK, ALPHA, EXAMPLES = 3, 6, 6


class Mlp(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(5, 4)
        self.fc2 = torch.nn.Linear(4, 3)

    def forward(self, x):
        return self.fc2(torch.relu(self.fc1(x)))


def fill(tensor, k):
    with torch.no_grad():
        tensor.copy_((0.4 * torch.sin(0.37 * torch.arange(tensor.numel(), dtype=torch.float64) + k)).view(tensor.shape))


def golden(rank_stabilised):
    base = Mlp().double()
    for k, name in enumerate(["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"]):
        fill(dict(base.named_parameters())[name], k)
    model = get_peft_model(base, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["fc1", "fc2"], use_rslora=rank_stabilised)).double()
    x = torch.sin(0.9 * torch.arange(EXAMPLES * 5, dtype=torch.float64)).view(EXAMPLES, 5)
    labels = torch.arange(EXAMPLES) % 3
    fresh = model(x)
    factors = {name.replace(".default", ""): value for name, value in model.named_parameters() if "lora_" in name}
    for k, layer in enumerate(["fc1", "fc2"]):
        fill(factors[f"base_model.model.{layer}.lora_A.weight"], 4 + 2 * k)
        fill(factors[f"base_model.model.{layer}.lora_B.weight"], 5 + 2 * k)
    output = model(x)
    loss = torch.nn.functional.cross_entropy(output, labels)
    loss.backward()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = load_file(Path(folder) / "adapter_model.safetensors")
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
    return {"fresh": fresh.tolist(), "output": output.tolist(), "loss": loss.item(),
            "gradients": {name: value.grad.tolist() for name, value in factors.items()},
            "saved": {name: list(value.shape) for name, value in sorted(saved.items())},
            "config": {key: config[key] for key in ("peft_type", "r", "lora_alpha", "use_rslora", "bias", "fan_in_fan_out")}}


def load(folder, base_file):
    """A module with the base's linear layers under their names, for PEFT to find its targets in."""
    weights = load_file(base_file)
    tensors = load_file(Path(folder) / "adapter_model.safetensors")
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    root = torch.nn.Module()
    for name, value in weights.items():
        if value.dim() != 2 or "embed" in name:
            continue
        at, parts = root, name.removesuffix(".weight").split(".")
        for part in parts[:-1]:
            if not hasattr(at, part):
                setattr(at, part, torch.nn.Module())
            at = getattr(at, part)
        layer = torch.nn.Linear(value.shape[1], value.shape[0], bias=False)
        layer.weight.data = value.clone()
        setattr(at, parts[-1], layer)
    model = PeftModel.from_pretrained(root, folder)
    modules = dict(model.named_modules())
    largest, layers = 0.0, 0
    for name in sorted(tensors):
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removesuffix(".lora_A.weight")
        a, b, w = tensors[name], tensors[layer + ".lora_B.weight"], weights[layer.removeprefix("base_model.model.") + ".weight"]
        x = torch.randn(7, a.shape[1], generator=torch.Generator().manual_seed(1))
        expected = x @ w.T + config["lora_alpha"] / config["r"] * (x @ a.T @ b.T)
        largest = max(largest, (modules[layer](x) - expected).abs().max().item())
        layers += 1
    print(json.dumps({"layers": layers, "largest_difference": largest}))


if __name__ == "__main__":
    if sys.argv[1] == "--load":
        load(sys.argv[2], sys.argv[3])
    else:
        Path(sys.argv[1]).write_text(json.dumps({"plain": golden(False), "rank_stabilised": golden(True)}, indent=1) + "\n")
