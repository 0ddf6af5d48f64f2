from harness.spec import assessed


def activation_memory(records):
    return assessed("activation_memory", "formula only", "x")


def recomputation_time(records):
    return assessed("recomputation_time", "formula only", "x")
