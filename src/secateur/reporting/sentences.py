"""What a report says in words; the same in a terminal and on a page."""

from collections.abc import Mapping
from typing import Any

from secateur.reporting.deeds import deeds, in_words, narrower, wider
from secateur.reporting.figures import (
    LATENCY,
    MACS,
    PARAMS,
    before_and_after,
    latency_cut_per_mac_cut,
    metric,
)
from secateur.reporting.numbers import milliseconds, percent, plain, scientific


def headline(report: Mapping[str, Any]) -> str:
    """The result in one line: how much smaller, at what accuracy."""
    dense, final, _ = before_and_after(report)
    if final is None:
        return "Nothing was done yet"
    change = PARAMS.change(PARAMS.of(dense), PARAMS.of(final))
    changed = PARAMS.verdict(PARAMS.of(dense), PARAMS.of(final)) != 0
    same = "as many parameters" if deeds(report) and wider(report) else "nothing removed"
    parts = [f"{change} parameters" if changed else same] if change else []
    accuracy = metric("accuracy")
    before, after = accuracy.of(dense), accuracy.of(final)
    if before is not None and after is not None:
        parts.append(f"accuracy {percent(before)} → {percent(after)}")
    return ", ".join(parts) or in_words(report).capitalize() or "Nothing was changed"


def latency_per_mac(report: Mapping[str, Any]) -> str | None:
    """How much of the cut in MACs shows in the latency, where both fell."""
    dense, final, _ = before_and_after(report)
    ratio = latency_cut_per_mac_cut(dense, final)
    if ratio is None or ratio <= 0 or latency(report) is not None:
        return None
    cuts = [1 - (f.of(final) or 0.0) / (f.of(dense) or 1.0) for f in (LATENCY, MACS)]
    return f"The latency fell by {percent(cuts[0])}, the MACs by {percent(cuts[1])}: {ratio:.2f} of the cut in MACs."


def latency(report: Mapping[str, Any]) -> str | None:
    """Plain words where the measured latency did not fall, else None."""
    dense, final, _ = before_and_after(report)
    before, after = LATENCY.of(dense), LATENCY.of(final)
    if before is None or after is None or LATENCY.verdict(before, after) > 0:
        return None
    rose = LATENCY.verdict(before, after) < 0
    return (
        f"The measured latency did not fall: {milliseconds(before)} before, {milliseconds(after)} after"
        f"{'' if rose else ', the same within noise'}. "
        "Fewer operations are not always faster ones: a small network spends its time on starting each of them."
    )


def proof(report: Mapping[str, Any]) -> str:
    """What was proved, with its numbers; empty where nothing is to be, as single weights went."""
    found: Mapping[str, Any] = report.get("proof") or {}
    if not found and report.get("sparsity"):
        return ""
    status = found.get("status")
    numbers = (
        f"largest difference {scientific(found.get('max_difference'))} at outputs of scale {_scale(found.get('scale'))}"
    )
    if status == "proved" and report.get("depth"):
        what = (
            "the shorter model computes what the original computes with the blocks that went skipped"
            if report["depth"].get("dropped")
            else "the deeper model computes what the original computes"
        )
        return f"Proved: {what} ({numbers})."
    if status == "proved" and not narrower(report):
        return f"Proved: the new model computes what the original computes ({numbers})."
    which = "new" if wider(report) else "smaller"
    if status == "proved":
        return (
            f"Proved: the {which} model computes what the original computes with the removed units silenced "
            f"({numbers})."
        )
    if status == "shape-checked":
        return (
            f"Shape-checked only: the {which} model runs and its outputs have the right form. Removed units lie "
            "on a dimension "
            f"that the model normalises over, so its outputs differ from the silenced original's by design ({numbers})."
        )
    return f"Not proved ({status})." if status else "Not proved: the proof was not run."


