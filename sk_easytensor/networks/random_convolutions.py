"""Features of series from convolutions with fixed kernels, which are not trained."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "RandomConvolutions",
    "differences",
    "fit_random_convolutions",
]


KERNEL_SIZE = 9
"""Number of steps of a kernel."""

PEAKS = list(combinations(range(KERNEL_SIZE), 3))
"""For each kernel, the three steps whose weight is 2; the others have a weight of -1."""

N_KERNELS = len(PEAKS)

MAX_DILATIONS = 32
"""Largest number of dilations."""

MAX_CHANNELS = 9
"""Largest number of channels that a kernel reads."""

CACHED_VALUES = 700_000
"""Number of outputs of convolutions that are computed at a time, so that they stay in a cache."""

BLOCK = 32
"""Number of steps of a block, within which steps are summed by position. The steps that follow a
series only add zeros, so that a sum does not depend on the other series of a batch."""

BEYOND = -1e9
"""Output at steps that do not count, below any bias."""

GOLDEN_RATIO = (math.sqrt(5) + 1) / 2


class RandomConvolutions(nn.Module):
    """Proportions and means of positive values of convolutions with fixed kernels.

    Each of 84 kernels of 9 steps is applied at several dilations, to the sum of a random subset of
    the channels. The features are, for several biases, the proportion of steps at which the
    convolution exceeds the bias, and the mean by which it does.

    Parameters
    ----------
    dilations : sequence of int
        Distance between the steps of a kernel, in increasing order.
    subsets : sequence of ndarray of bool, shape (84, n_channels)
        Channels that each kernel reads, for each dilation.
    biases : sequence of ndarray of float32, shape (84, n_biases)
        Biases of each kernel, for each dilation.

    Attributes
    ----------
    out_features : int
        Number of features, two for each bias.

    Notes
    -----
    The proportions are those of Dempster, Schmidt and Webb, "MiniRocket: A Very Fast (Almost)
    Deterministic Transform for Time Series Classification" (2021), and the means are one of the
    further features of Tan, Dempster, Bergmeir and Webb, "MultiRocket: Multiple Pooling Operators
    and Transformations for Fast and Effective Time Series Classification" (2022), who also
    transform the :func:`differences` of series. Half of the combinations of kernels and dilations
    also read the steps whose kernel extends beyond the series, where it is 0. The other half do
    not, unless a series is too short for any other step.

    Examples
    --------
    >>> subset, biases = np.ones((84, 1), dtype=bool), np.zeros((84, 2), dtype=np.float32)
    >>> convolutions = RandomConvolutions([1], [subset], [biases])
    >>> convolutions(torch.ones(3, 1, 20), torch.tensor([20, 5, 0])).shape
    torch.Size([3, 336])
    """

    def __init__(self, dilations, subsets, biases):
        super().__init__()
        self.dilations = [int(dilation) for dilation in dilations]
        kernels = kernel_weights()
        for index, (subset, bias) in enumerate(zip(subsets, biases, strict=True)):
            channels = torch.from_numpy(np.asarray(subset, dtype=np.float32))
            weights = (channels[:, :, None] * kernels[:, None, :]).flatten(1)
            # Two more inputs are BEYOND at the steps that do not count for either half of kernels.
            halves = functional.one_hot(kernel_halves(index), 2).float()
            self.register_buffer(f"weights_{index}", torch.cat([weights, halves], dim=1))
            self.register_buffer(f"biases_{index}", torch.from_numpy(np.array(bias, np.float32)))
        self.out_features = 2 * sum(bias.size for bias in biases)

    def forward(self, series, lengths):
        """Return the features of series.

        Parameters
        ----------
        series : torch.Tensor of float32, shape (n_series, n_channels, longest)
            Steps, followed by zeros.
        lengths : torch.Tensor of int64, shape (n_series,)
            Number of steps of each series.

        Returns
        -------
        torch.Tensor of float32, shape (n_series, out_features)
            For each dilation and kernel the proportions of all biases and then the means, 0 for
            empty series.
        """
        # Blocks of steps come before series, so that sums over blocks read contiguous memory.
        n_blocks = (series.shape[2] + BLOCK - 1) // BLOCK
        series = functional.pad(series, (0, BLOCK - 1))[:, :, : n_blocks * BLOCK]
        features = []
        for index, dilation in enumerate(self.dilations):
            inside, n_counted = counted_steps(lengths, series.shape[2], dilation)
            beyond = torch.where(inside, 0.0, BEYOND)
            if torch.compiler.is_compiling():
                # A graph must work for any number of rows.
                features.append(self._features(index, series, beyond, n_counted))
                continue
            step = max(1, CACHED_VALUES // (N_KERNELS * max(series.shape[2], 1)))
            parts = zip(
                series.split(step), beyond.split(step, 1), n_counted.split(step, 1), strict=True
            )
            parts = [self._features(index, *part) for part in parts]
            features.append(torch.cat(parts))
        return torch.cat(features, dim=1)

    def _features(self, index, series, beyond, n_counted):
        """Return the features of one dilation."""
        inputs = torch.cat([shifted_steps(series, self.dilations[index]), beyond])
        inputs = inputs.unflatten(2, (-1, BLOCK)).transpose(1, 2).flatten(2)
        outputs = torch.mm(getattr(self, f"weights_{index}"), inputs.flatten(1))
        outputs = outputs.unflatten(1, inputs.shape[1:])
        buffer = None if torch.compiler.is_compiling() else torch.empty_like(outputs)
        n_counted = n_counted.index_select(0, kernel_halves(index, series.device))
        proportions, means = [], []
        for bias in getattr(self, f"biases_{index}").unbind(1):
            excess = subtract(outputs, bias[:, None, None], buffer).relu_()
            total = sum_of_steps(excess)
            number = sum_of_steps(excess.sign_())
            proportions.append(number / n_counted)
            means.append(total / number.clamp(min=1))
        return torch.stack([*proportions, *means], dim=2).transpose(0, 1).flatten(1)


def differences(series, lengths):
    """Return the differences of neighbouring steps, and their number.

    Parameters
    ----------
    series : torch.Tensor of float32, shape (n_series, n_channels, longest)
        Steps, followed by zeros.
    lengths : torch.Tensor of int64, shape (n_series,)
        Number of steps of each series.

    Returns
    -------
    torch.Tensor of float32, shape (n_series, n_channels, longest)
        Differences, followed by zeros.
    torch.Tensor of int64, shape (n_series,)
        Number of differences of each series.

    Examples
    --------
    >>> differences(torch.tensor([[[1.0, 3.0, 0.0]]]), torch.tensor([2]))
    (tensor([[[2., 0., 0.]]]), tensor([1]))
    """
    number = (lengths - 1).clamp(min=0)
    inside = torch.arange(series.shape[2], device=lengths.device) < number[:, None]
    following = functional.pad(series[:, :, 1:], (0, 1))
    return torch.where(inside[:, None, :], following - series, 0.0), number


def kernel_weights():
    """Return the weights of all kernels, of shape (84, 9)."""
    weights = torch.full((N_KERNELS, KERNEL_SIZE), -1.0)
    weights[torch.arange(N_KERNELS)[:, None], torch.tensor(PEAKS)] = 2.0
    return weights


def kernel_halves(index, device=None):
    """Return the half of the kernels that each kernel belongs to.

    Parameters
    ----------
    index : int
        Position of the dilation among all dilations.
    device : torch.device, optional
        Device of the result.

    Returns
    -------
    torch.Tensor of int64, shape (84,)
        0 for kernels that also read the steps where they extend beyond a series, else 1.
    """
    return (torch.arange(N_KERNELS, device=device) + index) % 2


def subtract(first, second, buffer):
    """Return a difference, in the memory of a buffer unless it is None."""
    return first - second if buffer is None else torch.sub(first, second, out=buffer)


def sum_of_steps(values):
    """Return the sums over steps.

    Parameters
    ----------
    values : torch.Tensor of shape (84, n_blocks, n_series * 32)
        Values at the steps of each block.

    Returns
    -------
    torch.Tensor of shape (84, n_series)
    """
    return values.sum(1).unflatten(1, (-1, BLOCK)).sum(2)


def shifted_steps(series, dilation):
    """Return the steps that each weight of a kernel reads.

    Parameters
    ----------
    series : torch.Tensor of shape (n_series, n_channels, n_steps)
        Series.
    dilation : int
        Distance between the steps of a kernel.

    Returns
    -------
    torch.Tensor of shape (n_channels * 9, n_series, n_steps)
        Steps of the kernels that are centred at each step; a series is 0 beyond its ends.
    """
    n_steps = series.shape[2]
    reach = dilation * (KERNEL_SIZE // 2)
    padded = functional.pad(series, (reach, reach)).transpose(0, 1)
    starts = range(0, KERNEL_SIZE * dilation, dilation)
    shifted = [padded[:, :, start : start + n_steps] for start in starts]
    return torch.stack(shifted, dim=1).flatten(0, 1)


def counted_steps(lengths, n_steps, dilation):
    """Return the steps that count for both halves of the kernels, and their number.

    Parameters
    ----------
    lengths : torch.Tensor of int64, shape (n_series,)
        Lengths of the series.
    n_steps : int
        Number of steps of the padded series.
    dilation : int
        Distance between the steps of a kernel.

    Returns
    -------
    inside : torch.Tensor of bool, shape (2, n_series, n_steps)
        Whether a step counts, for each of the :func:`kernel_halves`.
    number : torch.Tensor of float32, shape (2, n_series)
        Number of steps that count, at least 1.
    """
    reach = dilation * (KERNEL_SIZE // 2)
    step = torch.arange(n_steps, device=lengths.device)
    alone = torch.where(lengths > 2 * reach, reach, 0)
    begin = torch.stack([torch.zeros_like(lengths), alone])
    end = lengths - begin
    inside = (step >= begin[:, :, None]) & (step < end[:, :, None])
    return inside, (end - begin).clamp(min=1).float()


@torch.no_grad()
def fit_random_convolutions(series, lengths, n_biases, seed=0):
    """Choose dilations, channels and biases from a sample of series.

    Parameters
    ----------
    series : torch.Tensor of float32, shape (n_series, n_channels, longest)
        Steps, followed by zeros.
    lengths : torch.Tensor of int64, shape (n_series,)
        Number of steps of each series.
    n_biases : int
        Number of biases of each kernel at all dilations together.
    seed : int, default=0
        Seed of the channels, and of the series from which biases are taken.

    Returns
    -------
    dilations : list of int
    subsets, biases : list of ndarray
        Arguments of :class:`RandomConvolutions`.
    """
    random = np.random.RandomState(seed)
    longest = int(lengths.max()) if len(lengths) else 0
    dilations, numbers = choose_dilations(longest, n_biases)
    present = torch.nonzero(lengths > 0)[:, 0].numpy()
    n_channels, kernels, first = series.shape[1], kernel_weights(), 0
    subsets, biases = [], []
    for index, (dilation, number) in enumerate(zip(dilations, numbers, strict=True)):
        subset = random_subsets(random, n_channels)
        # Quantiles of a sequence of low discrepancy, different for each kernel.
        order = np.arange(1, N_KERNELS * number + 1) + first
        levels = (order * GOLDEN_RATIO % 1).reshape(N_KERNELS, number)
        first += N_KERNELS * number
        values = np.zeros((N_KERNELS, number), dtype=np.float32)
        if len(present):
            # Each kernel reads a series of its own.
            rows = torch.from_numpy(random.choice(present, N_KERNELS))
            channels = torch.from_numpy(subset).float()[:, :, None]
            summed = (series[rows] * channels).sum(1, keepdim=True)
            outputs = torch.einsum("kw,wkn->kn", kernels, shifted_steps(summed, dilation))
            inside, counts = counted_steps(lengths[rows], outputs.shape[1], dilation)
            half, own = kernel_halves(index), torch.arange(N_KERNELS)
            outputs = torch.where(inside[half, own], outputs, torch.inf)
            values = quantiles(outputs.numpy(), counts[half, own].numpy(), levels)
        subsets.append(subset)
        biases.append(values)
    return dilations, subsets, biases


def quantiles(values, counts, levels):
    """Return quantiles of some values of each row, interpolated linearly.

    Parameters
    ----------
    values : ndarray of float32, shape (n_rows, n)
        Values, infinite where they do not count.
    counts : ndarray of float32, shape (n_rows,)
        Number of them, at least 1.
    levels : ndarray of float64, shape (n_rows, n_levels)
        Levels in [0, 1].

    Returns
    -------
    ndarray of float32, shape (n_rows, n_levels)
    """
    ordered = np.sort(values, axis=1)
    position = levels * (counts[:, None] - 1)
    below = np.floor(position).astype(np.int64)
    above = np.minimum(below + 1, counts[:, None].astype(np.int64) - 1)
    lower, upper = (np.take_along_axis(ordered, place, 1) for place in (below, above))
    return (lower + (position - below) * (upper - lower)).astype(np.float32)


def choose_dilations(longest, n_biases):
    """Return dilations, which grow exponentially, and the number of biases of each.

    Parameters
    ----------
    longest : int
        Number of steps of the longest series, within which the largest kernel lies.
    n_biases : int
        Number of biases of each kernel at all dilations together.

    Returns
    -------
    dilations, numbers : ndarray of int64, shape (n_dilations,)
    """
    n_dilations = min(n_biases, MAX_DILATIONS)
    exponent = math.log2(max((longest - 1) / (KERNEL_SIZE - 1), 1))
    grown = np.floor(2 ** np.linspace(0, exponent, n_dilations)).astype(np.int64)
    dilations, counts = np.unique(grown, return_counts=True)
    numbers = counts * n_biases // n_dilations
    # What rounding leaves over is given to the smallest dilations.
    left = n_biases - numbers.sum()
    numbers += left // len(numbers) + (np.arange(len(numbers)) < left % len(numbers))
    return dilations, numbers


def random_subsets(random, n_channels):
    """Return the channels that each kernel reads, ndarray of bool, shape (84, n_channels)."""
    subsets = np.ones((N_KERNELS, n_channels), dtype=bool)
    if n_channels == 1:
        return subsets
    exponent = math.log2(min(n_channels, MAX_CHANNELS) + 1)
    sizes = np.floor(2 ** random.uniform(0, exponent, N_KERNELS)).astype(np.int64)
    ranks = random.rand(N_KERNELS, n_channels).argsort(1).argsort(1)
    return ranks < sizes[:, None]
