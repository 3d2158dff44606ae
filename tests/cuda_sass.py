# SPDX-License-Identifier: Apache-2.0
"""How many instructions a warp issues on its way through the machine code of a CUDA kernel.

The code is a graph of blocks, and the way through it is known by what it does: the emulator counts how many products,
loads of matrices, shuffles, copies and stores a window and head take, and of all ways once round the loop over windows
those that do the same are looked at.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import product

#: Of a warp: products, loads of matrices, shuffles, asynchronous copies, stores to global memory, barriers.
KINDS = ("HMMA", "LDSM", "SHFL", "LDGSTS", "STG", "BAR")
Counts = tuple[int, ...]


INSTRUCTION = r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([^\s;.]+)"


def functions_of(assembly: str) -> dict[str, str]:
    """The code of each by its mangled name, as `nvdisasm -c` writes them."""
    parts = (part.partition(":") for part in re.split(r"^\.text\.", assembly, flags=re.M)[1:])
    return {name: code for name, _, code in parts}


def operations_of(code: str) -> Counter[str]:
    """How many there are of each in a function."""
    return Counter(re.findall(INSTRUCTION, code, re.M))


@dataclass
class Block:
    """Instructions that run one after the other, and the blocks that may follow."""

    instructions: list[str] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


def blocks_of(assembly: str) -> list[Block]:
    """Of one function, as `nvdisasm -c` writes it."""
    blocks, labels, jumps = [Block()], {}, []
    falls = True  # from the last block into the next
    for line in assembly.splitlines():
        label = re.match(r"\s*(\.L_x_\d+):", line)
        instruction = re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([^\s;]+)([^;]*)", line)
        if label is None and instruction is None:
            continue
        if label or not falls or blocks[-1].instructions[-1:] in (["BRA"], ["EXIT"]):
            blocks.append(Block())
            if falls:
                blocks[-2].after.append(len(blocks) - 1)
            falls = True
        if label:
            labels[label[1]] = len(blocks) - 1
        elif instruction:
            predicate, operation, operands = instruction.groups()
            name = operation.split(".")[0]
            blocks[-1].instructions.append(name)
            if name in ("BRA", "EXIT"):
                target = re.search(r"`\((\.L_x_\d+)\)", operands)
                if target:
                    jumps.append((len(blocks) - 1, target[1]))
                falls = bool(predicate or "DIV" in operation or re.match(r"\s*!?U?P\d", operands))
    for source, label_name in jumps:
        blocks[source].after.append(labels[label_name])
    return blocks


def loops_of(blocks: list[Block]) -> dict[int, set[int]]:
    """Each loop's blocks, by its first one."""
    before = defaultdict(set)
    for number, block in enumerate(blocks):
        for after in block.after:
            before[after].add(number)
    loops: dict[int, set[int]] = defaultdict(set)
    for number, block in enumerate(blocks):
        for head in (after for after in block.after if after <= number):
            body, unseen = {head, number}, [number]
            while unseen:
                current = unseen.pop()
                for one in before[current] - body if current != head else ():
                    body.add(one)
                    unseen.append(one)
            loops[head] |= body
    return loops


def lengths_round(
    blocks: list[Block], head: int, body: set[int], better: Callable[[int, int], int]
) -> dict[Counts, int]:
    """The shortest or longest way from the head of a loop back to it, for all that a way may do. Loops in it are left
    out.
    """
    reached: dict[int, dict[Counts, int]] = {head: {(0,) * len(KINDS): 0}}
    back: dict[Counts, int] = {}
    for number in sorted(body):
        names = Counter(blocks[number].instructions)
        for counts, length in reached.get(number, {}).items():
            here = tuple(count + names[kind] for count, kind in zip(counts, KINDS, strict=True))
            longer = length + len(blocks[number].instructions)
            for after in set(blocks[number].after):
                if after != head and (after not in body or after <= number):
                    continue
                found = back if after == head else reached.setdefault(after, {})
                found[here] = better(longer, found.get(here, longer))
    return back


def for_each_product(code: str) -> float:
    """The instructions that a warp issues for each product where it makes most of them: of the loops that make some,
    and hold no other that does, the best way round. A kernel that goes through the keys in blocks is little else.
    """
    blocks = blocks_of(code)
    loops = loops_of(blocks)
    making = [head for head, body in loops.items() if any("HMMA" in blocks[number].instructions for number in body)]
    innermost = [head for head in making if not any(loops[other] < loops[head] for other in making)]
    ways = [way for head in innermost for way in lengths_round(blocks, head, loops[head], min).items()]
    return min(length / counts[0] for counts, length in ways if counts[0])


def issued(assembly: str, counted: dict[str, float], warps: tuple[int, ...], better: Callable[[int, int], int]) -> int:
    """The instructions of once round the loop over windows, of groups of `warps` that each go a way of their own, or
    round a loop of their own, make products, and together do what was `counted`: so many products and loads of
    matrices; a few more copies and at least so many stores, in which some lanes may do nothing; and at most so many
    shuffles, of which the compiler leaves out those whose result nobody wants. `better` is min or max: the ways of a
    window where no branch is taken that need not be, and a bound for all windows.

    Raises:
        ValueError: there are no such ways.
    """
    blocks = blocks_of(assembly)
    ways = [way for head, body in loops_of(blocks).items() for way in lengths_round(blocks, head, body, better).items()]
    making = [(counts, length) for counts, length in ways if counts[0]]
    found = []
    for chosen in product(making, repeat=len(warps)):
        group = [(number, *way) for number, way in zip(warps, chosen, strict=True)]
        does = {kind: sum(number * counts[i] for number, counts, _ in group) for i, kind in enumerate(KINDS)}
        exact = all(does[kind] == counted[kind] for kind in ("HMMA", "LDSM"))
        enough = counted["LDGSTS"] <= does["LDGSTS"] <= 1.2 * counted["LDGSTS"] and counted["STG"] <= does["STG"]
        if exact and enough and 0.9 * counted["SHFL"] <= does["SHFL"] <= counted["SHFL"]:
            found.append(sum(number * length for number, _, length in group))
    if not found:
        raise ValueError(f"no way through the loops does {counted}")
    return min(found) if better is min else max(found)
