"""What people get wrong in a policy file: every mistake gets one line that names file, key, value and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from planaria.cli import call
from planaria.errors import InputError
from planaria.job import load_job
from planaria.policy import load_policy

BY_ITSELF = [
    # keys that nobody knows, at every level, and where they belong
    ("headz: {max: 4}", "headz: unknown key (did you mean 'heads'?)"),
    ("heads: {maxx: 4}", "heads.maxx: unknown key (did you mean 'max'?)"),
    ("sharing: {atention: all}", "sharing.atention: unknown key (did you mean 'attention'?)"),
    ("gate: {fraction: 0.5}", "gate.fraction: unknown key (did you mean 'active_fraction'?)"),
    ("quantise: {bit: 8}", "quantise.bit: unknown key (did you mean 'bits'?)"),
    ("budget: {mean_head: 2}", "budget.mean_head: unknown key (did you mean 'mean_heads'?)"),
    ("controller: {knd: none}", "controller.knd: unknown key (did you mean 'kind'?)"),
    ("detector: {input: null}", "detector.input: unknown key (did you mean 'inputs'?)"),
    (
        "detector: {loss: {threshold: 3}}",
        "detector.loss.threshold: unknown key (did you mean 'page_hinkley_threshold'?)",
    ),
    ("learner: {memory: {row: 5}}", "learner.memory.row: unknown key (did you mean 'rows'?)"),
    ("learner: {renew: {rat: 0.1}}", "learner.renew.rat: unknown key (did you mean 'rate'?)"),
    ("learner: {protect: {wieght: 1}}", "learner.protect.wieght: unknown key (did you mean 'weight'?)"),
    ("learner: {readout: {half_life: [3]}}", "learner.readout.half_life: unknown key (did you mean 'half_lives'?)"),
    ("cooldown_samples: 3", "cooldown_samples: unknown key (did you mean 'heads.cooldown_samples'?)"),
    ("learner: {zzz: 1, beta: -1}", "learner.zzz: unknown key; known here: loss, protect, renew, "),
    # what may be searched
    ("search: {learner.rate: {between: [0, 1]}}", "search.learner.rate: a policy has no such setting"),
    ("search: {heads.strat: {integers: [1, 4]}}", "search.heads.strat: a policy has no such setting (did you mean"),
    ("search: {heads.start: {integers: [0, 4]}}", "search.heads.start: 0 is not allowed; give a whole number of at"),
    (
        "search: {heads.start: {between: [1, 4]}}",
        "search.heads.start: 1.0 is not allowed; give a whole number of at least 1, by integers instead of between",
    ),
    ("search: {heads.start: {integers: [4, 1]}}", "search.heads.start: integers is [4, 1]; give the lower one first"),
    ("search: {heads.start: {from: 1}}", "search.heads.start.from: unknown key"),
    ("search: {heads.start: {integers: x}}", "search.heads.start.integers: 'x' is not allowed; give a list of 2 whole"),
    ("search: {learner.loss: {one_of: [er, err]}}", "search.learner.loss: 'err' is not allowed; give naive, er, "),
    (
        "search: {gate: {one_of: [null, {active_fraction: 2}]}}",
        "search.gate: active_fraction: 2 is not allowed; give a number above 0",
    ),
    (
        "search: {gate.weight: {between: [1, 4], when: {gate.kind: [hard_concrete]}}}",
        "search.gate.weight.when names 'gate.kind', which is not searched before it; move it up",
    ),
    # another type
    ("heads: 4", "heads: 4 is not allowed; give keys under it: start, min, max, cooldown_samples"),
    ("heads:", "heads: null is not allowed; give keys under it: start, min, max, cooldown_samples, or leave it out"),
    ("heads: [1, 4]", "heads: [1, 4] is not allowed; give keys under it: start, "),
    ("heads: {max: '4'}", "heads.max: '4' is not allowed; give a whole number of at least 1"),
    ("heads: {max: 4.5}", "heads.max: 4.5 is not allowed; give a whole number of at least 1"),
    ("heads: {max: yes}", "heads.max: true is not allowed; give a whole number of at least 1"),
    ("heads: {min: null}", "heads.min: null is not allowed; give a whole number of at least 1, or leave it out"),
    ("heads: {max: {a: 1}}", "heads.max: a mapping is not allowed; give a whole number of at least 1"),
    ("detector: {recurring: 1}", "detector.recurring: 1 is not allowed; give true or false"),
    ("detector: {loss: true}", "detector.loss: true is not allowed; give keys under it: page_hinkley_threshold, "),
    ("gate: true", "gate: true is not allowed; give keys under it: kind, per, "),
    ("quantise: 8", "quantise: 8 is not allowed; give keys under it: bits, activations, from_samples, last_fraction"),
    ("learner: {memory: none}", "learner.memory: 'none' is not allowed; give keys under it: kind, rows, by_concept"),
    ("learner: {protect: ewc}", "learner.protect: 'ewc' is not allowed; give keys under it: kind, "),
    ("learner: {protect: {kind: [ewc]}}", 'learner.protect.kind: ["ewc"] is not allowed; give ewc, si or lwf'),
    ("learner: {readout: {half_lives: 500}}", "learner.readout.half_lives: 500 is not allowed; give a list of whole "),
    (
        "learner: {readout: {half_lives: [500.5]}}",
        "learner.readout.half_lives.0: 500.5 is not allowed; learner.readout.half_lives takes a list of whole numbers",
    ),
    ("initialisation: {kind: orthogonal}", "initialisation: a mapping is not allowed; give normal or orthogonal"),
    ("sharing: all", "sharing: 'all' is not allowed; give keys under it: attention, mlp, difference_rank, regroup"),
    (
        "sharing: {attention: 3}",
        "sharing.attention: 3 is not allowed; give none, all, pairs, cycle or sandwich or a list",
    ),
    (
        "sharing: {mlp: [0, x]}",
        'sharing.mlp: [0, "x"] is not allowed; give none, all, pairs, cycle or sandwich or a list',
    ),
    ("name: 3", "name: 3 is not allowed; give text"),
    # numbers and words that are not among those there are
    ("heads: {start: 0}", "heads.start: 0 is not allowed; give a whole number of at least 1"),
    ("heads: {cooldown_samples: -1}", "heads.cooldown_samples: -1 is not allowed; give a whole number of at least 0"),
    ("budget: {mean_heads: .inf}", "budget.mean_heads: Infinity is not allowed; give a number above 0 or null"),
    ("gate: {active_fraction: 1}", "gate.active_fraction: 1 is not allowed; give a number above 0 and below 1"),
    ("quantise: {bits: 2}", "quantise.bits: 2 is not allowed; give a whole number of at least 4 and of at most 8"),
    (
        "quantise: {activations: row}",
        "quantise.activations: 'row' is not allowed; give token or tensor",
    ),
    ("quantise: {last_fraction: 0}", "quantise.last_fraction: 0 is not allowed; give a number above 0 and of at most "),
    ("detector: {inputs: {window_rows: 8}}", "detector.inputs.window_rows: 8 is not allowed; give a whole number of "),
    ("learner: {memory: {rows: -5}}", "learner.memory.rows: -5 is not allowed; give a whole number of at least 0"),
    ("learner: {learning_rate: 1e-3x}", "learner.learning_rate: '1e-3x' is not allowed; give a number above 0"),
    ("learner: {learning_rate: 1e999}", "learner.learning_rate: Infinity is not allowed; give a number above 0"),
    (
        "initialisation: orthogonl",
        "initialisation: 'orthogonl' is not allowed; give normal or orthogonal (did you mean 'orthogonal'?)",
    ),
    ("learner: {optimizer: adam}", "learner.optimizer: 'adam' is not allowed; give adamw, adabelief, "),
    (
        "controller: {kind: learnt}",
        "controller.kind: 'learnt' is not allowed; give learned, look_ahead or none (did you ",
    ),
    # what does not go together
    ("heads: {min: 4, max: 2}", "heads: max is 2 but min is 4; raise max or lower min"),
    ("heads: {start: 12}", "heads: start is 12, outside min 1 to max 10; change one"),
    ("heads: {start: 2, min: 3}", "heads: start is 2, outside min 3 to max 10; change one"),
    ("budget: {mean_heads: 12}", "budget.mean_heads is 12, outside heads.min 1 to heads.max 10; change one"),
    (
        "{sharing: {regroup: {}}, controller: {kind: none}}",
        "sharing.regroup is given but controller.kind is none, which changes nothing; set controller.kind to ",
    ),
    ("sharing: {regroup: {price: -1}}", "sharing.regroup.price: -1 is not allowed; give a number of at least 0"),
    (
        "sharing: {difference_rank: 2}",
        "sharing.difference_rank is 2 but no layers share; set sharing.attention or sharing.mlp, or remove it",
    ),
    ("gate: {}\nlearner: {renew: {}}", "gate and learner.renew are both given, but renew judges hidden units by all "),
    ("adapters: {most: 0}", "adapters.most: 0 is not allowed; give a whole number of at least 1"),
    ("adapters: {rank: 8}", "adapters.rank: unknown key; known here: units, most"),
    (
        "adapters: {}\ndetector: {loss: null, inputs: null, pairs: null}",
        "adapters is given, one for each concept, but detector has no channel that would find one; give it one (",
    ),
    (
        "quantise: {from_samples: 500, last_fraction: 0.1}",
        "quantise: from_samples is 500 and last_fraction is 0.1, which both say when it begins; remove one",
    ),
    (
        "learner: {loss: der, memory: {rows: 0}}",
        "learner: loss is der but memory.rows is 0; give the memory rows or choose loss: er",
    ),
    ("learner: {readout: {half_lives: [0]}}", "learner.readout: half_lives is [0]; each must be at least 1 row"),
    (
        "controller: {kind: none, shared: lab}",
        "controller: shared is 'lab' but kind is none, which learns nothing that others could use; set kind: "
        "learned or remove shared",
    ),
    (
        "prune: {coarse: 0.3, fine: 0.2}",
        "prune: fine is 0.2 but coarse is 0.3, and fine counts all that goes; raise fine or lower coarse",
    ),
    ("prune: {coarse: 0, fine: 0}", "prune: coarse, fine and unstructured are 0, so that nothing goes; raise one or "),
    ("prune: {fine: 1}", "prune.fine: 1 is not allowed; give a number of at least 0 and below 1"),
    ("prune: {fine_by: taylor}", "prune.fine_by: 'taylor' is not allowed; give sensitivity or magnitude"),
    ("prune: {step: 3}", "prune.step"),
    (
        "prune: {unstructured: 0.5}",
        "prune.unstructured is 0.5 but controller.kind is learned, which puts back weights that were not zero; set ",
    ),
    (
        "{prune: {unstructured: 0.5}, controller: {kind: none}, learner: {renew: {}}}",
        "prune.unstructured and learner.renew are both given, but hidden units that begin anew have no zeros; remove ",
    ),
    # YAML that is none, or more than plain data
    ("", "is empty; give keys and values, such as 'name: my-run'"),
    ("# max: 4", "is empty; give keys and values, such as 'name: my-run'"),
    ("- heads", "holds [\"heads\"]; give keys and values, such as 'name: my-run'"),
    ("max heads four", "holds 'max heads four'; give keys and values, such as 'name: my-run'"),
    ("heads: {max: 2}\nheads: {max: 3}", "line 2, column 1: 'heads' is given twice; keep one of them"),
    ("heads: {max: 2, max: 3}", "line 1, column 17: 'max' is given twice; keep one of them"),
    (
        "heads: !!python/tuple [1, 2]",
        "line 1, column 8: the tag !!python/tuple is not allowed; remove it: a job or policy",
    ),
    (
        "heads: {max: !ten 10}",
        "line 1, column 14: the tag !ten is not allowed; remove it: a job or policy is plain data",
    ),
    (
        "heads: &a {max: 3}\ngate: *a",
        "line 2, column 7: '*' repeats a value by its anchor, which is not supported; write",
    ),
    ("heads:\n\tmax: 3", "line 2, column 1: a tab; indent with spaces"),
    ("heads: {max: 2", "line 2, column 1: is not YAML: expected ',' or '}'"),
    (
        "name: [2024-13-45]",
        "line 1, column 8: '2024-13-45' cannot be read (month must be in 1..12); put quotes around it",
    ),
]
"""Text of the file, and what is said of it after its name."""

IN_A_JOB = [
    (
        "sharing: {attention: [0, 0, 2]}",
        "sharing.attention is [0, 0, 2]; name for each of the 2 layers the first layer of its group",
    ),
    ("sharing: {mlp: []}", "sharing.mlp is []; name for each of the 2 layers the first layer of its group"),
    ("sharing: {mlp: [1, 1]}", "sharing.mlp is [1, 1]; name for each of the 2 layers the first layer of its group"),
    ("sharing: {mlp: [0, -1]}", "sharing.mlp is [0, -1]; name for each of the 2 layers the first layer of its group"),
    ("gate: {mlp_blocks: 3}", "gate.mlp_blocks is 3, which does not divide model.mlp_width 128; change one"),
    (
        "prune: {fine: 0.95}",
        "prune.fine is 0.95, but where every layer keeps heads.min 1 and a hidden unit, 0.933 can go; lower it or ",
    ),
    (
        "heads: {start: 4, min: 4}\nprune: {}",
        "prune.fine is 0.8, but where every layer keeps heads.min 4 and a hidden unit, 0.",
    ),
    (
        "quantise: {}",
        "quantise begins at a share of the job's samples, but there are none; give samples, or policy.quantise.from_",
    ),
    (
        "learner: {loss: er_ace}",
        "learner.loss is er_ace, which compares classes, but stream.task is regression; choose er",
    ),
]
"""Mistakes that only the job, of 2 layers and with a number to predict, shows."""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose job names the policy own.yaml."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(
        "stream: {source: csv, path: a.csv, target: t, task: regression, features: {numeric: [x]}}\n"
        "policy: own.yaml\n"
        "scale: {workers: 0}\n"
    )
    return tmp_path


def said(path: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_policy(path) if path == "own.yaml" else load_job(path, overrides)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize(("text", "words"), BY_ITSELF, ids=[text or "empty" for text, _ in BY_ITSELF])
def test_a_mistake_in_a_policy_file_is_told_alike_by_itself_and_in_a_job(here: Path, text: str, words: str) -> None:
    Path("own.yaml").write_text(text + "\n" if text else "")
    line = said("own.yaml")
    assert line.startswith(f"own.yaml: {words}") and said("job.yaml") == line
    for raw in ("Input should", "validation error", "Value error", "pydantic", "Extra inputs", "unhashable"):
        assert raw not in line


@pytest.mark.parametrize(("text", "words"), IN_A_JOB, ids=[text for text, _ in IN_A_JOB])
def test_a_policy_that_does_not_fit_its_job_is_what_is_named(here: Path, text: str, words: str) -> None:
    Path("own.yaml").write_text(text + "\n")
    assert said("job.yaml").startswith(f"own.yaml: {words}")


def test_a_policy_written_in_the_job_or_on_the_command_line_is_named_so(here: Path) -> None:
    Path("own.yaml").write_text("name: own\n")
    words = "policy.sharing.mlp is [0]; name for each of the 2 layers the first layer of its group"
    assert said("job.yaml", "policy.sharing.mlp=[0]") == f"command line: {words}"
    Path("job.yaml").write_text(Path("job.yaml").read_text().replace("own.yaml", "{sharing: {mlp: [0]}}"))
    assert said("job.yaml") == f"job.yaml: {words}"


def test_a_policy_that_quantises_needs_float32(here: Path) -> None:
    Path("own.yaml").write_text("quantise: {from_samples: 100}\n")
    words = "quantise is given, and bfloat16 would round what it rounds a second time; set model.precision to float32"
    assert words in said("job.yaml", "model.precision=bfloat16")


@pytest.mark.parametrize(
    ("text", "words"), [BY_ITSELF[1], BY_ITSELF[15], BY_ITSELF[-1], IN_A_JOB[0]], ids=["key", "null", "date", "layers"]
)
def test_the_command_says_it_in_one_line_with_status_2_and_leaves_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    Path("own.yaml").write_text(text + "\n")
    assert call(["run", "job.yaml", "--out", "run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"own.yaml: {words}")
    assert not Path("run").exists()
