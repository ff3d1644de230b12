"""Notify users of a new item
==========================

Notify users of a new item: a nightly batch, a service, and changes during the day.

At night, two towers are fitted and all users are embedded and stored. When an item appears, the
service embeds its columns and searches the users with the highest scores, in milliseconds. During
the day, users are embedded anew after further interactions, without training.

Users and items are made up, so that it is known who has a taste for an item.
"""
# ci: quick

import tempfile
import time

import pandas as pd
import pyarrow.compute as pc

from sk_easytensor import CategoryBlock, EasyTensorTwoTower, NumericBlock
from sk_easytensor.datasets import make_interactions
from sk_easytensor.retrieval import Recommender

data = make_interactions(30_000, n_users=5_000, n_items=200, n_tastes=8, random_state=0)
store = tempfile.mkdtemp()

# ---- The nightly batch. With backend="ray" and Parquet paths it runs on a cluster.
model = EasyTensorTwoTower(
    user_blocks=[
        ("town", CategoryBlock(width=32), "town"),
        ("age", NumericBlock(), "age"),
    ],
    item_blocks=[
        ("genre", CategoryBlock(width=32), "genre"),
        ("price", NumericBlock(), "price"),
    ],
    embedding_dim=32,
    max_epochs=10,
    random_state=0,
)
model.fit(data.interactions, items=data.catalogue, item_key="item_id", user_key="user_id")
version = model.save_recommender(store, dtype="int8")
print(f"stored {len(model.user_keys_):,} users as version {version[:15]}")

# ---- The service, without torch: `python -m sk_easytensor.serving DIRECTORY` has it as HTTP.
recommender = Recommender.load(store)
item = pd.DataFrame({"item_id": [-1], "genre": ["genre 3"], "price": [9.5]})
begun = time.perf_counter()
keys, scores = recommender.rank_users(item, k=100)
milliseconds = 1000 * (time.perf_counter() - begun)
town = data.users.set_index("user_id").loc[keys[0], "town"]
print(f"{(town == 'town 3').mean():.0%} of the best 100 users have the taste of the new item")
print(f"they were found in {milliseconds:.1f} ms")

# Only some users, and nobody whose score is low.
young = pc.field("age") < 30
keys, _ = recommender.rank_users(item, k=5, where=young, min_score=1.0)
print("to notify among those under 30:", keys[0].tolist())

# ---- During the day: interactions of a new user, and the new item, without training.
moved = pd.DataFrame({"user_id": [9_999], "town": ["town 3"], "age": [25], "item_id": [7]})
model.update_users(moved).add_items(item)
model.save_recommender(store, dtype="int8")
recommender = recommender.refreshed()
print(f"version {recommender.version[:15]} has {len(recommender.users.index):,} users")
found, _ = recommender.recommend({"user_id": [9_999]}, k=5, exclude="seen")
print("for the new user:", found[0].tolist())
