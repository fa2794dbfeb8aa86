"""Loads damaged results in a process of its own: ``FOLDER FIRST COUNT`` or ``FOLDER attacks``.

Each must be refused as `ArtifactError`, or load as if nothing had happened: in seconds, in bounded memory, and without
running code, opening a file for writing or reaching out. A line of JSON says how each went.
"""

import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import secateur as sc
import support.networks  # noqa: F401 (what the results are built by counts as imported)
from secateur.artifacts import read_inputs
from secateur.errors import ArtifactError
from support.attacks import CLASSES, GRAPHS
from support.damage import Parts, by_chance

FORBIDDEN = ("os.", "subprocess.", "socket.", "pickle.", "shutil.", "ctypes.dlopen", "urllib.")
HARMLESS = ("os.listdir", "os.scandir", "os.putenv", "os.walk", "os.fwalk")
WRITING = {"w", "a", "x", "+"}

watching, seen = False, []


def audit(event: str, args: Any) -> None:
    if not watching:
        return
    if event.startswith(FORBIDDEN) and not event.startswith(HARMLESS):
        seen.append(event)
    if event == "open" and isinstance(args[1], str) and WRITING & set(args[1]):
        seen.append(f"open {args[0]}")


def peak() -> int:
    """The largest resident set since `forget_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def tried(place: Path, base: str) -> dict[str, Any]:
    """How loading it went."""
    global watching
    seen.clear()
    torch.manual_seed(0)
    forget_peak()
    before, started = peak(), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, 60)  # of processor time; a process that hangs ends by this signal
    watching = True
    try:
        loaded = sc.load(place)
        outcome = "loaded"
    except ArtifactError as error:
        loaded, outcome = None, f"refused: {error}"[:400]
    except BaseException as error:  # whatever else: the test shows it
        loaded, outcome = None, f"{type(error).__name__}: {error}"[:400]
    watching = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    found = {"seconds": time.process_time() - started, "bytes": peak() - before, "seen": list(seen)}
    return {"outcome": outcome, **found, "off": None if loaded is None else off(loaded, base)}


def off(model: Any, base: str) -> float:
    """How far it is from what it was, as a share of its scale; infinite if its parameters are others."""
    wanted, x, y = whole[base]
    flags = [[(n, p.shape, p.requires_grad) for n, p in m.named_parameters()] for m in (model, wanted)]
    if flags[0] != flags[1]:
        return float("inf")
    with torch.no_grad():
        got = model(x)
    return float((got - y).abs().max() / y.abs().max()) if got.shape == y.shape else float("inf")


folder = Path(sys.argv[1])
bases = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith("base-"))
whole: dict[str, Any] = {}
for name in bases:
    model = sc.load(folder / name)
    x = read_inputs(folder / name)[0][0]
    with torch.no_grad():
        whole[name] = (model, x, model(x))
sys.addaudithook(audit)


def cases() -> Any:
    if sys.argv[2] == "attacks":
        for single in (False, True):
            for base in bases:
                kind = {**GRAPHS, **CLASSES} if "graph" in base else CLASSES
                for number, (how, attack) in enumerate(kind.items()):
                    if single and number % 3:  # what is beneath the two forms is the same
                        continue
                    place = folder / ("damaged.safetensors" if single else "damaged")
                    parts = Parts.of(folder / base)
                    attack(parts)
                    try:
                        parts.write(place)
                    except (ValueError, RuntimeError, UnicodeError) as error:
                        sys.stderr.write(f"{how} can't be written: {error}\n")
                        continue
                    yield base, how, place
        return
    first, count = int(sys.argv[2]), int(sys.argv[3])
    for seed in range(first, first + count):
        base, other = bases[seed % len(bases)], bases[(seed + 1) % len(bases)]
        place = folder / ("damaged.safetensors" if seed // len(bases) % 2 else "damaged")
        try:
            how = by_chance(folder / base, folder / other, place, seed)
        except (UnicodeError, ValueError, RuntimeError) as error:  # what can't be written is no file
            how = f"unwritable: {error}"
            continue
        yield base, f"{seed} {how}"[:200], place


for base, how, place in cases():
    sys.stderr.write(f"{base}: {how}\n")
    sys.stderr.flush()
    result = tried(place, base)
    sys.stdout.write(json.dumps({"base": base, "how": how, "form": place.suffix or "directory", **result}) + "\n")
    sys.stdout.flush()
    shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
