"""Digests of blocks that come in any order."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from threading import Thread

import pytest

from lora_registry.digest import Digest
from lora_registry.merge.hashing import FilePair, OrderedHash

BLOCKS = [bytes([number]) * (1000 + number) for number in range(40)]


class Back:
    """The numbers of the buffers that were given back."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def of(self, number: int) -> Callable[[], None]:
        return partial(self.numbers.append, number)


def offers(seed: int, threads: int, offer: Callable[[int], None]) -> None:
    """Call ``offer`` for every number of a block, in an order of ``seed``, from several threads."""
    order = random.Random(seed).sample(range(40), 40)
    lanes = [
        Thread(target=lambda mine=order[lane::threads]: [offer(number) for number in mine]) for lane in range(threads)
    ]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()


@pytest.mark.parametrize("threads", [1, 3])
def test_the_order_of_the_offers_makes_no_difference(threads: int) -> None:
    """The digest is that of the bytes in order, and every buffer is given back once."""
    for seed in range(20):
        ordered, back = OrderedHash(), Back()
        offers(seed, threads, lambda number, to=ordered, back=back: to.offer(number, BLOCKS[number], back.of(number)))
        assert ordered.digest() == Digest.of(b"".join(BLOCKS))
        assert sorted(back.numbers) == list(range(40))


@pytest.mark.parametrize("differs_at", [None, 0, 1, 17, 39])
def test_two_files_share_a_state_until_they_differ(differs_at: int | None) -> None:
    """Base and output get their own digests, whatever the order of the blocks and wherever they part."""
    first = 40 if differs_at is None else differs_at
    written = [block if number < first else block[::-1] + b"x" for number, block in enumerate(BLOCKS)]
    for seed in range(20):
        pair, back = FilePair(differs_at), Back()
        offers(
            seed,
            3,
            lambda number, pair=pair, back=back: pair.offer(number, BLOCKS[number], written[number], back.of(number)),
        )
        assert pair.digests() == (Digest.of(b"".join(BLOCKS)), Digest.of(b"".join(written)))
        assert sorted(back.numbers) == list(range(40))


def test_a_block_that_never_came_is_noticed() -> None:
    """A digest of half a file is no digest."""
    ordered = OrderedHash()
    ordered.offer(1, b"b", lambda: None)
    with pytest.raises(AssertionError, match="missing"):
        ordered.digest()
