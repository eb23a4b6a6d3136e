"""Loading jobs: what a mistake in a job file, its policy or an override says, word for word."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planaria.errors import InputError
from planaria.job import Job, Scale, StreamSettings, dump_job, load_job
from planaria.policy import Budget, Controller, Detector, Heads, InputChannel, Learner, LossChannel, Memory, Policy

STREAM = "stream: {source: fashion_mnist}\n"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with jobs/, and policies/ that hold a good and a bad policy."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/good.yaml").write_text("name: good\nheads: {max: 5}\n")
    (tmp_path / "policies/bad.yaml").write_text("heads: {max: 2, min: 4}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, *overrides: str) -> Job:
    Path("jobs/x.yaml").write_text(text)
    return load_job(Path("jobs/x.yaml"), overrides)


def mistake(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load(text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


MISTAKES = [
    # not YAML, or YAML that is more than plain data
    ("", "is empty; give keys and values, such as 'name: my-run'"),
    ("- a\n", "holds [\"a\"]; give keys and values, such as 'name: my-run'"),
    ("a: [\n", "line 2, column 1: is not YAML: expected the node content, but found '<stream end>'"),
    ("a:\n\tb: 1\n", "line 2, column 1: a tab; indent with spaces"),
    (
        "a: !!python/object/apply:os.system [ls]",
        "line 1, column 4: the tag !!python/object/apply:os.system is not allowed; remove it: a job or policy is plain "
        "data",
    ),
    ("a: !run ls", "line 1, column 4: the tag !run is not allowed; remove it: a job or policy is plain data"),
    ("seed: 1\nname: a\nseed: 2\n", "line 3, column 1: 'seed' is given twice; keep one of them"),
    (
        "a: &x [1]\nb: *x",
        "line 2, column 4: '*' repeats a value by its anchor, which is not supported; write the value out",
    ),
    ("? [1]\n: 2", "line 1, column 3: a key must be text; write 'name: value'"),
    ("a: " + "[" * 3000, "is nested too deeply to be read; flatten it"),
    (
        "name: 2024-13-45",
        "line 1, column 7: '2024-13-45' cannot be read (month must be in 1..12); put quotes around it",
    ),
    ("name: 'a", "line 1, column 9: is not YAML: found unexpected end of stream"),
    # unknown and missing keys
    ("stream: {source: csv, featurs: 1}", "stream.featurs: unknown key (did you mean 'features'?)"),
    ("stream: {sorce: csv}", "stream.sorce: unknown key (did you mean 'source'?) (also wrong: stream.source)"),
    (STREAM + "workers: 2", "workers: unknown key (did you mean 'scale.workers'?)"),
    (
        STREAM + "model: {learning_rate: 1}",
        "model.learning_rate: unknown key (did you mean 'policy.learner.learning_rate'?)",
    ),
    (
        STREAM + "policy: {learner: {memory: {zzz: 1}}}",
        "policy.learner.memory.zzz: unknown key; known here: kind, rows, by_concept",
    ),
    (
        "stream: {path: x}",
        "stream.source: is missing; give text (parquet, arrow, csv, or a named set such as fashion_mnist)",
    ),
    # wrong types and bounds
    (STREAM + "seed: yes", "seed: true is not allowed; give a whole number of at least 0"),
    (STREAM + "seed: '3'", "seed: '3' is not allowed; give a whole number of at least 0"),
    (STREAM + "seed: 1.5", "seed: 1.5 is not allowed; give a whole number of at least 0"),
    (STREAM + "samples: 0", "samples: 0 is not allowed; give a whole number of at least 1 or null"),
    (STREAM + "name: 3", "name: 3 is not allowed; give text"),
    (STREAM + "record: {register_model: maybe}", "record.register_model: 'maybe' is not allowed; give true or false"),
    (
        STREAM + "storage: {keep_checkpoints: []}",
        "storage.keep_checkpoints: [] is not allowed; give a whole number of at least 1",
    ),
    (
        STREAM + "policy: {learner: {memory: 3}}",
        "policy.learner.memory: 3 is not allowed; give keys under it: kind, rows, by_concept",
    ),
    (
        STREAM + "scale: {workers: two}",
        "scale.workers: 'two' is not allowed; give a whole number or a list of 2 whole numbers",
    ),
    (
        "stream: {source: csv, features: {numeric: price}}",
        "stream.features.numeric: 'price' is not allowed; give a list of texts",
    ),
    (
        "stream: {source: csv, features: {numeric: [1]}}",
        "stream.features.numeric.0: 1 is not allowed; stream.features.numeric takes a list of texts",
    ),
    (
        STREAM + "policy: {learner: {loss: derpp}}",
        "policy.learner.loss: 'derpp' is not allowed; give naive, er, er_ace, der, der++ or a_gem "
        "(did you mean 'der'?)",
    ),
    (
        STREAM + "policy: {learner: {learning_rate: .nan}}",
        "policy.learner.learning_rate: NaN is not allowed; give a number above 0",
    ),
    (
        STREAM + "policy: {budget: {decision_fraction: 2}}",
        "policy.budget.decision_fraction: 2 is not allowed; give a number above 0 and of at most 1",
    ),
    # values that do not fit each other
    (STREAM + "policy: {heads: {max: 2, min: 4}}", "policy.heads: max is 2 but min is 4; raise max or lower min"),
    (
        STREAM + "policy: {budget: {mean_heads: 12}}",
        "policy: budget.mean_heads is 12, outside heads.min 1 to heads.max 10; change one",
    ),
    (STREAM + "policy: {heads: {start: 19}}", "policy.heads: start is 19, outside min 1 to max 10; change one"),
    (
        STREAM + "policy: {learner: {loss: der++, memory: {rows: 0}}}",
        "policy.learner: loss is der++ but memory.rows is 0; give the memory rows or choose loss: er",
    ),
    (
        "stream: {source: csv, path: a.csv, features: {numeric: [b]}, target: c, task: regression}\n"
        "policy: {learner: {loss: er_ace}}",
        "policy.learner.loss is er_ace, which compares classes, but stream.task is regression; choose er or der++",
    ),
    (
        "stream: {source: fashion_mnist, scenario: {kind: permuted, transition_samples: 100}}\n"
        "policy: {detector: {boundaries: told}}",
        "policy.detector.boundaries is told, but stream.scenario has transition_samples, and a change that comes "
        "gradually has no boundary; set them to 0 or choose detected",
    ),
    (STREAM + "scale: {workers: -1}", "scale: workers is -1; give a number of at least 0, or a pair such as [1, 4]"),
    (
        STREAM + "scale: {workers: [3, 2]}",
        "scale: workers is [3, 2]; give a number of at least 0, or a pair such as [1, 4]",
    ),
    (STREAM + "scale: {workers: [0, 2]}", "scale: workers is [0, 2]; an elastic run has at least 1 worker"),
    (
        STREAM + "scale: {workers: 4, shards: 2}",
        "scale: shards is 2 but workers may be 4; raise shards or lower workers",
    ),
    (
        STREAM + "batch_rows: 2\nscale: {workers: 4}",
        "batch_rows is 2 but scale needs 4 parts of a batch; raise batch_rows or lower scale.workers or scale.shards",
    ),
    # the policy
    (STREAM + "policy: god", "policy: there is no policy 'god' (did you mean 'good'?)"),
    (
        STREAM + "policy: zzz",
        "policy: there is no policy 'zzz'; give the path of a policy file, relative to the job file",
    ),
    (
        STREAM + "policy: {gate: {mlp_blocks: 3}}",
        "policy.gate.mlp_blocks is 3, which does not divide model.mlp_width 128; change one",
    ),
    (
        STREAM + "policy: {gate: {}}\nmodel: {compile_after_rows: 0}",
        "policy.gate is given, and what rows leave out cannot be compiled; remove model.compile_after_rows",
    ),
    (
        STREAM + "policy: {gate: {}, learner: {renew: {}}}",
        "policy: gate and learner.renew are both given, but renew judges hidden units by all rows, and gates leave "
        "rows out; remove one",
    ),
]


@pytest.mark.parametrize(("text", "words"), MISTAKES, ids=[words[:60] for _, words in MISTAKES])
def test_a_mistake_in_a_job_says_where_what_and_what_to_do(project: Path, text: str, words: str) -> None:
    assert mistake(text) == f"jobs/x.yaml: {words}"


OVERRIDES = [
    ("foo", "'foo' is no setting; write key.path=value, such as policy.heads.max=8"),
    ("=3", "'=3' is no setting; write key.path=value, such as policy.heads.max=8"),
    ("a..b=3", "'a..b=3' is no setting; write key.path=value, such as policy.heads.max=8"),
    ("seed=x", "seed: 'x' is not allowed; give a whole number of at least 0"),
    ("seed.x=3", "seed: a mapping is not allowed; give a whole number of at least 0"),
    ("polcy.heads.max=3", "polcy: unknown key (did you mean 'policy'?)"),
    ("policy.heads.mx=3", "policy.heads.mx: unknown key (did you mean 'max'?)"),
    ("policy.heads.min=6", "policy.heads: max is 5 but min is 6; raise max or lower min"),
    ("name=[a", "name: line 1, column 3: is not YAML: expected ',' or ']', but got '<stream end>'"),
    (
        "stream.scenario.contexts.2.samples=9",
        "stream.scenario.contexts.2: '2' is not the number of an item; the list has 1",
    ),
]


@pytest.mark.parametrize(("override", "words"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
def test_a_mistake_in_an_override_names_the_command_line(project: Path, override: str, words: str) -> None:
    job = "stream: {source: fashion_mnist, scenario: {contexts: [{name: a, samples: 3}]}}\npolicy: good\n"
    assert mistake(job, override) == f"command line: {words}"


def test_a_mistake_in_a_policy_file_names_that_file(project: Path) -> None:
    words = "policies/bad.yaml: heads: max is 2 but min is 4; raise max or lower min"
    assert mistake(STREAM + "policy: bad") == words
    assert mistake(STREAM + "policy: ../policies/bad.yaml") == words
    assert mistake(STREAM + "policy: good", "policy=bad") == words


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("jobs/y.yaml", "jobs/y.yaml: no such file (did you mean 'x.yaml'?)"),
        ("jobs", "jobs: is a folder; give a YAML file"),
        ("nowhere/x.yaml", "nowhere/x.yaml: no such file; check the path"),
        ("jobs/latin.yaml", "jobs/latin.yaml: is not text in UTF-8; save it as UTF-8"),
        ("jobs/big.yaml", "jobs/big.yaml: is larger than 250,000 bytes; this is not a job or policy"),
    ],
)
def test_a_job_file_that_cannot_be_read_says_why(project: Path, path: str, words: str) -> None:
    Path("jobs/x.yaml").write_text(STREAM)
    Path("jobs/latin.yaml").write_bytes(b"name: caf\xe9")
    Path("jobs/big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(InputError) as caught:
        load_job(path)
    assert str(caught.value) == words


def test_several_mistakes_are_named_in_one_line(project: Path) -> None:
    message = mistake(STREAM + "seed: -1\nbatch_rows: 0\nnmae: x")
    assert message == "jobs/x.yaml: nmae: unknown key (did you mean 'name'?) (also wrong: seed, batch_rows)"


def test_a_policy_may_be_a_name_a_path_or_written_in_the_job(project: Path) -> None:
    for policy in (
        "good",
        "../policies/good.yaml",
        str(project / "policies/good.yaml"),
        "{name: good, heads: {max: 5}}",
    ):
        assert load(STREAM + f"policy: {policy}").policy == Policy(name="good", heads=Heads(max=5))


def test_a_job_without_a_policy_gets_the_default_one(project: Path) -> None:
    assert load(STREAM).policy == Policy()
    assert load(STREAM + "policy: null").policy == Policy()


def test_overrides_are_read_as_yaml_in_the_order_given(project: Path) -> None:
    job = load(
        STREAM + "policy: bad",
        "policy=good",
        "policy.heads.max=8",
        "scale.workers=[1, 4]",
        "policy.learner.learning_rate=1e-4",
        "policy.detector.inputs=null",
        "policy.detector.predictions.window_rows=64",
        "samples=5000",
        "seed=1",
        "seed=2",
    )
    assert job.policy.heads.max == 8
    assert job.scale.workers == (1, 4)
    assert job.policy.learner.learning_rate == 1e-4
    assert job.policy.detector.inputs is None
    assert job.policy.detector.predictions == InputChannel(window_rows=64)
    assert (job.samples, job.seed) == (5000, 2)


def test_an_override_changes_one_item_of_a_list(project: Path) -> None:
    job = load(
        "stream: {source: fashion_mnist, scenario: {contexts: [{name: a, samples: 3}, {name: b, samples: 4}]}}",
        "stream.scenario.contexts.1.samples=9",
    )
    assert job.stream.scenario is not None
    assert [context.samples for context in job.stream.scenario.contexts] == [3, 9]


def test_data_paths_are_made_absolute_but_not_uris(project: Path) -> None:
    source = "stream: {source: csv, path: '%s'}"
    assert load(source % "data/*.csv").stream.path == os.path.join(os.getcwd(), "data/*.csv")
    assert load(source % "~/x.csv").stream.path == os.path.expanduser("~/x.csv")
    assert load(source % "s3://bucket/x.csv").stream.path == "s3://bucket/x.csv"


text = st.text(string.printable + "äöü#:{}[]&*!|>'\"%@`~", max_size=12)
word = (
    st.sampled_from(["no", "1e5", "null", "1_000", "0x1f", "12:30:00", "2024-01-01", "=", "<<", "~", "- a", "1e-3"])
    | text
)


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_min=True, exclude_max=True, allow_nan=False)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    low = draw(st.integers(1, 4))
    high = draw(st.integers(low, 12))
    channel = st.none() | st.builds(InputChannel, significance=numbers(0, 0.5))
    return Policy(
        name=draw(word),
        heads=Heads(min=low, max=high, start=draw(st.integers(low, high))),
        budget=Budget(parameters=draw(st.none() | st.integers(1, 10**9)), price=draw(numbers(0, 1e30))),
        detector=Detector(
            loss=draw(st.none() | st.builds(LossChannel, adwin_delta=numbers(0, 1))),
            inputs=draw(channel),
            predictions=draw(channel),
        ),
        controller=draw(st.builds(Controller, kind=st.sampled_from(["look_ahead", "none"]), certainty=numbers(0, 1e9))),
        learner=draw(
            st.builds(
                Learner,
                loss=st.sampled_from(["er", "er_ace", "der", "der++"]),
                memory=st.builds(Memory, rows=st.integers(1, 10**6)),
                learning_rate=numbers(0, 1),
            )
        ),
    )


folder_name = word.map(lambda text: re.sub(r"[/\\\x00-\x1f\x7f]", "_", f"a{text}")[:100])


@given(policies(), folder_name, st.integers(0, 2**63), st.none() | word.filter(bool))
def test_a_dumped_job_reads_back_as_an_equal_one(
    tmp_path_factory: pytest.TempPathFactory, policy: Policy, name: str, seed: int, target: str | None
) -> None:
    job = Job(
        name=name,
        seed=seed,
        policy=policy,
        scale=Scale(workers=(1, 4)),
        stream=StreamSettings(source="csv", path="/data/x.csv", target=target),
    )
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(dump_job(job), encoding="utf-8")
    assert load_job(path) == job
