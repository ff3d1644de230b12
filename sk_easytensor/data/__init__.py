"""Tables, columns and mergeable summaries, without torch."""
