"""The command: one file per verb, and rendering. Nothing heavy is imported before a verb runs."""
