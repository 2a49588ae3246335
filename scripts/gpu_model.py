"""Predicts a decode pass of the CUDA engine, and prints the tables of docs/gpu.md. Nothing here was measured.

A launch takes   max(bytes / (0.8 · bandwidth), instructions / (128 · SMs · clock), waves · path / clock) + 1.8 µs
and a pass       the sum of its launches + 30 µs on the host.

`bytes` come from the card's memory, `instructions` are those of all threads, `path` is the longest chain of
dependent steps of a block, in cycles, read off the kernels, and `waves` = ⌈blocks / (SMs · blocks that an SM holds)⌉.
The constants' sources are in docs/gpu.md.
"""

import math

# SMs, clock in GHz, bandwidth in GB/s, shared memory of an SM in KiB, cycles of a load from memory and from L2.
CARDS = {
    "A100 80 GB SXM": (108, 1.41, 2039, 164, 466, 262),
    "H100 SXM": (132, 1.98, 3350, 228, 479, 263),
    "H200 SXM": (132, 1.98, 4800, 228, 479, 263),
    "L4": (58, 2.04, 300, 100, 542, 273),
    "RTX 3090": (82, 1.70, 936, 100, 466, 262),
    "RTX 4090": (128, 2.52, 1008, 100, 542, 273),
    "RTX 5090": (170, 2.41, 1792, 100, 542, 273),
}
EFFICIENCY = 0.8  # of the bandwidth
NODE = 1.8e-6  # seconds: a kernel of a graph that does nothing
HOST = 30e-6  # seconds between passes
BARRIER, SHUFFLE, DIVIDE, STEP, L1 = 30, 25, 100, 4, 35  # cycles; STEP: a dependent fused multiply-add
MMA = 33  # cycles of a matrix product of a warp that waits for another; a tensor core starts one every 8
REGISTERS = 65536
FEWEST_SPANS = 9  # as in src/engine/model/cuda/split.rs

# layers, hidden, heads, KV heads, head size, feed-forward, vocabulary, weights: bits of layers, bits of the head
MODELS = {
    "SmolLM2-135M Q4_1, head Q8_0": (30, 576, 9, 3, 64, 1536, 49152, 5.0, 8.5),
    "8B Q4_K": (32, 4096, 32, 8, 128, 14336, 128256, 4.625, 4.625),
    "8B bf16": (32, 4096, 32, 8, 128, 14336, 128256, 16.0, 16.0),
}


