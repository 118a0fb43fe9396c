"""Which waiting inputs go through the model together: those of about one length, so that little is computed on padding.

Inputs of a pass are padded to the longest of them. Fixed buckets would cut between neighbours and leave a lone input in
its bucket; here the bucket is laid around the input whose turn it is, as wide as what waits allows.
"""

from __future__ import annotations

from collections.abc import Sequence

# A pass may spend this share of its real tokens on padding. By simulation over log-normal lengths: from none to a
# sixteenth costs are the same, whatever a pass costs beside its tokens; an eighth costs more.
PADDING = 1 / 16


def window(lengths: Sequence[int], leader: int, *, rows: int, tokens: int, spare: int) -> tuple[int, int]:
    """Begin and end of the slice of `lengths` (sorted, shortest first) that goes together; `leader` is always in it.

    At most `rows` inputs, and `tokens` after padding (but for a leader that alone has more). It grows by the neighbour
    that costs the least padding, as long as all padding stays under PADDING of the real tokens, or under `spare`: what
    a pass more would cost, in tokens. Greedy, O(rows).
    """
    begin, end = leader, leader + 1
    longest = real = lengths[leader]
    while end - begin < rows:
        count = end - begin + 1
        best: tuple[int, int] | None = None  # padding after it, -1 for the shorter neighbour or 1 for the longer
        if begin > 0:
            shorter = lengths[begin - 1]
            if count * longest <= tokens:
                best = (count * longest - real - shorter, -1)
        if end < len(lengths):
            longer = lengths[end]
            padding = count * longer - real - longer
            if count * longer <= tokens and (best is None or padding <= best[0]):
                best = (padding, 1)
        if best is None:
            break
        padding, side = best
        added = lengths[end] if side > 0 else lengths[begin - 1]
        if padding > max(PADDING * (real + added), spare):
            break
        real += added
        if side > 0:
            end += 1
            longest = added
        else:
            begin -= 1
    return begin, end
