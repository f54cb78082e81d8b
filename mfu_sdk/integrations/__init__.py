"""Other people's training loops and servers under a monitor; each file imports its framework when it is used."""
