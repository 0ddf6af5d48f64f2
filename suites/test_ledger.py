"""Published figures against ours, and findings against what really failed. These run last."""

from harness.spec.measurement import STATUSES


def test_claim(claim, plumbline):
    """A claim's status is a measurement, not a failure of ours; what must hold is that it could be evaluated."""
    topic, published = claim
    assert plumbline.claim(topic, published).detail["status"] in STATUSES


def test_finding(finding, plumbline):
    assert not finding.due, f"{finding.id} was to be reviewed on {finding.review}: look again, then set a later date"
    gone = "; ".join(map(str, plumbline.stale(finding)))
    assert not gone, f"{finding.id}: fixed? No failure of this run matches {gone}"
