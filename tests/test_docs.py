"""Pages that are written from the code say what the code says."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
from tests.conftest import script

import planaria
from planaria.job import Job, load_job
from planaria.settings import fields, sections

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture
def writer() -> ModuleType:
    return script(REPOSITORY / "docs" / "write_jobs_page.py")


def test_the_page_on_jobs_is_up_to_date(writer: ModuleType) -> None:
    assert writer.PAGE.read_text(encoding="utf-8") == writer.page(), "run `make docs`"


def test_every_setting_says_what_it_means() -> None:
    for key, field in fields(Job):
        assert field.description or any(section.__doc__ for section in sections(field.annotation)), key


def test_every_link_of_the_page_leads_to_one_of_its_headings(writer: ModuleType) -> None:
    page = writer.page()
    headings = {heading.replace(".", "") for heading in re.findall(r"^## `([\w.]+)`$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#(\w+)\)", page)) == headings


def test_the_example_of_the_page_is_a_job(writer: ModuleType, tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", writer.INTRODUCTION, re.DOTALL)
    (tmp_path / "job.yaml").write_text(example)
    assert load_job(tmp_path / "job.yaml").policy.name == "thrifty"


def test_the_job_of_the_readme_s_python_lines_can_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    (lines,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (loading,) = re.findall(r"^job = (.*)$", lines, re.MULTILINE)
    assert isinstance(eval(loading, {"planaria": planaria}), Job)


def test_every_table_has_rows_and_each_of_them_all_columns() -> None:
    tables = 0
    for page in (REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))):
        lines = [*page.read_text(encoding="utf-8").splitlines(), ""]
        for at in (at for at, line in enumerate(lines) if re.fullmatch(r"\|(\s*:?-+:?\s*\|)+", line)):
            end = next(below for below in range(at, len(lines)) if not lines[below].startswith("|"))
            assert end > at + 1, f"{page.name}, line {at + 1}: a table without rows"
            columns = {len(re.findall(r"(?<!\\)\|", line)) for line in lines[at - 1 : end]}
            assert len(columns) == 1, f"{page.name}, line {at + 1}: rows of several lengths"
            tables += 1
    assert tables > 20
