"""Damages saved results by chance, from a seed: what a disk, a network or a careless hand could do to one."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from secateur.artifacts.forms import ENDING, _text_print, dumped, fingerprint, tensors_print
from secateur.artifacts.record import seal

HUGE = 2**40
DEEP: Any = json.loads("[" * 400 + "]" * 400)
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 7, 2**31, 2**63, 10**30, 1.5, -0.0, 1e308, "", "x", "a" * 5000, "../../etc/passwd",
    "/etc/passwd", "__class__", "forward", "os.system", "a.b.c", "\x00", "\ud800", [], {}, [0] * 5000, DEEP,
    {"node": "x"}, {"tuple": []}, {"dict": {}}, {"float": "nan"}, {"slice": [None, None, 0]}, {"dtype": "float64"},
    {"device": "meta"}, {"device": "cuda:7"}, {"tensor": "input.0"}, {"value": 3}, {"list": []},
)  # fmt: skip


@dataclass
class Parts:
    """A result, taken apart."""

    record: dict[str, Any]
    plan: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]
    headers: list[Callable[[dict[str, Any]], Any]] = field(default_factory=list)  # changes of the weights' header

    @staticmethod
    def of(folder: Path) -> "Parts":
        """A result in a directory."""
        return Parts(
            json.loads((folder / "artifact.json").read_text()),
            json.loads((folder / "plan.json").read_text()),
            {file.name: load_file(file) for file in sorted(folder.glob("*.safetensors"))},
        )

    def write(self, path: Path) -> None:
        """Put it together again, with hashes that fit, as a directory or a single file."""
        record, plan = dict(self.record), json.dumps(self.plan)
        extra = {n: e for n, e in record["files"].items() if n not in (*self.tensors, "plan.json")} if isinstance(
            record.get("files"), dict
        ) else {}  # fmt: skip
        if path.suffix == ENDING:
            files = {"plan.json": _text_print(plan), **{n: tensors_print(held) for n, held in self.tensors.items()}}
            record = _sealed({**record, "files": {**files, **extra}})
            flat = {f"{n.removesuffix(ENDING)}/{at}": t for n, held in self.tensors.items() for at, t in held.items()}
            texts = {"artifact.json": record, "plan.json": plan.encode("utf-8", "replace").decode()}
            save_file(flat, path, metadata=texts)
            self._spoil(path)
            return
        path.mkdir()
        for name, held in self.tensors.items():
            save_file(held, path / name)
        self._spoil(path / "model.safetensors")
        (path / "plan.json").write_text(plan)
        files = {name: fingerprint(path / name) for name in ("plan.json", *self.tensors)}
        (path / "artifact.json").write_text(_sealed({**record, "files": {**files, **extra}}))

    def _spoil(self, file: Path) -> None:
        """Change the header of a safetensors file, which says where each tensor lies."""
        for change in self.headers:
            held = file.read_bytes()
            length = int.from_bytes(held[:8], "little")
            header = json.loads(held[8 : 8 + length])
            text = change(header)
            text = json.dumps(header) if text is None else text
            written = text.encode()
            file.write_bytes(len(written).to_bytes(8, "little") + written + held[8 + length :])


def _sealed(record: dict[str, Any]) -> str:
    try:
        return dumped(seal(record))
    except ValueError:  # NaN
        return json.dumps(record)


# ---------------------------------------------------------------------- by chance


def by_chance(base: Path, other: Path, place: Path, seed: int) -> str:
    """Damage a copy of a result; says how.

    Args:
        base: a result in a directory; beside it lies its other form, ``NAME.safetensors``.
        other: another such result, to swap with.
        place: where the damaged one goes, a directory or a single file.
        seed: of what happens.
    """
    draw = random.Random(seed)
    kind = draw.choice((_bits, _cut, _swap, _json, _json, _json, _tensor))
    if kind in (_json, _tensor):
        parts = Parts.of(base)
        how = kind(parts, draw)
        parts.write(place)
        return f"{kind.__name__} {how}"
    if place.suffix == ENDING:
        kind = _cut if kind is _swap else kind  # another whole result is no damaged one
        shutil.copy(base.with_name(base.name + ENDING), place)
        return f"{kind.__name__} {kind(place, other.with_name(other.name + ENDING), draw)}"
    shutil.copytree(base, place)
    file = draw.choice(sorted(f for f in place.iterdir()))
    return f"{kind.__name__} {file.name} {kind(file, other / file.name, draw)}"


def _bits(file: Path, other: Path, draw: random.Random) -> str:
    held = bytearray(file.read_bytes())
    places = [draw.randrange(8 * len(held)) for _ in range(draw.choice((1, 1, 2, 20)))]
    for bit in places:
        held[bit // 8] ^= 1 << bit % 8
    file.write_bytes(held)
    return f"bits {places}"


def _cut(file: Path, other: Path, draw: random.Random) -> str:
    held = file.read_bytes()
    at = draw.randrange(len(held))
    file.write_bytes(draw.choice((held[:at], held[at:], held + b"\x00" * 9, held[:at] + b"\xff" * 9 + held[at:], b"")))
    return f"at {at}"


def _swap(file: Path, other: Path, draw: random.Random) -> str:
    if file.suffix == ENDING and "/" not in file.name and draw.random() < 0.3:
        file.unlink()
        return "gone"
    shutil.copy(other, file)
    return "for another result's"


def _json(parts: Parts, draw: random.Random) -> str:
    """Something in the JSON is another value, is missing, or stands in another place."""
    where = draw.choice(("record", "record", "plan"))
    root: Any = getattr(parts, where)
    path: list[Any] = []
    holder: Any = root
    while True:
        steps = [k for k in (holder if isinstance(holder, dict) else range(len(holder))) if k not in ("sha256",)]
        if not steps:
            return f"{where} {path}: empty"
        step = draw.choice(steps)
        path.append(step)
        inner = holder[step]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.15:
            break
        holder = inner
    match draw.randrange(5):
        case 0 if isinstance(holder, dict):
            del holder[step]
        case 1 if isinstance(holder, list):
            holder.insert(step, copy.deepcopy(holder[draw.randrange(len(holder))]))
        case 2 if isinstance(holder, dict):
            holder[draw.choice(("x", "__class__", "../x", "", "forward"))] = holder.pop(step)
        case _:
            holder[step] = copy.deepcopy(draw.choice(VALUES))
    return f"{where} {path}"


def _tensor(parts: Parts, draw: random.Random) -> str:
    """A tensor is another one, or is called otherwise."""
    file = draw.choice(sorted(parts.tensors))
    held = parts.tensors[file]
    name = draw.choice(sorted(held))
    tensor = held.pop(name)
    match draw.randrange(8):
        case 0:
            held[
                draw.choice(("x", "__class__", "../x", "forward", "0.weight.grad", "output.999", "a." * 200 + "b"))
            ] = tensor
        case 1:
            held[name] = tensor.to(draw.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8)))
        case 2:
            held[name] = tensor.unsqueeze(0).clone()
        case 3:
            held[name] = torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor + 1
        case 4:
            held[name] = torch.zeros(draw.choice(((0, HUGE), (0,), (2**20, 0, 2**20), (1,), ())))
        case 5:
            held[name] = (tensor * -1e30).contiguous()
        case 6:
            held[name] = tensor.flip(0).contiguous() if tensor.dim() else tensor + 1
        case _:
            pass
    return f"{file} {name}"
