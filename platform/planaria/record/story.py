"""A run in words: headline, timeline, contexts and costs, ready to be laid out on a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from planaria.record.facts import (
    EDIT_SYMBOLS,
    SHIFT_SYMBOLS,
    Alarms,
    Edits,
    Row,
    Run,
    compare_alarms,
    count_edits,
    duration,
    edit_style,
    known,
    percent,
    plural,
    plus,
    sentence,
    short_number,
    signed,
    thousands,
    words_of,
)
from planaria.record.outcomes import deliberation, deliberation_words, gain_words, ground_words, kind_of
from planaria.signals import TOLD

MOST_EVENTS = 150


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Event:
    """One line of the timeline."""

    sample: int
    style: str
    """The kind of a shift, "start", or what a decision chose (see `outcomes.KINDS`)."""
    symbol: str
    title: str
    words: str


@dataclass(frozen=True)
class ContextBar:
    """The score on one context's held-out rows at the end, and how much better it had been, in percent of the bar."""

    name: str
    width: float
    forgotten: float
    words: str


def lead(run: Run) -> list[tuple[str, str]]:
    """What happened, in a few sentences: (about what, sentence)."""
    if not run.samples:
        return [("So far", "No interval has been reported yet: there is nothing to show.")]
    told = {"Stream": _lead_shifts(run), "Model": _lead_edits(run), "Score": _lead_score(run), "Size": _lead_size(run)}
    return [(about, sentence) for about, sentences in told.items() for sentence in sentences]


def tiles(run: Run) -> list[Tile]:
    """The headline figures, those that are known."""
    if not run.samples:
        return []
    alarms, edits = compare_alarms(run), count_edits(run)
    first, last = _heads(run, "heads_first", 0), _heads(run, "heads_last", -1)
    largest = _largest_size(run)
    mean = run.summary.get("parameters_mean") or _mean_parameters(run)
    saving = _saving(mean, largest, _largest_words(run)) if mean and largest else ""
    wall = run.summary.get("wall_seconds") or run.latest("wall_seconds")
    shift_note = _alarm_note(alarms) if run.contexts_known and not run.told else ", ".join(_kinds(run))
    revisions = int(run.summary.get("revisions") or len(run.revisions))
    shown = [
        Tile("samples", thousands(run.samples), f"in {duration(wall)}" if wall else ""),
        *_score_tiles(run),
        Tile("heads per layer", f"{plus(first)} → {plus(last)}", "first → last") if first and last else None,
        Tile("parameters, mean", short_number(mean), saving) if mean else None,
        Tile("shifts told" if run.told else "shifts detected", str(_shift_count(run)), shift_note),
        Tile("revisions", str(revisions), _edit_words(edits)),
        _decision_tile(run, _share(_decision_seconds(run), wall)),
    ]
    return [tile for tile in shown if tile is not None]


def timeline(run: Run) -> tuple[list[Event], int]:
    """Shifts, decisions and other revisions in order, and how many older ones are left out."""
    decided = {row["revision"] for row in run.decisions if row["revision"] is not None}
    events = [_shift_event(number, row, run.contexts_known) for number, row in enumerate(run.shifts, start=1)]
    events += [_decision_event(row) for row in run.decisions]
    events += [_revision_event(row) for row in run.revisions if row["number"] not in decided]
    events.sort(key=lambda event: event.sample)
    return events[-MOST_EVENTS:], max(0, len(events) - MOST_EVENTS)


def context_bars(run: Run) -> list[ContextBar]:
    """One bar per context that was seen: accuracy, or mean absolute error in a regression."""
    found = run.summary.get("mae_per_context" if run.regression else "accuracy_per_context")
    scores = {str(name): float(value) for name, value in found.items() if known(value)} if _is_map(found) else {}
    if run.regression:
        most = max(scores.values(), default=0.0) or 1.0
        return [ContextBar(_context(run, name), 100 * mae / most, 0.0, f"{mae:.3g}") for name, mae in scores.items()]
    given = run.summary.get("forgetting_per_context")
    lost = given if _is_map(given) else {}
    return [_accuracy_bar(_context(run, name), score, lost.get(name)) for name, score in scores.items()]


