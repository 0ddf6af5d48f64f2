"""Every measure of every case: whether an engine is right, lean, talkative and fast (see harness/measures)."""


def test_measure(measure, case, lab, require, replay):
    found = lab.measure(measure, case)
    replay(found)
    require(found)
