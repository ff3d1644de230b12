"""Check training and inference on a GPU against those on the CPU, in under eight minutes.

Parts, any of which can be chosen with ``--parts``; each prints figures, and whether they are as
wanted:

- parity: a model fitted on the CPU and moved to the device predicts the same, and a model fitted on
  the device is as good.
- speed: rows trained in a second on the device and on the CPU, by number of rows of a batch.
- waits: how often a training epoch waits for the device, with few batches and with many.
- bf16: the loss of a network trained in bfloat16 beside that of one trained in float32.
- nccl: gradients averaged in a group of one worker are unchanged.
- tensorrt: an engine that is built and run there, beside torch on the same device.

Run it wherever a GPU is at hand::

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts speed --rows 1000000
    python benchmarks/gpu.py --device cpu --rows 5000    # a trial of the script itself
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from unittest import mock

import numpy as np
import pandas as pd
import torch
import torch.distributed as distributed
from sklearn.metrics import log_loss

from sk_easytensor import EasyTensorClassifier
from sk_easytensor.training import net
from sk_easytensor.training.distributed import ProcessGroup

PARTS = ["parity", "speed", "waits", "bf16", "nccl", "tensorrt"]
BATCH_SIZES = [256, 4_096, 65_536]


def main():
    """Run the parts asked for; exit with 1 if one is not as wanted."""
    options = parse_options()
    if options.device.startswith("cuda"):
        if not torch.cuda.is_available():
            sys.exit("There is no GPU that torch can use; --device cpu tries the script itself")
        print(torch.cuda.get_device_name(), torch.version.cuda)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    failed = []
    for part in options.parts:
        begin = time.perf_counter()
        print(f"\n== {part}", flush=True)
        if not globals()[f"check_{part}"](options):
            failed.append(part)
        print(f"{time.perf_counter() - begin:.0f} s", flush=True)
    if failed:
        sys.exit(f"\nNot as wanted: {', '.join(failed)}")
    print("\nAll as wanted")


def parse_options():
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--device", default="cuda", help="device that is compared with the CPU")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to check")
    add("--rows", type=int, default=200_000, help="rows of the table")
    add("--cpu-rows", type=int, default=20_000, help="rows of it that the CPU trains on")
    return parser.parse_args()


def make_rows(n_rows, seed=0):
    """Return a table of numbers, categories and a date, and two classes."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({f"x{index}": random.normal(size=n_rows) for index in range(10)})
    for index in range(5):
        names = np.array([f"v{value}" for value in range(4 ** (index + 1))])
        frame[f"c{index}"] = random.choice(names, n_rows)
    days = random.integers(0, 1_000, n_rows)
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(days, "D")
    frame.loc[random.random(n_rows) < 0.1, "x1"] = np.nan
    score = frame["x0"] * (frame["c0"] == "v1") + np.sin(2 * frame["x2"]) + days / 500
    return frame, (score + random.normal(size=n_rows) > score.median()).to_numpy()


def fit(X, y, device, **params):
    """Return a classifier without trees and linear model, fitted on a device."""
    settings = {"trees": None, "linear": None, "max_epochs": 2, "random_state": 0, "n_jobs": -1}
    return EasyTensorClassifier(device=device, **{**settings, **params}).fit(X, y)


def report(label, value, wanted, met):
    """Print a figure and whether it is as wanted; return the latter."""
    print(f"{label:58}{value:>14}   wanted {wanted}: {'yes' if met else 'NO'}", flush=True)
    return met


def synchronize(device):
    """Wait until a device has done its work."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def check_parity(options):
    """Compare predictions on the device with those on the CPU."""
    X, y = make_rows(min(options.rows, 20_000))
    test, truth = make_rows(5_000, seed=1)
    on_cpu = fit(X, y, "cpu", max_epochs=4)
    expected = on_cpu.predict_proba(test)
    moved = difference_on(on_cpu, test, options.device)
    losses = (
        log_loss(truth, expected),
        log_loss(truth, fit(X, y, options.device, max_epochs=4).predict_proba(test)),
    )
    same = report("largest difference of outputs", f"{moved:.1e}", "< 1e-3", moved < 1e-3)
    gap = losses[1] / losses[0] - 1
    good = report("log loss, trained there over on the CPU", f"{gap:+.2%}", "< 1%", gap < 0.01)
    return same and good


def difference_on(model, X, device):
    """Return the largest difference of a network's outputs on the CPU and on a device."""
    from sk_easytensor.data.tables import as_table
    from sk_easytensor.executor import LocalExecutor

    frame = model._encoder.encode_table(as_table(X), LocalExecutor(1), new_values=True)
    network = model.network_.eval()
    with torch.no_grad():
        expected = network(frame)
        found = network.to(device)(frame.to(device)).cpu()
    network.to("cpu")
    return float((found - expected).abs().max())


