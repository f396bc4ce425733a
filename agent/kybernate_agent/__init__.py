"""The node daemon: it alone decides when an instance of its node sleeps and wakes."""
