"""What a study or run holds: read, ranked, exported, evaluated. Works without Ray."""
