# ci: quick
"""Fits recorded in MLflow
=======================

Record fits in MLflow: parameters, curves, importances and models, side by side.

Each fit becomes a run in the database ``mlflow.db`` of the working directory (or where
``--tracking-uri`` says). Look at the runs with::

    mlflow ui --backend-store-uri sqlite:///mlflow.db
"""

import argparse

import mlflow

from sk_easytensor import MLP, EasyTensorClassifier, TabM
from sk_easytensor.datasets import load_clothing_reviews
from sk_easytensor.tracking import MLflowTracker


def main(tracking_uri=None):
    """Fit two networks as children of one run, and load the better one as a service would."""
    reviews = load_clothing_reviews()
    X = reviews.data[["age", "department_name", "class_name", "title", "review_text"]]
    train, test = slice(0, 1500), slice(1500, 2500)

    if tracking_uri is not None:
        mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_experiment("clothing reviews")
    # MLflow's pages then show models, rather than conversations.
    mlflow.set_experiment_tag("mlflow.experimentKind", "custom_model_development")
    models = {}
    with mlflow.start_run(run_name="two trunks"):
        for name, trunk in {"tabm": TabM(width=64), "mlp": MLP(width=64)}.items():
            tracker = MLflowTracker(run_name=name, tags={"rows": "1500"})
            model = EasyTensorClassifier(
                trunk=trunk, max_epochs=12, random_state=0, tracker=tracker
            )
            models[name] = model.fit(X[train], reviews.target[train])
            mlflow.log_metric(f"accuracy_{name}", model.score(X[test], reviews.target[test]))

    best = min(models.values(), key=lambda model: model.best_score_)
    for name, model in models.items():
        print(f"{name:5} validation log loss {model.best_score_:.4f}, run {model.run_id_}")

    served = mlflow.pyfunc.load_model(f"runs:/{best.run_id_}/model")
    new = X[test][:3]
    print(f"\nclasses predicted by the better one, loaded again: {served.predict(new).tolist()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tracking-uri")
    main(parser.parse_args().tracking_uri)
