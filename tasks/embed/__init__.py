"""From pictures to vectors: each image once per encoder version, whichever path meets it first."""
