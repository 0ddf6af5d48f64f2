"""Published figures against ours, and waivers against what really failed. These run last."""


def test_claim(claim, lab):
    """A claim's status is a finding, not a failure of ours; what must hold is that it could be evaluated."""
    topic, published = claim
    assert lab.claim(topic, published).detail["status"] in lab.STATUSES


def test_waiver(waiver, lab):
    assert not waiver.expired, f"the waiver for {waiver.case} expired on {waiver.expires}: look again, then renew it"
    assert lab.needed(waiver), f"the waiver for {waiver.case} matches no failure of this run: remove it"