def mean_forgetting(run: Run) -> str | None:
    """How much worse the contexts are at the end than they once were, where the summary knows it."""
    forgetting = run.summary.get("forgetting")
    if not known(forgetting):
        return None
    return f"{forgetting:.3g}" if run.regression else f"{100 * forgetting:.1f} points"


def costs(run: Run) -> list[tuple[str, str, str]]:
    """(what, how much, in words) of what the run spent."""
    if not run.samples:
        return []
    get, wall = run.summary.get, run.summary.get("wall_seconds") or run.latest("wall_seconds")
    decision = _decision_seconds(run)
    speed = get("samples_per_second") or run.latest("samples_per_second")
    share = _share(decision, wall)
    flops, lost, repeated = get("flops_per_sample_mean"), get("rows_lost"), get("rows_repeated")
    energy = get("energy_joules")
    largest = _largest(run, "flops_per_sample")
    saving = _saving(flops, largest, "the largest so far") if known(flops) and largest else ""
    shown = [
        ("wall time", duration(wall), "") if known(wall) else None,
        ("throughput", f"{short_number(speed)} samples/s", _workers(get("workers"))) if known(speed) else None,
        ("time in decisions", duration(decision), share),
        *_decision_costs(run),
        _gate_cost(run),
        ("FLOPs a row, mean", short_number(flops), saving) if known(flops) else None,
        ("energy", f"{short_number(energy)} J", str(get("energy_method") or "")) if known(energy) else None,
        ("restarts", str(get("restarts")), "after lost workers or resumes") if known(get("restarts")) else None,
        ("rows lost", thousands(lost), "") if known(lost) else None,
        ("rows repeated", thousands(repeated), "") if known(repeated) else None,
    ]
    return [row for row in shown if row is not None]


def _gate_cost(run: Run) -> tuple[str, str, str] | None:
    """What rows used of the model, where gates let them use a part."""
    used, share = run.summary.get("parameters_active_mean"), run.summary.get("active_fraction_mean")
    if not known(used) or not known(share) or share >= 1:
        return None
    return "parameters a row used, mean", short_number(used), f"{100 * share:.0f}% of what is behind gates"


def _lead_shifts(run: Run) -> Iterator[str]:
    count = _shift_count(run)
    if not count:
        yield f"In {thousands(run.samples)} samples no shift was detected."
        return
    alarms = compare_alarms(run)
    kinds, found_out = ", ".join(_kinds(run)), "told by the stream" if run.told else "detected"
    sentence = f"In {thousands(run.samples)} samples {plural(count, 'shift was', 'shifts were')} {found_out} ({kinds})"
    if run.told or not run.contexts_known:
        yield f"{sentence}."
        return
    of_all = f"{alarms.found} of {alarms.changes} true changes" if alarms.changes is not None else None
    found = of_all or plural(alarms.found, "true change", "true changes")
    they = "it" if alarms.found == 1 else "they"
    delay = f", typically {thousands(alarms.median_delay)} samples after {they} began" if alarms.median_delay else ""
    false = (
        plural(alarms.false, "false or repeated alarm", "false or repeated alarms")
        if alarms.false
        else "no false alarm"
    )
    yield f"{sentence}: {found} found{delay}, {false}."


def _lead_edits(run: Run) -> Iterator[str]:
    edits, decisions = count_edits(run), len(run.decisions)
    first, last = _heads(run, "heads_first", 0), _heads(run, "heads_last", -1)
    if not first or not last:
        return
    if not edits.total:
        kept = f" in {plural(decisions, 'decision', 'decisions')}" if decisions else ""
        yield f"The model kept its {plus(first)} heads{kept}."
        return
    path = f"heads per layer went from {plus(first)} to {plus(last)}"
    often = "once" if edits.total == 1 else f"{edits.total} times"
    yield f"The model was edited {often} ({_edit_words(edits)}): {path}."


def _lead_score(run: Run) -> Iterator[str]:
    if run.regression:
        mae = run.summary.get("prequential_mae", run.latest("prequential_mae"))
        if known(mae):
            yield f"Predicting each row before learning from it, it was off by {mae:.3g} on average."
        return
    prequential = run.summary.get("prequential_accuracy", run.latest("prequential_accuracy"))
    final = run.summary.get("final_accuracy")
    if known(prequential):
        end = f"; at the end it is right on {percent(final)} over all contexts seen" if known(final) else ""
        yield f"Predicting each row before learning from it, it was right on {percent(prequential)}{end}."