def check_speed(options):
    """Print rows trained in a second by device and size of the batch."""
    X, y = make_rows(options.rows)
    met = True
    print(f"{'rows of a batch':20}{'device, rows/s':>18}{'CPU, rows/s':>18}{'ratio':>10}")
    for batch_size in BATCH_SIZES:
        if batch_size > options.rows:
            continue
        n_cpu = min(options.rows, options.cpu_rows)
        rates = []
        for device, n_rows in ((options.device, options.rows), ("cpu", n_cpu)):
            size = min(batch_size, n_rows)
            model = fit(X[:n_rows], y[:n_rows], device, batch_size=size, validation_fraction=None)
            # The first epoch allocates memory.
            rates.append(n_rows / model.fit_times_["epochs"][-1])
        ratio = rates[0] / rates[1]
        print(f"{batch_size:<20,}{rates[0]:18,.0f}{rates[1]:18,.0f}{ratio:10.1f}", flush=True)
        met = met and rates[0] > 0
    return met


def check_waits(options):
    """Compare how often an epoch waits for the device with few and with many batches."""
    if not options.device.startswith("cuda"):
        print("only on a GPU")
        return True
    X, y = make_rows(min(options.rows, 20_000))
    counts = []
    for batch_size in (2_000, 250):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                fit(X, y, options.device, batch_size=batch_size)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits = [entry for entry in caught if "synchroniz" in str(entry.message)]
        counts.append(len(waits))
        where = sorted({f"{os.path.basename(entry.filename)}:{entry.lineno}" for entry in waits})
        print(f"batches of {batch_size:,}: {len(waits)} waits, in {where[:12]}")
    n_more = 2 * (len(X) // 250 - len(X) // 2_000)
    each = (counts[1] - counts[0]) / n_more
    return report("waits for each further batch", f"{each:.2f}", "< 0.1", each < 0.1)


def check_bf16(options):
    """Compare the log loss after training in bfloat16 with that in float32."""
    X, y = make_rows(min(options.rows, 50_000))
    test, truth = make_rows(10_000, seed=1)
    losses, seconds = [], []
    for enabled in (True, False):
        with mock.patch.object(net, "supports_bfloat16", lambda device, on=enabled: on):
            model = fit(X, y, options.device, max_epochs=4)
        losses.append(log_loss(truth, model.predict_proba(test)))
        seconds.append(model.fit_times_["epochs"][-1])
    print(f"an epoch takes {seconds[0] / seconds[1]:.2f} times that in float32")
    gap = losses[0] / losses[1] - 1
    return report("log loss, bfloat16 over float32", f"{gap:+.2%}", "< 0.5%", gap < 0.005)


def check_nccl(options):
    """Average the gradients of one worker, which leaves them as they are."""
    kind = "cuda" if options.device.startswith("cuda") else "cpu"
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            init_method=f"file://{folder}/store",
            rank=0,
            world_size=1,
        )
        try:
            group = ProcessGroup(kind)
            parameters = [torch.nn.Parameter(torch.randn(64, 64, device=kind)) for _ in range(20)]
            for parameter in parameters:
                parameter.grad = torch.randn_like(parameter)
            expected = [parameter.grad.clone() for parameter in parameters]
            group.average_gradients(parameters, 256)
            synchronize(kind)
            begin = time.perf_counter()
            for _ in range(100):
                group.average_gradients(parameters, 256)
            synchronize(kind)
            each = (time.perf_counter() - begin) / 100
        finally:
            distributed.destroy_process_group()
    same = all(
        torch.allclose(parameter.grad, gradient, rtol=1e-4)
        for parameter, gradient in zip(parameters, expected, strict=True)
    )
    print(f"averaging {20 * 64 * 64:,} numbers takes {1e3 * each:.2f} ms")
    return report("gradients unchanged", str(same), "True", same)


def check_tensorrt(options):
    """Build an engine, run it, and compare it with torch on the same device."""
    if not options.device.startswith("cuda"):
        print("only on a GPU")
        return True
    from sk_easytensor.inference import TensorRTPredictor

    X, y = make_rows(min(options.rows, 20_000))
    test, _ = make_rows(4_096, seed=1)
    model = fit(X, y, options.device)
    expected, met = model.predict_proba(test), True
    for precision, tolerance in (("fp32", 1e-3), ("fp16", 2e-2), ("bf16", 5e-2)):
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            path = model.to_tensorrt(f"{folder}/model.engine", precision=precision)
            built = time.perf_counter() - begin
            predictor = TensorRTPredictor(model, path)
            gap = float(np.abs(predictor.predict_proba(test) - expected).max())
            begin = time.perf_counter()
            for _ in range(10):
                predictor.predict_proba(test)
            each = (time.perf_counter() - begin) / 10
        begin = time.perf_counter()
        for _ in range(10):
            model.predict_proba(test)
        ratio = each / ((time.perf_counter() - begin) / 10)
        print(f"{precision}: built in {built:.1f} s, {ratio:.2f} times the time of the estimator")
        label = f"{precision}: largest difference of probabilities"
        met = report(label, f"{gap:.1e}", f"< {tolerance}", gap < tolerance) and met
    return met


if __name__ == "__main__":
    main()
