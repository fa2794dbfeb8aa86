"""Text that a pruned language model must go on treating as before: the second table of docs/protect.md.

    python benchmarks/protect_text.py --data ../shared/data --out docs/protect.md

A Llama of 260 thousand parameters that was trained on stories is pruned on stories. Protected is text of an
encyclopedia, which it was not trained on and calibration does not hold: it is to be wrong there as it was. Nothing is
chosen on the texts that figures are taken on. The folder of data holds ``load.py`` with ``stories_llama()`` and
``stories(start, stop)``, ``stories260k`` with the tokenizer, and ``wikitext2``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from protect import load_module, spread
from torch import Tensor

import secateur as sc
from secateur.files import write_text
from secateur.protecting import Protect

MARK = "<!-- the table of benchmarks/protect_text.py -->"
TOKENS, BATCH, HELD_OUT = 256, 16, 300
NAMES = {"dense": "dense", "without": "pruned", "with": "pruned, protected"}


def batches(texts: Sequence[Tensor]) -> list[dict[str, Tensor]]:
    """Texts of one length in batches."""
    tokens = torch.stack([text[:TOKENS] for text in texts])
    return [{"input_ids": part, "labels": part} for part in tokens.split(BATCH)]


def drawn(texts: Sequence[Tensor], count: int, seed: int) -> list[Tensor]:
    """Some texts that are long enough."""
    long = [text for text in texts if len(text) >= TOKENS]
    order = torch.randperm(len(long), generator=torch.Generator().manual_seed(seed))
    return [long[k] for k in order[:count].tolist()]


def encyclopedia(folder: Path, part: str) -> list[Tensor]:
    """Pieces of a part of WikiText-2 as tokens."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "stories260k")
    (file,) = (folder / "wikitext2").glob(f"*{part}*")
    text = file.read_text(encoding="utf-8")[:400_000]
    return list(torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]).split(TOKENS))


def one_seed(options: argparse.Namespace, loader: Any, seed: int) -> dict[str, Any]:
    """What the report says of protection."""
    general = batches(drawn(loader.stories(0, -HELD_OUT), options.texts, seed))
    special = batches(drawn(encyclopedia(options.data, "valid"), options.texts, seed))
    guard = Protect(
        special,
        share=options.share,
        test=batches(drawn(encyclopedia(options.data, "test"), options.tests, 0)),
        general_test=batches(drawn(loader.stories(-HELD_OUT), options.tests, 0)),
    )
    result = sc.prune(
        loader.stories_llama(),
        {"input_ids": general[0]["input_ids"][:1]},
        importance="reconstruction",
        budget=sc.Budget(macs=options.macs),
        data=general,
        protect=guard,
        ignore=("model.embed_tokens",),
        seed=seed,
    )
    return result.report["protected"]


def table(found: Sequence[dict[str, Any]]) -> str:
    """Means and standard deviations over seeds."""
    lines = [
        "| network | same next token as dense, encyclopedia | divergence there | same, stories | divergence there |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, label in NAMES.items():
        cells: list[str] = []
        for of in ("protected", "general"):
            rows = [one["figures"][of][name] for one in found]
            cells += [spread([100 * row["agreement"] for row in rows], 1) + " %"]
            cells += [spread([row["divergence"] for row in rows], 3)]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    kept = mean(one["kept"] for one in found)
    return "\n".join([*lines, "", f"Units that stay because of it: {kept:.0f} in the mean."])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds load.py")
    parser.add_argument("--out", type=Path, help="page whose table is replaced")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the calibration texts")
    parser.add_argument("--macs", type=float, default=0.6, help="budget, a share of the dense network's")
    parser.add_argument("--texts", type=int, default=64, help="to calibrate on, of each kind")
    parser.add_argument("--tests", type=int, default=64, help="to take figures on, of each kind")
    parser.add_argument("--share", type=float, default=0.5)
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    options = arguments()
    loader = load_module(options.data / "load.py")
    found: list[dict[str, Any]] = []
    for seed in options.seeds:
        found.append(one_seed(options, loader, seed))
        print(json.dumps({"seed": seed, **found[-1]["figures"], "kept": found[-1]["kept"]}), flush=True)
    text = table(found)
    print(text)
    if options.out is not None:
        parts = options.out.read_text().split(MARK)
        write_text(options.out, f"{parts[0]}{MARK}\n\n{text}\n\n{MARK}{parts[2]}")


if __name__ == "__main__":
    main()
