"""The training loop: encoded rows in, a trained network out."""
