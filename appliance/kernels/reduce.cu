// Behind the network: a map of scores as bytes, and its extremes. The definition is _anomaly in appliance/inspect/decode.py.
//
// Follows preprocess.cu in one image, and is read by the CPU build as that is.

// Zeroed before each launch. Floats stand as whole numbers of the same order, so that an atomic maximum finds theirs;
// the lowest is the highest of the complements.
struct Extremes {
    u32 nan_seen; // whether any was seen
    u32 highest;
    u32 lowest_complement;
};

DEVICE u32 ordered(float value) {
    u32 bits = float_bits(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// `low` is 0, `high` 255, what lies beyond is clipped, halves go to the even one; what is not a number is painted as the worst.
GLOBAL reduce_map(const float *map, int count, float low, float high, u8 *shares, Extremes *extremes) {
    SHARED Extremes block;
    if (threadIdx.x == 0)
        block.nan_seen = block.highest = block.lowest_complement = 0;
    SYNC();
    u32 nan_seen = 0, highest = 0, lowest_complement = 0;
    float span = high - low;
    for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += gridDim.x * blockDim.x) {
        float raw = map[at], share = (raw - low) / span;
        shares[at] = (u8)rintf((share != share ? 1.0f : share < 0.0f ? 0.0f : share > 1.0f ? 1.0f : share) * 255.0f);
        if (raw != raw) {
            nan_seen = 1;
            continue;
        }
        u32 order = ordered(raw);
        highest = order > highest ? order : highest;
        lowest_complement = ~order > lowest_complement ? ~order : lowest_complement;
    }
    MAX32(&block.nan_seen, nan_seen);
    MAX32(&block.highest, highest);
    MAX32(&block.lowest_complement, lowest_complement);
    SYNC();
    if (threadIdx.x == 0) {
        MAX32(&extremes->nan_seen, block.nan_seen);
        MAX32(&extremes->highest, block.highest);
        MAX32(&extremes->lowest_complement, block.lowest_complement);
    }
}
