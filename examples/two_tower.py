"""Two towers
==========

Two towers: embed users once, rank them for an item that appears later.

Users and items are made up, so that it is known which share a taste. The embeddings of all users
are computed when the model is fitted; a new item then costs one pass through the item tower and a
product. A single network over both sides, here a classifier of pairs, has to be run for every
user again.
"""
# ci: quick

import pickle
import time

import numpy as np
import pandas as pd

from sk_easytensor import (
    CategoryBlock,
    EasyTensorClassifier,
    EasyTensorTwoTower,
    NumericBlock,
)
from sk_easytensor.datasets import make_interactions
from sk_easytensor.ranking import ranking_report

data = make_interactions(20_000, n_users=2_000, n_items=200, n_tastes=8, random_state=0)
train, test = data.interactions[:16_000], data.interactions[16_000:]

towers = EasyTensorTwoTower(
    user_blocks=[
        ("user", CategoryBlock(width=32), "user_id"),
        ("town", CategoryBlock(width=32), "town"),
        ("age", NumericBlock(), "age"),
    ],
    item_blocks=[
        ("item", CategoryBlock(width=32), "item_id"),
        ("genre", CategoryBlock(width=32), "genre"),
        ("price", NumericBlock(), "price"),
    ],
    embedding_dim=32,
    n_negatives=200,
    max_epochs=10,
    random_state=0,
)
begun = time.perf_counter()
# Rows of the log name an item; its columns are in the catalogue, once.
towers.fit(train, items=data.catalogue, item_key="item_id", user_key="user_id")
print(f"fitted in {time.perf_counter() - begun:.1f} s on {len(train):,} interactions")

# Ten items for each user who comes back in the test part, those already met left out.
wanted = test.groupby("user_id")["item_id"].agg(list)
users = data.users.set_index("user_id").loc[wanted.index].reset_index()
found, scores = towers.recommend(users, k=10, exclude="seen")
report = ranking_report(wanted, found, k=10, n_items=len(data.catalogue))
print("recommendations:", ", ".join(f"{name} {value:.3f}" for name, value in report.items()))

# An item that nobody has met: its genre says what it is, and the users are embedded already.
new_item = pd.DataFrame({"item_id": [-1], "genre": ["genre 3"], "price": [9.5]})
keys, _ = towers.rank_users(new_item, k=100)
taste = data.users.set_index("user_id").loc[keys[0], "town"]
print(f"a new item of genre 3: {np.mean(taste == 'town 3'):.0%} of its best 100 users like it")

# The same with one network over the columns of both sides, which are joined for every pair.
random = np.random.default_rng(0)
met = train.merge(data.catalogue, on="item_id")
others = train.assign(item_id=random.integers(0, 200, len(train))).merge(
    data.catalogue, on="item_id"
)
pairs = pd.concat([met, others], ignore_index=True)
joint = EasyTensorClassifier(max_epochs=2, random_state=0)
joint.fit(pairs, np.repeat([1, 0], [len(met), len(others)]))


def seconds(function, *arguments, **options):
    """Return how long a call takes."""
    begun = time.perf_counter()
    function(*arguments, **options)
    return time.perf_counter() - begun


print("seconds to rank                        two towers  one network")
for what, towers_take, joint_takes in [
    (
        "2,000 users for the new item",
        seconds(towers.rank_users, new_item, k=100),
        seconds(joint.predict_proba, data.users.merge(new_item, how="cross")),
    ),
    (
        "200 items for each of 2,000 users",
        seconds(towers.recommend, data.users, k=10),
        seconds(joint.predict_proba, data.users.merge(data.catalogue, how="cross")),
    ),
]:
    print(f"{what:39}{towers_take:10.4f}{joint_takes:13.4f}")

# Where only one side is needed, its tower is a file of its own.
print(f"the user tower alone is {len(pickle.dumps(towers.user_tower_)) / 1000:.0f} kB")
