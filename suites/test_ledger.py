"""Published figures against ours, and waivers against what really failed. These run last."""

from harness.spec.measurement import STATUSES


def test_claim(claim, plumbline):
    """A claim's status is a measurement, not a failure of ours; what must hold is that it could be evaluated."""
    topic, published = claim
    assert plumbline.claim(topic, published).detail["status"] in STATUSES


def test_waiver(waiver, plumbline):
    assert not waiver.expired, f"the waiver for {waiver.case} expired on {waiver.expires}: look again, then renew it"
    assert plumbline.needed(waiver), f"the waiver for {waiver.case} matches no failure of this run: remove it"
