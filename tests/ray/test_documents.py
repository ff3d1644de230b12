"""The sections of the documentation that need a cluster and a bucket, on a small one."""

import numpy as np
import pandas as pd
import pytest
from documents import sections

SECTIONS = [section for section in sections("docs/user_guide.md") if "ray" in section.marks]


@pytest.fixture
def bucket(tmp_path):
    """A directory with what the documentation has in a bucket."""
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {
            "id": range(120),
            "age": rng.integers(18, 90, 120),
            "city": rng.choice(["Oslo", "Lima"], 120),
            "review": "Fits well",
            "weight": 1.0,
            "clicked": rng.choice(["yes", "no"], 120),
            "user_id": rng.integers(0, 9, 120),
            "item_id": rng.integers(0, 5, 120),
        }
    )
    items = pd.DataFrame({"item_id": range(5), "price": 1.5})
    events = rows[["city", "age"]].assign(
        customer=rows["user_id"], day=pd.date_range("2026-01-01", periods=120)
    )
    for name, table in {"clicks": rows, "valid": rows, "new": rows, "events": events}.items():
        (tmp_path / name).mkdir()
        table.to_parquet(tmp_path / name / "part.parquet", index=False)
    items.to_parquet(tmp_path / "items.parquet", index=False)
    return tmp_path


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.name)
@pytest.mark.usefixtures("cluster", "quick_fits")
def test_section(section, bucket):
    predicts = "Predictions" in section.name
    section.run(
        [
            ("s3://bucket", str(bucket)),
            # Without workers, what trains is this process.
            ("num_workers=8, use_gpu=True", "num_workers=0"),
            ("num_workers=8", f"num_workers={int(predicts)}"),
            ('backend="ray"', "backend=RayBackend(num_workers=0)"),
        ]
    )
