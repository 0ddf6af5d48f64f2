"""Every measure of every case: whether an engine is right, lean, quiet and fast (see harness/measures)."""


def test_measure(measure, case, plumbline, require, replay):
    found = plumbline.lab.measure(measure, case)
    replay(found)
    require(found)