def _lead_size(run: Run) -> Iterator[str]:
    told = []
    mean, largest = run.summary.get("parameters_mean") or _mean_parameters(run), _largest_size(run)
    if mean and largest and mean < 0.995 * largest:
        told.append(
            f"On average it had {short_number(mean)} parameters, {_saving(mean, largest, _largest_words(run))}."
        )
    if features := _readout_features(run):
        what = plural(features, "random feature", "random features")
        told.append(f"Beside it answers a readout of {what}, which is solved, not trained, and not counted.")
    if told:
        yield " ".join(told)


def _readout_features(run: Run) -> int:
    newest = run.revisions[-1] if run.revisions else {}
    return int((newest.get("blueprint") or {}).get("readout_features") or 0)


def _score_tiles(run: Run) -> Iterator[Tile]:
    if run.regression:
        for column, label in (("prequential_mae", "prequential MAE"), ("prequential_rmse", "prequential RMSE")):
            value = run.summary.get(column, run.latest(column))
            if known(value):
                yield Tile(label, f"{value:.3g}", "in the target's own units")
        return
    prequential = run.summary.get("prequential_accuracy", run.latest("prequential_accuracy"))
    if known(prequential):
        yield Tile("prequential accuracy", percent(prequential), "each row scored before it is learned")
    final = run.summary.get("final_accuracy")
    if known(final):
        yield Tile("final accuracy", percent(final), "held-out rows, mean over contexts")


def _alarm_note(alarms: Alarms) -> str:
    if not alarms.found + alarms.false:
        return ""
    found = f"{alarms.found} of {alarms.changes} true" if alarms.changes is not None else f"{alarms.found} true"
    return f"{found}, {alarms.false} false or repeated" if alarms.false else f"{found}, none false"


def _shift_count(run: Run) -> int:
    return max(len(run.shifts), int(run.summary.get("shifts") or 0))


def _kinds(run: Run) -> list[str]:
    kinds = [row["kind"] for row in run.shifts]
    return [f"{kinds.count(kind)} {kind}" for kind in SHIFT_SYMBOLS if kind in kinds]


def _edit_words(edits: Edits) -> str:
    parts = [(edits.grows, "grew"), (edits.shrinks, "shrank"), (edits.others, "other")]
    return ", ".join(f"{count} {word}" for count, word in parts if count) or "no edit"


def _heads(run: Run, key: str, place: int) -> list[int]:
    return list(run.summary.get(key) or (run.revisions[place]["heads"] if run.revisions else []) or [])


def _largest(run: Run, column: str) -> float:
    return max((row[column] for row in (*run.revisions, *run.steps) if row[column]), default=0)


def _largest_size(run: Run) -> float:
    """Parameters of the largest model that the policy allows; of the largest there was, where that is not known."""
    allowed = run.summary.get("parameters_largest")
    return float(allowed) if known(allowed) else _largest(run, "parameters")


def _mean_parameters(run: Run) -> float | None:
    """Over the samples, where there is no summary yet."""
    before, total = 0, 0
    for row in run.steps:
        total += (row["samples"] - before) * (row["parameters"] or 0)
        before = row["samples"]
    return total / before if before else None


def _largest_words(run: Run) -> str:
    return "the largest allowed" if known(run.summary.get("parameters_largest")) else "its largest size"


def _saving(mean: float, largest: float, words: str) -> str:
    saved = 100 * (1 - mean / largest)
    of = f"{words} ({short_number(largest)})"
    return f"{saved:.0f}% below {of}" if saved >= 0.5 else f"as at {of}"


def _decision_seconds(run: Run) -> float:
    seconds = run.summary.get("decision_seconds")
    return float(seconds) if known(seconds) else sum(row["seconds"] for row in run.decisions if known(row["seconds"]))


def _decisions_taken(run: Run) -> int:
    """Those no longer kept included: decisions are numbered."""
    return max((row["number"] for row in run.decisions), default=-1) + 1


