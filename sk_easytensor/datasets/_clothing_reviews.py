"""The women's clothing reviews data set."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from sklearn.utils import Bunch

DATA = Path(__file__).parent / "data"
TARGET = "recommended_ind"


def load_clothing_reviews(*, return_X_y=False, as_frame=True):
    """Load the women's clothing reviews data set (binary classification).

    Each row is a customer's review of a piece of clothing from an online shop. The target is
    whether the customer recommends it. The columns are texts, categories and numbers, some with
    missing values. The data is part of the package: nothing is downloaded.

    =================   =============================================
    Classes             2
    Rows per class      4101 (not recommended), 18540 (recommended)
    Rows                22641
    Features            8: 2 texts, 4 categories, 2 numbers
    =================   =============================================

    Parameters
    ----------
    return_X_y : bool, default=False
        If True, return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=True
        If True, the data are a pandas DataFrame and the target a Series; otherwise they are an
        object array and an integer array.

    Returns
    -------
    data : :class:`~sklearn.utils.Bunch`
        Dictionary-like object, with the following attributes.

        data : {DataFrame, ndarray} of shape (22641, 8)
            The features.
        target : {Series, ndarray} of shape (22641,)
            1 if the customer recommends the piece, otherwise 0.
        feature_names : list of str
            The names of the feature columns.
        target_names : ndarray of shape (2,)
            The meaning of target 0 and 1.
        DESCR : str
            The full description of the data set.
        filename : str
            The path of the data file.

    (data, target) : tuple if ``return_X_y`` is True
        The features and the target described above.

    Notes
    -----
    The star rating given with each review is not part of the data: it nearly determines the
    target. Licence: CC0 (public domain).

    Examples
    --------
    >>> from sk_easytensor.datasets import load_clothing_reviews
    >>> reviews = load_clothing_reviews()
    >>> reviews.data.shape
    (22641, 8)
    >>> reviews.feature_names[:4]
    ['clothing_id', 'age', 'title', 'review_text']
    >>> print(reviews.data["review_text"].iloc[0])
    Absolutely wonderful - silky and sexy and comfortable
    >>> print(reviews.target_names[reviews.target.iloc[0]])
    recommended
    """
    filename = DATA / "clothing_reviews.parquet"
    data = pq.read_table(filename).to_pandas()
    target = data.pop(TARGET).astype("int64")
    feature_names = data.columns.tolist()
    if not as_frame:
        data, target = data.to_numpy(dtype=object), target.to_numpy()
    if return_X_y:
        return data, target
    return Bunch(
        data=data,
        target=target,
        feature_names=feature_names,
        target_names=np.array(["not recommended", "recommended"]),
        DESCR=(DATA / "clothing_reviews.md").read_text(encoding="utf-8"),
        filename=str(filename),
    )
