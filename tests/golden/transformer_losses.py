"""Writes transformer_losses.json: what transformers' Llama and Mixtral lose, step by step of plain SGD, from weights and tokens that a formula
gives, in double precision on a CPU.

    transformer_losses.py OUT.json     needs torch and transformers

Weights: tensor k of all, in the order of their names, has elements 0.08·sin(0.37·i + k), norms 1 + that. Tokens: position i of sequence s is
(i·i + 7·i + 13·s) mod vocabulary. The names are Llama's and those of Mixtral before transformers fused its experts.
"""
import json
import math
import sys

import torch
import transformers

SHAPE = {"vocabulary": 64, "width": 32, "layers": 2, "heads": 4, "input": 16}
HIDDEN, EXPERTS, TOP_K, EXPERT_HIDDEN = 48, 4, 2, 24
SEQUENCES, STEPS, RATE = 3, 6, 0.5


def names(moe):
    width, vocabulary = SHAPE["width"], SHAPE["vocabulary"]
    shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}
    for layer in range(SHAPE["layers"]):
        prefix = f"model.layers.{layer}."
        for part in "qkvo":
            shapes[prefix + f"self_attn.{part}_proj.weight"] = (width, width)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[prefix + norm + ".weight"] = (width,)
        if not moe:
            shapes[prefix + "mlp.gate_proj.weight"] = (HIDDEN, width)
            shapes[prefix + "mlp.up_proj.weight"] = (HIDDEN, width)
            shapes[prefix + "mlp.down_proj.weight"] = (width, HIDDEN)
            continue
        shapes[prefix + "block_sparse_moe.gate.weight"] = (EXPERTS, width)
        for expert in range(EXPERTS):
            name = prefix + f"block_sparse_moe.experts.{expert}."
            shapes[name + "w1.weight"] = shapes[name + "w3.weight"] = (EXPERT_HIDDEN, width)
            shapes[name + "w2.weight"] = (width, EXPERT_HIDDEN)
    return shapes


def weights(moe):
    values = {}
    for k, (name, shape) in enumerate(sorted(names(moe).items())):
        wave = torch.tensor([0.08 * math.sin(0.37 * i + k) for i in range(math.prod(shape))], dtype=torch.float64).reshape(shape)
        values[name] = wave + 1 if "norm" in name else wave
    return values


def model(moe):
    common = dict(vocab_size=SHAPE["vocabulary"], hidden_size=SHAPE["width"], num_hidden_layers=SHAPE["layers"], num_attention_heads=SHAPE["heads"],
                  num_key_value_heads=SHAPE["heads"], max_position_embeddings=SHAPE["input"], rms_norm_eps=1e-5, tie_word_embeddings=False,
                  attn_implementation="eager", attention_dropout=0.0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    if moe:
        made = transformers.MixtralForCausalLM(transformers.MixtralConfig(intermediate_size=EXPERT_HIDDEN, num_local_experts=EXPERTS, num_experts_per_tok=TOP_K,
                                                                          sliding_window=None, output_router_logits=False, **common))
        if hasattr(made, "set_experts_implementation"):
            made.set_experts_implementation("eager")  # grouped products know no double precision
    else:
        made = transformers.LlamaForCausalLM(transformers.LlamaConfig(intermediate_size=HIDDEN, **common))
    made = made.double()
    ours, theirs = weights(moe), made.state_dict()
    for layer in range(SHAPE["layers"] if moe else 0):
        old, new = f"model.layers.{layer}.block_sparse_moe.", f"model.layers.{layer}.mlp."
        if new + "experts.gate_up_proj" not in theirs:
            continue  # a transformers that has not fused them
        ours[new + "gate.weight"] = ours.pop(old + "gate.weight")
        parts = [{w: ours.pop(f"{old}experts.{e}.{w}.weight") for w in ("w1", "w2", "w3")} for e in range(EXPERTS)]
        ours[new + "experts.gate_up_proj"] = torch.stack([torch.cat([p["w1"], p["w3"]]) for p in parts])
        ours[new + "experts.down_proj"] = torch.stack([p["w2"] for p in parts])
    made.load_state_dict(ours, strict=True)
    return made


def losses(moe):
    made = model(moe)
    made.train()
    tokens = torch.tensor([[(i * i + 7 * i + 13 * s) % SHAPE["vocabulary"] for i in range(SHAPE["input"])] for s in range(SEQUENCES)])
    optimiser = torch.optim.SGD(made.parameters(), lr=RATE)
    values = []
    for _ in range(STEPS):
        optimiser.zero_grad()
        logits = made(input_ids=tokens).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, SHAPE["vocabulary"]), tokens[:, 1:].reshape(-1))
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    return values


def main():
    torch.set_default_dtype(torch.float64)
    result = {"source": f"transformers {transformers.__version__}, torch {torch.__version__}; tests/golden/transformer_losses.py", "rate": RATE,
              "transformer": losses(False), "moe_transformer": losses(True)}
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        json.dump(result, out, indent=1)
        out.write("\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
