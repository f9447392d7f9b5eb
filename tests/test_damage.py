"""The damage campaign in short, and that it sees what it looks for."""

import os
import signal
import sys

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("the campaign needs fork and limits of address space", allow_module_level=True)

import damage_campaign as campaign  # noqa: E402

from entropy import Decoder, StreamError, rans  # noqa: E402


@pytest.fixture(autouse=True)
def substream(monkeypatch):
    """What the campaign sets in its own process is undone here."""
    monkeypatch.setattr(rans, "SUBSTREAM", rans.SUBSTREAM)


def test_damaged_streams_are_refused_or_decoded():
    counts = campaign.campaign(2048, seed=1)
    assert campaign.broken_laws(counts) == []
    total = {}
    for (way, kind, outcome), count in counts.items():
        assert (way, kind) in {campaign.way_and_kind(number) for number in range(32)}
        total[way, outcome] = total.get((way, outcome), 0) + count
    assert sum(total.values()) == 2048 and total[campaign.AS_IT_IS, campaign.REFUSED] > 900
    assert total[campaign.STAMPED, campaign.REFUSED] > 400 and total[campaign.BARE, campaign.REFUSED] > 400
    assert total[campaign.STAMPED, campaign.IDENTICAL] > 0  # other pixels, quality or ancillary sections
    assert "| bare stream | all | " in campaign.table(counts)


def misbehave(number):
    """A trial of each outcome."""
    match number:
        case 1:
            return campaign.DIFFERENT
        case 2:
            os.kill(os.getpid(), signal.SIGKILL)
        case 3:
            os._exit(0)
        case 4:
            while True:
                pass
        case 5:
            raise KeyError("not a StreamError")
        case 6:
            with campaign.at_most(1000):
                raise StreamError(str(bytes(2000)))
        case 7:
            np.zeros(2 * campaign.ADDRESS_SPACE, np.uint8)
    return campaign.REFUSED


def test_the_campaign_sees_crashes_hangs_hoarding_and_wrong_errors_and_goes_on(capfd):
    outcomes = campaign.run(9, misbehave, time_limit=0.2)
    expected = "refused, decoded differently, crash, crash, hang, wrong error, memory, memory, refused"
    assert ", ".join(campaign.OUTCOMES[outcome] for outcome in outcomes) == expected
    assert "KeyError: 'not a StreamError'" in capfd.readouterr().err


@pytest.mark.parametrize(
    "way, outcome, kind, broken",
    [
        (campaign.AS_IT_IS, campaign.DIFFERENT, "flip", True),
        (campaign.AS_IT_IS, campaign.IDENTICAL, "flip", True),
        (campaign.STAMPED, campaign.DIFFERENT, "flip", False),
        (campaign.BARE, campaign.HANG, "forge", True),
    ],
)
def test_laws_are_broken_by_the_right_outcomes(way, outcome, kind, broken):
    assert bool(campaign.broken_laws({(way, kind, outcome): 1})) == broken


def test_every_kind_of_damage_changes_every_sample_and_stamping_mends_only_checksums():
    rng = np.random.default_rng(2)
    for sample in campaign.make_samples(rng):
        assert campaign.stamp(sample.file) == sample.file
        numbers, sections = campaign.sections_of_file(sample.file)
        assert [number.value for number in numbers[:1]] == [3] and len(sections) == 3 and len(numbers) == 6
        assert sections[-1][2] == len(sample.file) and 50 < len(sample.stream) < 20_000
        decoder = Decoder(sample.stream)
        assert len(campaign.numbers_of_stream(sample.stream, 0)) == max(2, 2 * decoder._count)
        for kind in campaign.KINDS:
            for is_file in (False, True):
                intact = sample.file if is_file else sample.stream
                assert any(campaign.damage(rng, kind, sample, is_file) != intact for _ in range(20))
    broken = bytearray(sample.file)
    broken[-25] ^= 1
    assert len(campaign.stamp(bytes(broken))) == len(broken) and campaign.stamp(bytes(broken))[:-4] == broken[:-4]
