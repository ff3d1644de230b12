"""Files among the artifacts of a run."""

import numpy as np
import pandas as pd

from sk_easytensor.tracking.artifacts import write_csv


def test_csv_cells_are_no_formulas(tmp_path):
    texts = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "a=b", "", None]
    frame = pd.DataFrame({"column": texts, "importance": -np.arange(9) / 8})
    write_csv(frame, tmp_path / "table.csv")
    found = pd.read_csv(tmp_path / "table.csv", keep_default_na=False, lineterminator="\n")
    guarded = ["'=1+1", "'+1", "'-1", "'@SUM(A1)", "'\tx", "'\rx", "a=b", "", ""]
    assert found["column"].tolist() == guarded
    assert found["importance"].tolist() == frame["importance"].tolist()
