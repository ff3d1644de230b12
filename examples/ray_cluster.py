"""Ray Tune, Ray Serve and Ray Jobs
================================

On a Ray cluster: a search with Ray Tune, a service with Ray Serve, a fit as a Ray job.

Trials of Tune are ordinary fits with a ``RayBackend``; a trial itself needs hardly a processor,
because its workers have theirs. A service loads the exported model, which needs neither torch nor
scikit-learn. A job is a script that the cluster runs, here this one.

Run it with ``python examples/ray_cluster.py``; it needs ``pip install "ray[default,serve,tune]"``
and takes three minutes, mostly to start processes. On a cluster of several machines, give
``ray.init`` its address, and put rows, storage and model where all machines reach them.
"""

import json
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import ray

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.backends import RayBackend
from sk_easytensor.datasets import load_clothing_reviews

ROWS = {"age": 34, "title": "Too small", "review_text": "I sent it back", "class_name": "Dresses"}


def main():
    """Search, serve the best model, and run the fit as a job."""
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        if "--job" in sys.argv:
            ray.init(log_to_driver=False)
            print("validation loss of the job:", round(fit(folder, 1e-2).best_score_, 3))
            return
        dashboard = ray.init(num_cpus=2, include_dashboard=True, log_to_driver=False).dashboard_url
        rate = search(folder)
        serve(fit(folder, rate), Path(folder))
        run_job(dashboard)
        ray.shutdown()


def write_files(folder):
    """Write reviews as Parquet files, as a cluster would have them."""
    reviews = load_clothing_reviews()
    rows = reviews.data[list(ROWS)].assign(recommended=reviews.target).head(2_000)
    for number in range(4):
        rows[500 * number : 500 * (number + 1)].to_parquet(folder / f"{number}.parquet")


def fit(folder, rate):
    """Train by one worker."""
    backend = RayBackend(num_workers=1, storage_path=f"{folder}/storage")
    model = EasyTensorClassifier(
        backend=backend, learning_rate=rate, max_epochs=3, n_folds=None, random_state=0
    )
    return model.fit(f"{folder}/*.parquet", "recommended")


def search(folder):
    """Return the learning rate that Ray Tune finds."""
    from ray import tune

    def trial(config):
        tune.report({"loss": fit(folder, config["rate"]).best_score_})

    tuner = tune.Tuner(
        # The workers reserve the processors.
        tune.with_resources(trial, {"CPU": 0.01}),
        param_space={"rate": tune.grid_search([3e-4, 3e-3])},
        tune_config=tune.TuneConfig(metric="loss", mode="min", max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=f"{folder}/tune", verbose=0),
    )
    best = tuner.fit().get_best_result()
    print(f"best rate: {best.config['rate']}, validation loss {best.metrics['loss']:.3f}")
    return best.config["rate"]


def serve(model, folder):
    """Serve a model with Ray Serve, and ask it once."""
    from ray import serve

    path = model.to_onnx(folder / "model.onnx")

    @serve.deployment(num_replicas=1, ray_actor_options={"num_cpus": 0.5})
    class Reviews:
        def __init__(self, path):
            from sk_easytensor.inference import load

            self.model = load(path)

        async def __call__(self, request):
            probabilities = self.model.predict_proba(await request.json())
            return probabilities[:, 1].tolist()

    serve.run(Reviews.bind(str(path)), route_prefix="/recommended")
    request = urllib.request.Request(
        "http://127.0.0.1:8000/recommended", json.dumps([ROWS]).encode()
    )
    with urllib.request.urlopen(request) as answer:
        served = json.loads(answer.read())
    print("probability of a recommendation, served:", round(served[0], 3))
    serve.shutdown()


def run_job(dashboard):
    """Run this script as a job of the cluster."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(f"http://{dashboard}")
    job = client.submit_job(entrypoint=f"{sys.executable} {Path(__file__).resolve()} --job")
    while not client.get_job_status(job).is_terminal():
        time.sleep(1)
    print(f"the job has {client.get_job_status(job).lower()}")
    print(client.get_job_logs(job).strip().splitlines()[-1])
    if client.get_job_status(job) != JobStatus.SUCCEEDED:
        sys.exit("the job has not succeeded")


if __name__ == "__main__":
    main()
