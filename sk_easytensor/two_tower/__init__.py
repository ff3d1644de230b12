"""Two towers for users and items: training, embeddings and recommendations."""
