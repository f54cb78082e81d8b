"""What happened: steps and requests, timed and matched with their counts."""
