"""Ray: one trial, one study. The only room that imports `ray`."""
