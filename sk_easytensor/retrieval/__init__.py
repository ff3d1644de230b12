"""Search of embeddings, and recommendations from stored ones, without torch."""

from sk_easytensor.retrieval.approximate import ApproximateIndex
from sk_easytensor.retrieval.embedding_index import EmbeddingIndex
from sk_easytensor.retrieval.recommender import Recommender
from sk_easytensor.retrieval.search import top_k

__all__ = ["ApproximateIndex", "EmbeddingIndex", "Recommender", "top_k"]
