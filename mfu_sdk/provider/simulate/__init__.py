"""A synthetic fleet: physics, faults with their true cost, and the telemetry that its tenants would send.

Nothing here knows how the provider finds a cause: the rules' thresholds are not in this package, and its constants
come from datasheets and papers, so what the rules find in it is a test of them.
"""
