"""The damage campaign in short, and that it sees what it looks for."""

import mmap
import os
import signal
import sys
import tracemalloc
from collections import Counter

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("the campaign needs fork and limits of address space", allow_module_level=True)

import damage  # noqa: E402
import damage_campaign as campaign  # noqa: E402
import damage_targets as targets  # noqa: E402
import memory  # noqa: E402

from codec.container import metadata  # noqa: E402
from entropy import Decoder, StreamError, rans  # noqa: E402


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    """What the campaign sets in its own process is undone here."""
    monkeypatch.setattr(rans, "SUBSTREAM", rans.SUBSTREAM)
    monkeypatch.setattr(metadata, "LARGEST", metadata.LARGEST)


@pytest.mark.parametrize("name, trials", [("streams", 768), ("parser", 660), ("decoder", 440), ("model", 168)])
def test_damage_is_refused_or_decoded(name, trials):
    """Whole or by halves: damage that is not stamped anew is always refused, and some that is gets far."""
    make, _ = campaign.TARGETS[name]
    target = make(1)
    results = campaign.run(trials, target.trial, target.begin)
    counts = campaign.count(target, results)
    assert campaign.broken_laws(counts) == []
    total = Counter()
    for (way, kind, outcome), number in counts.items():
        assert way in target.ways and kind in target.kinds
        total[way, outcome] += number
    assert sum(total.values()) == trials
    assert total[targets.AS_IT_IS, targets.REFUSED] == trials * target.ways.count(targets.AS_IT_IS) // len(target.ways)
    stamped = [total[targets.STAMPED, outcome] for outcome in (targets.REFUSED, targets.IDENTICAL, targets.DIFFERENT)]
    assert stamped[0] > 0.5 * sum(stamped) and min(stamped[1:]) > 0
    assert 0 < results.seconds.max() <= campaign.SLOW and f"| {targets.STAMPED} | all | " in campaign.table(
        target, counts
    )


def misbehave(number: int) -> int:
    """A trial of each outcome."""
    match number:
        case 1:
            return targets.DIFFERENT
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
            with memory.traced_at_most(1000):
                raise StreamError(str(bytes(2000)))
        case 7:
            np.zeros(2 * campaign.ADDRESS_SPACE, np.uint8)
        case 8:
            with memory.resident_at_most(1 << 20), mmap.mmap(-1, 1 << 22) as pages:  # nothing that tracemalloc sees
                pages.write(bytes([1]) * (1 << 22))
        case 9:
            targets.one_line(StreamError("one line\nand another"))
    return targets.REFUSED


def test_the_campaign_sees_crashes_hangs_hoarding_and_wrong_errors_and_goes_on(capfd):
    results = campaign.run(11, misbehave, tracemalloc.start, time_limit=0.5)
    expected = (
        "refused, decoded differently, crash, crash, hang, wrong error, memory, memory, memory, wrong error, refused"
    )
    assert ", ".join(campaign.OUTCOMES[outcome] for outcome in results.outcomes) == expected
    assert "KeyError: 'not a StreamError'" in capfd.readouterr().err
    assert results.grown[8] > 4000 and results.grown[10] < 1000


def test_a_trial_that_takes_long_is_a_hang(monkeypatch):
    monkeypatch.setattr(campaign, "SLOW", 0.05)
    results = campaign.run(2, lambda number: targets.REFUSED + 0 * sum(range(10**7 * number)))
    assert results.outcomes.tolist() == [targets.REFUSED, campaign.HANG]


@pytest.mark.parametrize(
    "way, outcome, broken",
    [
        (targets.AS_IT_IS, targets.DIFFERENT, True),
        (targets.AS_IT_IS, targets.IDENTICAL, True),
        (targets.AS_IT_IS, targets.REFUSED, False),
        (targets.STAMPED, targets.DIFFERENT, False),
        (targets.BARE, campaign.HANG, True),
    ],
)
def test_laws_are_broken_by_the_right_outcomes(way, outcome, broken):
    assert bool(campaign.broken_laws({(way, "flip", outcome): 1})) == broken


def test_every_kind_of_damage_changes_every_sample_and_stamping_mends_only_checksums():
    rng, metadata.LARGEST = np.random.default_rng(2), targets.LARGEST
    for sample in targets.make_streams(rng):
        assert damage.stamp(sample.file) == sample.file and damage.join(*damage.split(sample.file)) == sample.file
        numbers, sections = damage.sections_of_file(sample.file)
        assert [number.value for number in numbers[:1]] == [3] and len(sections) == 3 and len(numbers) == 6
        assert sections[-1][2] == len(sample.file) and 50 < len(sample.stream) < 20_000
        decoder = Decoder(sample.stream)
        assert len(damage.numbers_of_stream(sample.stream, 0)) == max(2, 2 * decoder._count)
        for kind in damage.KINDS:
            assert any(damage.damage_stream(rng, kind, sample.stream) != sample.stream for _ in range(20))
        for kind in damage.FILE_KINDS:
            assert any(damage.damage_file(rng, kind, sample.file, [sample.file]) != sample.file for _ in range(20))
    broken = bytearray(sample.file)
    broken[-25] ^= 1
    stamped = damage.stamp(bytes(broken))
    assert len(stamped) == len(broken) and stamped[:-4] == broken[:-4] != sample.file[:-4]
