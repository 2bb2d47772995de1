#!/usr/bin/env python3
"""Writes docs/strategies.md and docs/models.md from what the program itself lists, so that they are not written twice.

usage: docs.py [BIN_DIR] [--check]     BIN_DIR: folder of `tributary` (build/dev/bin, else build/release/bin)
--check writes nothing and exits 1 if a file is stale.
"""
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NOTE = "<!-- Made by scripts/docs.py from `tributary {}`. Change the tables it reads, then run it again. -->\n"


def listed(program, what, key=None):
    return json.loads(subprocess.run([program, what, "--json"], capture_output=True, text=True, check=True).stdout)[key or what]


def cell(text):
    return str(text).replace("|", "\\|")


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(cell(c) for c in row) + " |" for row in rows]) + "\n"


def strategies(program):
    entries = listed(program, "strategies")
    text = NOTE.format("strategies --json") + "# Strategies\n\n"
    text += ("A job names one with its parameters: `strategy: {name: fedprox, mu: 0.1}`. Down and up: what travels with a version and with an "
             "update, in vectors of the model's size (under the default parameters). *Partial sums merge*: any topology, trees and several "
             "nodes included. *Needs all*: updates are kept whole until the commit, on one node, and trees refuse the strategy by name.\n\n")
    rows = []
    for e in entries:
        rounds = "rounds" if e["synchronous"] else "asynchronous"
        rows.append([f"[`{e['name']}`](#{e['name']})", e["help"], f"{e['down']} ({e['down_model_sizes']})", f"{e['up']} ({e['up_model_sizes']})",
                     "partial sums merge" if e["trait"] == "mergeable" else "needs all", rounds])
    text += table(["strategy", "what it does", "down", "up", "topology", "commits"], rows)
    for e in entries:
        text += f"\n## {e['name']}\n{e['help']}. Source: {e['source']}.\n\n"
        text += table(["parameter", "default", "range", "meaning"], [[f"`{p['name']}`", f"`{p['default']}`", p["range"], p["help"]] for p in e["parameters"]])
    return text


def models(program):
    text = NOTE.format("models, routers, datasets, codecs --json") + "# Models, adapters, routers, data sources, codecs\n\n"
    text += "## Models\n`model: {zoo: NAME, params: {…}}`. Those that say \"no LibTorch\" need none.\n\n"
    rows = [[f"`{e['name']}`", e["help"], ", ".join(f"`{p['name']}={p['default']}`" for p in e["parameters"]) or "–"] for e in listed(program, "models")]
    text += table(["model", "what it is", "parameters and defaults"], rows)
    text += "\n## Adapters\n`model: {zoo: NAME, adapter: {kind: KIND, targets: [LAYER, …], …}}` with `strategy: {adapters: MODE}`: only the adapters travel.\n\n"
    rows = [[f"`{e['name']}`", e["help"], ", ".join(f"`{p['name']}={p['default']}`" for p in e["parameters"])] for e in listed(program, "models", "adapters")]
    text += table(["adapter", "what it is", "parameters and defaults"], rows)
    text += "\n## Routers\n`model: {zoo: moe_transformer, params: {router: {name: NAME, …}}}`: who serves which token, and what balances the experts.\n\n"
    rows = [[f"`{e['name']}`", e["help"], ", ".join(f"`{p['name']}={p['default']}`" for p in e["parameters"]) or "–"] for e in listed(program, "routers")]
    text += table(["router", "what it is", "parameters and defaults"], rows)
    text += "\n## Data sources\n`data: {source: NAME, path: …, partition: {kind: …}}`.\n\n"
    text += table(["source", "what it reads"], [[f"`{e['name']}`", e["help"]] for e in listed(program, "datasets")])
    text += ("\n`text`: `data: {source: text, path: …, window: 256, tokenizer: tokenizer.json, tokenizer_sha256: …}` with the model's `input` 256 and a `vocabulary` as large as "
             "the tokenizer's. The file is one of Hugging Face's `tokenizers` (byte-level BPE, as GPT-2's and Llama 3's) on the client's machine; with the hash a client that has another one says so.\n\n"
             "`scripts/data.sh` makes sets with natural clients out of Debian packages: `languages DIR` (manual pages, a language a file), `fonts DIR` (62 glyphs in 17 handwritings, a font a file).\n")
    text += "\n## Codecs\n`codec: NAME`: how updates travel. They stay encoded until the fold.\n\n"
    rows = [[f"`{e['name']}`", f"{e['bits_per_element']:g}", e["help"], e["source"]] for e in listed(program, "codecs")]
    return text + table(["codec", "bits an element", "how", "source"], rows)


def main():
    given = [a for a in sys.argv[1:] if a != "--check"]
    folders = [Path(given[0])] if given else [ROOT / "build/dev/bin", ROOT / "build/release/bin"]
    program = next((f / "tributary" for f in folders if (f / "tributary").exists()), None)
    if program is None:
        sys.exit(f"docs.py: no program 'tributary' in {', '.join(map(str, folders))}: build it, or name its folder")
    stale = []
    for name, make in (("strategies.md", strategies), ("models.md", models)):
        path, text = ROOT / "docs" / name, make(str(program))
        if path.exists() and path.read_text() == text:
            continue
        stale.append(path.relative_to(ROOT))
        if "--check" not in sys.argv:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    if "--check" in sys.argv and stale:
        sys.exit(f"docs.py: stale: {', '.join(map(str, stale))}; run scripts/docs.py and commit what it writes")
    print(f"{'checked' if '--check' in sys.argv else 'written'}: {', '.join(map(str, stale)) or 'all are up to date'}")


if __name__ == "__main__":
    main()