class Card:
    def __init__(self, name):
        self.sms, ghz, gb, self.shared, self.memory, self.l2 = CARDS[name]
        self.clock, self.bandwidth = ghz * 1e9, gb * 1e9

    def launch(self, blocks, path, read=0.0, instructions=0.0, registers=64, shared=0.0, threads=128):
        """Seconds."""
        held = min(2048 // threads if self.shared > 150 else 1536 // threads, REGISTERS // (registers * threads))
        if shared:
            held = min(held, int(self.shared // (shared + 1)))
        waves = math.ceil(blocks / (self.sms * max(held, 1)))
        return NODE + max(
            read / (EFFICIENCY * self.bandwidth),
            instructions / (128 * self.sms * self.clock),
            waves * path / self.clock,
        )

    def product(self, rows, cols, bits, tokens, parts=1):
        """Of `tokens` with rows / 16 groups; `parts` groups one after the other in a block (4: gate and up)."""
        groups, read, weights = rows / 16, rows * cols * bits / 8, rows * cols
        if bits >= 16:  # dense: eight segments of the columns side by side, 16 bytes of weights a load
            tile, ahead = (1, 8) if tokens == 1 else (4, 4) if tokens <= 4 else (8, 2) if tokens <= 16 else (32, 2)
            across = math.ceil(tokens / tile)
            segment = math.ceil(math.ceil(cols / 8) / 32) * 32
            # A thread's rows and tokens; for a vector of 8 columns, it loads 16 bytes of each row and 32 of each
            # token, unpacks the weights and multiplies. A load of 16 bytes takes an SM as long as 16 instructions.
            rows_of_thread, tokens_of_thread = {1: (1, 1), 4: (2, 2), 8: (4, 2), 32: (8, 4)}[tile]
            loads = rows_of_thread + 2 * tokens_of_thread
            steps = 8 * rows_of_thread * (1 + tokens_of_thread) + loads
            # `ahead` vectors are loaded together; then, for each, its inputs from L1 and its chains.
            together = self.memory + ahead * (L1 + max(steps, 8 * STEP))
            path = math.ceil(segment / 8 / ahead) * together + 2 * BARRIER + 8 * STEP + 100
            threads = weights / 8 / rows_of_thread * tile / tokens_of_thread  # that multiply a vector
            instructions = threads * across * max(steps, 16 * loads)
            held = {1: (96, 8.5), 4: (96, 34), 8: (96, 35), 32: (164, 30 if parts > 1 else 21)}[tile]
            return self.launch(groups / parts * across, parts * path, read, instructions, *held)
        blocks = cols / 32
        if tokens > 64:  # product_32: a warp for each group, no load ahead of its use
            across = math.ceil(tokens / 32)
            path = blocks * (self.memory + self.l2 + 350)
            instructions = weights / 512 * 32 * 450 * across
            # Four warps of a block: four groups, also of gate and up.
            return self.launch(groups / 4 * across, path, read, instructions, 146, 9 if parts > 1 else 0)
        tile, chunk = (1, 32) if tokens == 1 else (4, 32) if tokens <= 4 else (8, 16)
        across = math.ceil(tokens / tile)
        path = math.ceil(blocks / chunk) * (self.memory + 100 + 50 * tile + 2 * BARRIER) + blocks * 12
        return self.launch(groups / parts * across, parts * path, read, weights * across * (0.4 + 0.6 * tile), 96, 8.4 if tile == 1 else 34)

    def attend(self, heads, kv_heads, size, tokens, context, read):
        """Of decode passes, whose tokens share no prefix. Keys and values of the next span are prefetched to L2."""
        group, spans = heads / kv_heads, math.ceil(context / 64)
        steps, units, rounds = math.ceil(size / 32), math.ceil(size / 64), math.ceil(group / 8)
        fetch = 3 * self.l2 + 100 + 2 * BARRIER  # tile, tokens, queries
        scores = self.l2 + steps * 2 * MMA + 60
        softmax = rounds * (8 * SHUFFLE + DIVIDE + 200)
        values = 2 * MMA + 60 + units * 4 * 50  # loaded during the softmax
        span = scores + softmax + values + 3 * BARRIER
        path = fetch + self.memory + spans * span + 600
        # A warp's instructions for a page: those of scores, a quarter of the softmax, and those of values.
        warp = 40 * steps + 25 + (rounds * 130) + 2 * units * 75
        instructions = tokens * kv_heads * spans * 4 * warp * 32
        registers, shared = (142, 23) if size <= 64 else (158, 27)
        together = self.launch(tokens * kv_heads, path, read, instructions, registers, shared)
        if not self.splits(kv_heads, tokens, context):
            return together
        # Scores and values of all spans side by side, each with half of what is read; then a join, for each span a
        # decay and four steps, of which four are loaded at a time.
        blocks, begin = tokens * kv_heads * spans, fetch + self.memory
        return (
            self.launch(blocks, begin + scores + rounds * 4 * SHUFFLE + BARRIER, read / 2, instructions / 3, 94, 21)
            + self.launch(blocks, begin + self.l2 + softmax + self.l2 + values, read / 2, instructions * 2 / 3, 74, 11)
            + self.launch(tokens * heads, 2 * self.l2 + spans * (self.l2 / 4 + 6 * STEP) + 300, 0, 0, 122, 1, 256)
        )

    def splits(self, kv_heads, tokens, context):
        """As `Split::of` in src/engine/model/cuda/split.rs."""
        blocks, spans = tokens * kv_heads, math.ceil(context / 64)
        return spans >= FEWEST_SPANS and (2 * blocks <= self.sms or spans >= 2 * FEWEST_SPANS and 3 * blocks <= 2 * self.sms)


def pass_of(model, tokens, context, card=None):
    """Seconds of a decode pass on a card; bytes of weights, of the KV cache, and launches."""
    layers, hidden, heads, kv_heads, size, middle, vocabulary, bits, head_bits = MODELS[model]
    inputs = (heads + 2 * kv_heads) * size
    layer = hidden * inputs + heads * size * hidden + 3 * hidden * middle
    weights = layers * layer * bits / 8 + vocabulary * hidden * head_bits / 8 + (2 * layers + 1) * hidden * 4
    kv_token = kv_heads * (4 * size + 8)  # of a layer: two of i16, and a scale for each
    kv = layers * tokens * context * kv_token
    split = (card or Card("H200 SXM")).splits(kv_heads, tokens, context)
    launches = (10 if split else 8) * layers + 4
    if card is None:
        return weights, kv, launches
    norm = card.launch(tokens, card.memory + hidden / 16 * 15 + 24 * SHUFFLE + 3 * DIVIDE + 3 * BARRIER + hidden / 256 * 350, threads=256)
    rotate = card.launch(tokens * (heads + 2 * kv_heads), 2 * card.memory + card.l2 + 6 * SHUFFLE + 2 * DIVIDE + 200, threads=32)
    times = {
        "norms": 2 * norm,
        "rotate": rotate,
        "attention": card.attend(heads, kv_heads, size, tokens, context, tokens * context * kv_token),
        "products": card.product(inputs, hidden, bits, tokens)
        + card.product(hidden, heads * size, bits, tokens)
        + card.product(2 * middle, hidden, bits, tokens, parts=4)
        + card.product(hidden, middle, bits, tokens),
    }
    for part in times:
        times[part] *= layers
    times["head"] = card.product(vocabulary, hidden, head_bits, tokens) + norm
    # Greedy: two sweeps over the logits by 512 threads.
    times["sample, embed"] = 2 * NODE + 2 * vocabulary / 512 * 40 / card.clock
    times["host"] = HOST
    return times


def main():
    context = 464
    print(f"Context {context}: 400 tokens before, and half of 128.\n")
    print("| model | batch | weights, MB | KV, MB | launches |\n|---|---|---|---|---|")
    for model in MODELS:
        for tokens in (1, 25):
            weights, kv, launches = pass_of(model, tokens, context)
            print(f"| {model} | {tokens} | {weights / 1e6:,.1f} | {kv / 1e6:,.1f} | {launches} |")
    print("\n| model | batch |", " | ".join(CARDS), "|\n|---|---|" + "---|" * len(CARDS))
    for model in MODELS:
        for tokens in (1, 25):
            cells = []
            for name in CARDS:
                total = sum(pass_of(model, tokens, context, Card(name)).values())
                cells.append(f"{total * 1e3:.2f} ms, {float(f'{tokens / total:.2g}'):,.0f}")
            print(f"| {model} | {tokens} |", " | ".join(cells), "|")
    print("\n| H200 SXM: share of | batch | attention | products | norms, rotate | head, sample, embed | host | of it launches |")
    print("|---|---|---|---|---|---|---|---|")
    for model in MODELS:
        for tokens in (1, 25):
            times = pass_of(model, tokens, context, Card("H200 SXM"))
            total = sum(times.values())
            shares = [
                times["attention"], times["products"], times["norms"] + times["rotate"],
                times["head"] + times["sample, embed"], times["host"], pass_of(model, tokens, context)[2] * NODE,
            ]
            print(f"| {model} | {tokens} |", " | ".join(f"{share / total:.0%}" for share in shares), "|")
    print("\n| H200 SXM, batch 1, ms by context |", " | ".join(f"{context:,}" for context in CONTEXTS), "|\n|---|" + "---|" * len(CONTEXTS))
    for model in MODELS:
        passes = [sum(pass_of(model, 1, context, Card("H200 SXM")).values()) for context in CONTEXTS]
        print(f"| {model} |", " | ".join(f"{seconds * 1e3:.2f}" for seconds in passes), "|")


CONTEXTS = (128, 464, 2048, 8192)

main()
