# ci: quick
"""A search over blocks and networks
=================================

Search over the parameters of a block and of the network, inside a scikit-learn pipeline.

Every part is a parameter object with a name: ``blocks__numeric__embedding`` reaches into the block
called "numeric", ``trunk__dropout`` into the network behind the blocks. Columns that no block names
are read by their type.
"""

import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer

from sk_easytensor import EasyTensorClassifier, NumericBlock


def make_loans(n_rows, seed=0):
    """Invent loans of which some are repaid late."""
    random = np.random.default_rng(seed)
    loans = pd.DataFrame(
        {
            "income": random.lognormal(10, 0.6, n_rows),
            "debt": random.lognormal(9, 0.9, n_rows),
            "purpose": random.choice(["car", "home", "studies", None], n_rows),
            "granted": pd.Timestamp("2024-01-01")
            + pd.to_timedelta(random.integers(0, 700, n_rows), "D"),
        }
    )
    risk = 2 * np.log(loans["debt"] / loans["income"]) + 1.5 * (loans["purpose"] == "car")
    late = risk + random.logistic(size=n_rows) > 0
    return loans, np.where(late, "late", "in time")


def add_debt_ratio(loans):
    """Put debt in relation to income."""
    return loans.assign(debt_ratio=loans["debt"] / loans["income"])


def main():
    """Search, and print what was found."""
    loans, outcome = make_loans(1000)
    pipeline = Pipeline(
        [
            ("ratio", FunctionTransformer(add_debt_ratio)),
            (
                "model",
                EasyTensorClassifier(
                    blocks=[("numeric", NumericBlock(), ["income", "debt", "debt_ratio"])],
                    max_epochs=10,
                    random_state=0,
                    n_jobs=1,
                ),
            ),
        ]
    )
    grid = {
        "model__blocks__numeric__embedding": ["piecewise", "periodic"],
        "model__blocks__numeric__width": [4, 8],
        "model__trunk__dropout": [0.0, 0.2],
    }
    search = GridSearchCV(pipeline, grid, scoring="neg_log_loss", cv=3)
    search.fit(loans, outcome)

    tried = pd.DataFrame(search.cv_results_["params"])
    tried.columns = tried.columns.str.removeprefix("model__")
    tried["log loss"] = -search.cv_results_["mean_test_score"]
    print(tried.sort_values("log loss").to_string(index=False, float_format="{:.3f}".format))
    print(f"\nnew loans: {search.predict(make_loans(5, seed=1)[0]).tolist()}")


if __name__ == "__main__":
    main()
