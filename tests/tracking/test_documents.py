"""The sections of the documentation that record runs."""

import pytest
from documents import sections

SECTIONS = [section for section in sections("docs/user_guide.md") if "mlflow" in section.marks]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
@pytest.mark.usefixtures("quick_fits", "work")
def test_section(section):
    section.run()
