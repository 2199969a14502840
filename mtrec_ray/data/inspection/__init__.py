"""Looking at logs before there is a config: what `mtrec init` proposes."""
