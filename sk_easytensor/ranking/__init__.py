"""Evaluation of recommendations: metrics, splits, baselines, and tables that compare models.

Metrics have two common parameters. `relevant` is a list column with the relevant items of each
user. `recommended` is a matrix with the items recommended to each user, the best first. Items are
any values that can be compared, such as keys or positions in a catalogue. Users without a relevant
item are left out of every mean.
"""

from sk_easytensor.ranking.baselines import recommend_ease, recommend_popular
from sk_easytensor.ranking.comparison import compare_rankings
from sk_easytensor.ranking.metrics import (
    coverage_at_k,
    hit_rate_at_k,
    map_at_k,
    mrr_at_k,
    ndcg_at_k,
    precision_at_k,
    ranking_report,
    recall_at_k,
)
from sk_easytensor.ranking.splits import split_interactions

__all__ = [
    "compare_rankings",
    "coverage_at_k",
    "hit_rate_at_k",
    "map_at_k",
    "mrr_at_k",
    "ndcg_at_k",
    "precision_at_k",
    "ranking_report",
    "recall_at_k",
    "recommend_ease",
    "recommend_popular",
    "split_interactions",
]