def _decision_tile(run: Run, share: str) -> Tile:
    taken, kept = _decisions_taken(run), len(run.decisions)
    of_kept = f"of the newest {kept:,}: " if taken > kept else ""
    ground = of_kept + deliberation_words(deliberation(run.decisions)) if kept else ""
    value = f"{thousands(taken)} in {duration(_decision_seconds(run))}"
    return Tile("decisions", value, "; ".join(words for words in (share, ground) if words))


def _decision_costs(run: Run) -> Iterator[tuple[str, str, str]]:
    found = deliberation(run.decisions)
    for what, count, seconds in (
        ("decisions that looked ahead", found.looked, found.looked_seconds),
        ("decisions on the learned value alone", found.trusted, found.trusted_seconds),
    ):
        if count:
            yield what, thousands(count), f"{duration(seconds)} each, mean" if seconds is not None else ""


def _share(seconds: float, wall: float | None) -> str:
    return f"{100 * seconds / wall:.1f}% of the wall time" if wall else ""


def _workers(count: Any) -> str:
    return plural(int(count), "worker", "workers") if known(count) and count else ""


def _shift_event(number: int, row: Row, contexts_known: bool) -> Event:
    back = f" The stream returned to concept {row['concept']}." if row["concept"] is not None else ""
    title = f"shift {number}: {row['kind']}"
    if row["detector"] == TOLD:
        words = f"The stream told that sample {thousands(row['onset_sample'])} is the first of another context.{back}"
        return Event(row["sample"], row["kind"], SHIFT_SYMBOLS[row["kind"]], title, words)
    numbers = f"{words_of(row['detector'])} reached {row['statistic']:.3g}, its alarm is at {row['threshold']:.3g}"
    began = f"It seems to have begun at sample {thousands(row['onset_sample'])}"
    if row["delay"] is not None:
        truth = f", and was noticed {thousands(row['delay'])} samples after the true change."
    else:
        truth = (
            ", but no new change had begun since the last alarm: it is false, or repeats one."
            if contexts_known
            else "."
        )
    return Event(row["sample"], row["kind"], SHIFT_SYMBOLS[row["kind"]], title, f"{numbers}. {began}{truth}{back}")


def _decision_event(row: Row) -> Event:
    style, ground = kind_of(row), sentence(ground_words(row))
    if style == "keep" and row["revision"] is None:
        words = f"Looked after {_after(row)}. {sentence(row['why'])} {ground}"
        return Event(row["sample"], style, EDIT_SYMBOLS[style], "kept the model", words)
    realised = f"; it brought {gain_words(row)}" if known(row["gain_realised"]) else ""
    gain = f" Expected {signed(row['predicted'])} nats a row{realised}." if known(row["predicted"]) else ""
    led = f" → revision {row['revision']}" if row["revision"] is not None else ""
    words = f"After {_after(row)}. {sentence(row['why'])} {ground}{gain}"
    return Event(row["sample"], style, EDIT_SYMBOLS[style], f"{row['chosen']}{led}", words)


def _revision_event(row: Row) -> Event:
    style = edit_style(row["edit"]) if row["edit"] else "start" if row["parent"] is None else "edit"
    heads = f"{plus(row['heads'] or [])} heads, {thousands(row['parameters'] or 0)} parameters"
    title = f"revision {row['number']}: {row['cause'] or 'edit'}"
    return Event(row["sample"], style, EDIT_SYMBOLS[style], title, f"{sentence(row['why'])} {heads}.".strip())


def _after(row: Row) -> str:
    return "a look between shifts" if row["trigger"] == "thrift" else f"the {row['trigger']}"


def _accuracy_bar(name: str, accuracy: float, lost: Any) -> ContextBar:
    forgotten = max(0.0, 100 * lost) if known(lost) else 0.0
    words = percent(accuracy) if forgotten < 0.05 else f"{percent(accuracy)}, {forgotten:.1f} points forgotten"
    return ContextBar(name, 100 * accuracy, forgotten, words)


def _context(run: Run, name: str) -> str:
    """The context's name, after the number that the figure gives it where the summary lists them."""
    if name.isdigit():
        return f"context {name}"
    names = run.summary.get("contexts")
    return f"{names.index(name)} · {name}" if isinstance(names, list) and name in names else name


def _is_map(value: Any) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)
