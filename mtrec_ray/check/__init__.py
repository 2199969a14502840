"""What looks too good before a split is trusted, and the profile of the data: `mtrec check`."""
