"""Two towers against popularity, EASE, and ALS and BPR of the package implicit, on MovieLens.

Interactions are split at random for each user, eight parts to train on, one to validate and one
to test, or with ``--split time`` by time; all movies are ranked, but for those the user is known to
have rated, and recall and NDCG are taken of the first ten. Two towers read identifiers only, or
what is known of users and movies and what users rated as well; two more are models without any
parameter. Cold start: a tenth of the movies has no interaction to train on and is ranked among
themselves, by features alone.
``rec_ml100k.parquet`` has the ratings.

    python benchmarks/data_sets/two_tower.py --data directory --seeds 3
    python benchmarks/data_sets/two_tower.py --data directory --split time --models EASE defaults
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.sparse import csr_matrix

from sk_easytensor import (
    CategoryBlock,
    CategorySequenceBlock,
    EasyTensorTwoTower,
    NumericBlock,
    TextBlock,
)
from sk_easytensor.ranking import (
    ndcg_at_k,
    recall_at_k,
    recommend_ease,
    recommend_popular,
    split_interactions,
)

PARTS = ["movies", "cold"]
USER_COLUMNS = ["user_id", "age", "gender", "occupation"]
ITEM_COLUMNS = ["movie_id", "movie_title", "release_year", "genres"]
RIDGE = 300.0
KEYS = {"user": "user_id", "item": "movie_id"}


def main():
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--data", required=True, help="directory of rec_ml100k.parquet")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    add("--seeds", type=int, default=3, help="splits and fits of each model")
    add("--split", choices=["random", "time"], default="random", help="how to split interactions")
    add("--models", nargs="+", default=[""], help="only models whose name has one of these")
    add("--threads", type=int, default=1, help="threads")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ratings = pd.read_parquet(Path(options.data) / "rec_ml100k.parquet")
    if "movies" in options.parts:
        compare(ratings, options)
    if "cold" in options.parts:
        cold_start(ratings, options)


def split(ratings, seed):
    """Return the rows to train on, to validate and to test, shares of each user's rows."""
    random = np.random.default_rng(seed)
    user = ratings["user_id"].to_numpy()
    order = np.lexsort((random.random(len(user)), user))
    count = np.bincount(user)[user[order]]
    place = np.arange(len(user)) - np.searchsorted(user[order], user[order])
    held = np.maximum(count // 10, 1)
    part = (place >= count - 2 * held).astype(int) + (place >= count - held)
    return [ratings.iloc[np.sort(order[part == number])] for number in range(3)]


def chosen(rows, users):
    """Return the movies of each user as lists."""
    lists = rows.groupby("user_id")["movie_id"].agg(list)
    return [lists.get(user, []) for user in users]


def compare(ratings, options):
    """Print recall and NDCG of each model, means over seeds."""
    models = {
        "popularity": popularity,
        "EASE": ease,
        "ALS of implicit": partial(factors, "als"),
        "BPR of implicit": partial(factors, "bpr"),
        "two towers, ids": two_towers,
        "two towers, features and histories": with_features,
        "defaults, ids": partial(defaults, ["user_id"], ["movie_id"]),
        "defaults, all columns": partial(defaults, USER_COLUMNS, ITEM_COLUMNS),
    }
    models = {
        name: model
        for name, model in models.items()
        if any(part in name for part in options.models)
    }
    users = np.unique(ratings["user_id"])
    figures = {name: [] for name in models}
    for seed in range(options.seeds):
        train, valid, test = (split if options.split == "random" else split_by_time)(ratings, seed)
        if options.split == "time":
            # Nothing is known of users who come later.
            users = np.intersect1d(train["user_id"], test["user_id"])
        seen = chosen(pd.concat([train, valid]), users)
        wanted = chosen(test, users)
        for name, recommend in models.items():
            begun = time.process_time()
            found = recommend(train, valid, users, seen, seed, options)
            if found is None:
                print(f"{name} is skipped: implicit is not installed", flush=True)
                continue
            seconds = time.process_time() - begun
            measures = recall_at_k(wanted, found), ndcg_at_k(wanted, found)
            figures[name].append([*measures, seconds])
            print(f"seed {seed} {name:36}" + "".join(f"{x:9.4f}" for x in measures), flush=True)
    title = f"mean of {options.seeds} seeds"
    print(f"\n{title:36}{'recall@10':>10}{'NDCG@10':>10}{'CPU s':>8}")
    for name, rows in figures.items():
        if not rows:
            continue
        recall, ndcg, seconds = np.mean(rows, axis=0)
        print(f"{name:36}{recall:10.4f}{ndcg:10.4f}{seconds:8.1f}")


def split_by_time(ratings, seed):
    """Return the first rows to train on, later ones to validate, and the last fifth to test."""
    rest, test = split_interactions(ratings, size=0.2, time="timestamp")
    return *split_interactions(rest, size=0.1, time="timestamp"), test


def popularity(train, valid, users, seen, seed, options):
    """Recommend what most users rated."""
    return recommend_popular(pd.concat([train, valid]), users, **KEYS)


def ease(train, valid, users, seen, seed, options):
    """Recommend by Steck, "Embarrassingly Shallow Autoencoders for Sparse Data" (2019)."""
    rows = pd.concat([train, valid])
    return recommend_ease(rows, users, **KEYS, regularization=RIDGE)


def factors(kind, train, valid, users, seen, seed, options):
    """Recommend by matrix factorization of the package implicit; None if it is not installed."""
    try:
        from implicit.als import AlternatingLeastSquares
        from implicit.bpr import BayesianPersonalizedRanking
    except ImportError:
        return None
    rows = pd.concat([train, valid])
    people, movies = np.unique(rows["user_id"]), np.unique(rows["movie_id"])
    places = np.searchsorted(people, rows["user_id"]), np.searchsorted(movies, rows["movie_id"])
    met = csr_matrix((np.ones(len(rows), dtype=np.float32), places))
    params = {"factors": 64, "random_state": seed, "num_threads": options.threads}
    if kind == "als":
        model = AlternatingLeastSquares(regularization=50.0, alpha=10.0, **params)
    else:
        model = BayesianPersonalizedRanking(iterations=300, **params)
    model.fit(met, show_progress=False)
    known = np.searchsorted(people, users)
    found, _ = model.recommend(known, met[known], N=10, filter_already_liked_items=True)
    return movies[found]


def two_towers(train, valid, users, seen, seed, options):
    """Recommend by products of vectors of users and movies."""
    model = EasyTensorTwoTower(
        [("user", CategoryBlock(width=128), "user_id")],
        [("movie", CategoryBlock(width=128), "movie_id")],
        embedding_dim=128,
        n_negatives=2048,
        dropout=0.5,
        batch_size=2048,
        max_epochs=60,
        random_state=seed,
        n_jobs=options.threads,
    )
    known = valid[valid["movie_id"].isin(train["movie_id"])]
    columns = ["user_id", "movie_id"]
    model.fit(train[columns], item_key="movie_id", eval_set=[known[columns]])
    return model.recommend({"user_id": users}, exclude=seen)[0]


def defaults(user_columns, item_columns, train, valid, users, seen, seed, options):
    """Recommend by a model without any parameter, fitted on training and validation rows."""
    rows = pd.concat([train, valid]).sort_index().astype({"user_id": str, "movie_id": str})
    model = EasyTensorTwoTower(random_state=seed, n_jobs=options.threads)
    catalogue = rows.drop_duplicates("movie_id")[item_columns]
    columns = [*user_columns, "movie_id"]
    model.fit(rows[columns], items=catalogue, item_key="movie_id", user_key="user_id")
    people = rows.drop_duplicates("user_id").set_index("user_id", drop=False)
    found, _ = model.recommend(people.loc[users.astype(str), user_columns], exclude="seen")
    return found.astype(int)


def with_features(train, valid, users, seen, seed, options):
    """Recommend by what is known of users and movies too, and by what users rated."""
    rows, histories = collect_histories(train, seed)
    model = EasyTensorTwoTower(
        [
            ("user", CategoryBlock(width=128, unseen_probability=0.1), "user_id"),
            ("about", CategoryBlock(width=16), ["gender", "occupation"]),
            ("age", NumericBlock(bins=16), "age"),
            (
                "history",
                CategorySequenceBlock(
                    "mean", pooling="mean", width=64, max_length=300, unseen_probability=0.3
                ),
                "history",
            ),
        ],
        [
            ("movie", CategoryBlock(width=128), "movie_id"),
            ("genres", CategorySequenceBlock("mean", pooling="mean", width=16), "genres"),
            ("title", TextBlock(width=16, dropout=0.3), "movie_title"),
            ("year", NumericBlock(bins=16), "release_year"),
        ],
        embedding_dim=128,
        n_negatives=2048,
        dropout=0.5,
        batch_size=2048,
        max_epochs=70,
        early_stopping_rounds=30,
        random_state=seed,
        n_jobs=options.threads,
    )
    known = valid[valid["movie_id"].isin(train["movie_id"])].join(histories, on="user_id")
    catalogue = train.drop_duplicates("movie_id")[ITEM_COLUMNS]
    columns = [*USER_COLUMNS, "history", "movie_id"]
    model.fit(rows[columns], items=catalogue, item_key="movie_id", eval_set=[known[columns]])
    people = train.drop_duplicates("user_id").set_index("user_id", drop=False).loc[users]
    return model.recommend(people[USER_COLUMNS].join(histories), exclude=seen)[0]


def collect_histories(train, seed, parts=8):
    """Return the training rows with a history each, and each user's whole history.

    The history of a row must not hold the movie it is to foretell. A user's rows are dealt into
    parts, and those of a part get the movies of all others: a few histories a user, which
    batches share, rather than one a row.
    """
    dealt = train.sample(frac=1, random_state=seed)
    dealt["part"] = dealt.groupby("user_id").cumcount() % parts
    every = dealt.merge(pd.DataFrame({"absent": range(parts)}), how="cross")
    others = every[every["part"] != every["absent"]].groupby(["user_id", "absent"])["movie_id"]
    rows = dealt.join(others.agg(list).rename("history"), on=["user_id", "part"]).sort_index()
    return rows, dealt.groupby("user_id")["movie_id"].agg(list).rename("history")


def cold_start(ratings, options):
    """Print how movies without any interaction are ranked by their features."""
    random = np.random.default_rng(0)
    catalogue = ratings.drop_duplicates("movie_id")[ITEM_COLUMNS]
    cold = catalogue["movie_id"].isin(
        random.permutation(catalogue["movie_id"])[: len(catalogue) // 10]
    )
    warm = ratings[~ratings["movie_id"].isin(catalogue["movie_id"][cold])]
    model = EasyTensorTwoTower(
        [("user", CategoryBlock(width=64), "user_id")],
        [
            ("genres", CategorySequenceBlock("mean", pooling="mean", width=64), "genres"),
            ("title", TextBlock(), "movie_title"),
            ("year", NumericBlock(), "release_year"),
        ],
        n_negatives=1024,
        batch_size=2048,
        max_epochs=15,
        random_state=0,
        n_jobs=options.threads,
    ).fit(warm[["user_id", "movie_id"]], items=catalogue[~cold], item_key="movie_id")
    users = np.unique(ratings["user_id"])
    wanted = chosen(ratings[ratings["movie_id"].isin(catalogue["movie_id"][cold])], users)
    found, _ = model.recommend({"user_id": users}, catalogue[cold])
    chance = np.stack([random.permutation(catalogue["movie_id"][cold])[:10] for _ in users])
    print(f"\ncold start: {cold.sum()} movies without interactions, ranked among themselves")
    for name, keys in {"two towers, features": found, "at random": chance}.items():
        print(f"{name:24}{recall_at_k(wanted, keys):10.4f}{ndcg_at_k(wanted, keys):10.4f}")


if __name__ == "__main__":
    main()