def held_out(report: Mapping[str, Any]) -> str | None:
    """How much worse the smaller model is on the held-out data, where that was bounded."""
    found: Mapping[str, Any] | None = report.get("held_out")
    if not found:
        return None
    unit = f" {found['unit']}" if found.get("unit") else ""
    worse = float(found["worse"])
    change = f"{plain(abs(worse))}{unit} {'worse' if worse > 0 else 'better'}" if worse else "the same"
    stopped = "; stopped by Ctrl-C, so more may go" if found.get("interrupted") else ""
    return (
        f"Held-out {found['metric']}: dense {plain(found['dense'])}, pruned {plain(found['pruned'])}, {change}, within "
        f"{found['setting']}={found['bound']:g} ({found['met']} of {found['rounds']} rounds kept to it{stopped})."
    )


def gradual(report: Mapping[str, Any]) -> str | None:
    """In how many steps a network was pruned, and how accurate it was after each, where it was pruned bit by bit."""
    found: Mapping[str, Any] | None = report.get("gradual")
    if not found or not found.get("steps"):
        return None
    steps: list[Mapping[str, Any]] = list(found["steps"])
    after = [percent(step["cut"]["accuracy"]) for step in steps if "accuracy" in (step.get("cut") or {})]
    shown = f"; validation accuracy right after: {', '.join(after)}" if after else ""
    how = {
        "cut": f"in {len(steps)} {'steps' if len(steps) > 1 else 'step'} with training in between",
        "soft": "units faded out while it trained, then one surgery",
        "regularised": "a growing penalty drew units to zero while it trained, then one surgery",
    }
    back = {"weights": ", with early weights again after each", "rates": ", with early learning rates again after each"}
    return (
        f"Pruned bit by bit by a {found['schedule']} schedule: {how.get(str(found['mode']), str(found['mode']))}"
        f"{back.get(str(found.get('rewind')), '')}{shown}. Each surgery is proved against the network before it."
    )


def compensation(report: Mapping[str, Any]) -> str | None:
    """What refitting the weights that stay won back, where it was done."""
    found: Mapping[str, Any] | None = report.get("compensation")
    if not found:
        return None
    how = {"lstsq": "least squares", "merge": "merging", "mean": "means"}.get(str(found["how"]), str(found["how"]))
    blocks = (report.get("depth") or {}).get("dropped") or ()
    weights = [name for name in found.get("left") or () if name not in blocks]
    left = f"; {len(weights)} were left as cut" if weights else ""
    return (
        f"Compensated by {how} on {found['samples']:,} samples, {found['refitted']} weights refitted{left}: outputs "
        f"differ from the dense network's by {percent(found['distance'])} of their size, by "
        f"{percent(found['distance_before'])} as cut."
    )


def trial(report: Mapping[str, Any]) -> str | None:
    """Which hint was taken because a trial said so, where several were tried."""
    found: Mapping[str, Any] | None = report.get("trial")
    if not found:
        return None
    distances: Mapping[str, float | None] = found["distances"]
    others = [f"{name} {_far(value)}" for name, value in distances.items() if name != found["chosen"]]
    what = {"divergence": "in Kullback-Leibler divergence", "difference": "as a share of their size"}
    return (
        f"Units chosen by {found['chosen']}: of {len(distances)} hints that were tried on {found['fitted']:,} samples, "
        f"its outputs are nearest to the dense network's on {found['judged']:,} others, "
        f"{_far(distances[found['chosen']])} {what.get(str(found['measure']), '')} ({', '.join(others)})."
    )


def _far(value: float | None) -> str:
    return "failed" if value is None else f"{value:.3g}"


def adapted(report: Mapping[str, Any]) -> str | None:
    """What the network was adapted to, what was trained, and why, where it was."""
    found: Mapping[str, Any] | None = report.get("adapted")
    if not found:
        return None
    said = f"Adapted: {found['after']} classes in place of {found['before']}, by a new {' and '.join(found['layers'])}."
    choices: Mapping[str, Mapping[str, Any]] = found.get("choices") or {}
    names = {"dense": "Before pruning", "tuned": "After pruning"}
    for name, choice in choices.items():
        said += f" {names.get(name, name)}, {choice['frozen']} stayed frozen: {choice['why']}."
        if choice.get("head"):
            said += f" The head began as {choice['head']}."
    teacher: Mapping[str, Any] | None = found.get("teacher")
    if teacher and choices.get("tuned", {}).get("trained") != "head":
        used = "the teacher" if teacher["used"] else "no teacher"
        said += f" The network before pruning was {used} ({teacher['why']})."
    return said


