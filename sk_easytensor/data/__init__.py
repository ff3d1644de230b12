"""Tables, columns and what is summarised of them, without torch."""
