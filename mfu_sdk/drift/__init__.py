"""Is it what we expected: from timed steps to drift with a promise about false alarms. Pure and streaming."""