def replay(report: Mapping[str, Any]) -> str | None:
    """Whether an earlier plan is still good for these weights, where one was replayed."""
    found: Mapping[str, Any] | None = report.get("replay")
    if not found:
        return None
    figures = [
        f"rank correlation of old and new scores ({found['importance']}) {found['correlation']:.2f}"
        if found.get("correlation") is not None
        else "",
        f"a fresh plan keeps {percent(found['overlap'])} of its units" if found.get("overlap") is not None else "",
        f"agreement beyond chance {found['agreement']:.2f}" if found.get("agreement") is not None else "",
        str(found.get("left_out") or ""),
    ]
    return f"The plan was made for other weights. {found['advice']} ({'; '.join(filter(None, figures))}.)"


def dead(report: Mapping[str, Any]) -> str | None:
    """How many units the data never woke, where there are any."""
    count = report.get("dead_units")
    return f"{count:,} units give zero on all of the data: they are free to go." if count else None


def depth(report: Mapping[str, Any]) -> str | None:
    """Which blocks went or came in, where a network's depth was changed."""
    found: Mapping[str, Any] | None = report.get("depth")
    if not found:
        return None
    how = {"influence": " by their influence", "loss": " by the loss", "random": " at random"}
    dropped: list[str] = list(found.get("dropped") or ())
    inserted: list[str] = list(found.get("inserted") or ())
    parts: list[str] = []
    if dropped:
        of = f" of {found['blocks']} that could go" if found.get("blocks") else ""
        chosen = how.get(str(found.get("importance")), "")
        parts.append(f"{len(dropped)} blocks{of} went{chosen}: {_some(dropped)}.")
        reasons: Mapping[str, str] = (report.get("compensation") or {}).get("left") or {}
        parts += [f"No weight took over what {name} did: {reasons[name]}." for name in dropped if name in reasons]
    if inserted:
        parts.append(f"{len(inserted)} came in, each the identity at first, after {_some(inserted)}.")
    if found.get("unsaid"):
        parts.append(f"The model's config does not say its new depth: {found['unsaid']}.")
    return " ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def axes(report: Mapping[str, Any]) -> str:
    """How many axes were made narrower, and by how many units."""
    rows: list[Mapping[str, Any]] = list(report.get("axes") or ())
    if not rows:
        return "" if report.get("sparsity") else "No axis of the model can be pruned."
    before, after = sum(row["before"] for row in rows), sum(row["after"] for row in rows)
    cut = sum(row["after"] < row["before"] for row in rows)
    grown = sum(row["after"] > row["before"] for row in rows)
    if grown:
        more = f", {cut} are narrower" if cut else ""
        return f"{grown} of {len(rows)} axes are wider{more}; {after:,} units where there were {before:,}."
    if not cut:
        return f"No unit of the {len(rows)} axes was removed: a higher threshold or a smaller budget removes some."
    return (
        f"{cut} of {len(rows)} axes are narrower; {after:,} of {before:,} units are kept "
        f"({percent(after / max(before, 1))})."
    )


def rewrite(report: Mapping[str, Any]) -> str | None:
    """Why the network's class was replaced by its graph, where it was."""
    plan: Any = report.get("plan")
    rewrites: Any = plan.get("rewrites") if isinstance(plan, Mapping) else None
    if not rewrites:
        return None
    why = "growing" if not narrower(report) else "moving width" if wider(report) else "pruning"
    return f"The network's class was replaced by its graph: {rewrites[0]} holds a size that {why} changes."


def _scale(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
